"""Names that only the holder of a key can tell: for results that leave the house (`--anonymise`).

The key, the ledger (which knows the real names) and a list of who is who lie in a private folder of the
user's. A pseudonym is an HMAC of the whole path down to it, so equal names in two folders have two, and who
has no key cannot try names out.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Final, Self

from engine.disk import cannot_write
from engine.errors import MachineError, UsageError
from engine.ledger import SliceRow
from engine.outputs.atomic import replacing
from engine.outputs.tables import line

WITHHELD: Final = "withheld by --anonymise"
NAMES_COLUMNS: Final = ("image_path", "pseudonym")
_KEY: Final = "key"
_KEY_BYTES: Final = 32
_DIGITS: Final = 16
_HARMLESS: Final = re.compile(
    r"\d+(\.\d+)?([smhd]|ml)?|all|largest|none|png|rle|auto|openvino|onnxruntime|tensorrt|cuda|fp32|bf16|fp16|int8|score|merge"
)
"""Words of a command line that name nothing."""


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Pseudonyms by one key."""

    key: bytes

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Those of the key in `folder`, which is made (mode 0700, key 0600) where there is none.

        Raises UsageError for a file that is no key, MachineError where it cannot be read or written.
        """
        path = folder / _KEY
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(secrets.token_hex(_KEY_BYTES) + "\n")
            text = path.read_text(encoding="ascii").strip()
        except UnicodeDecodeError:
            text = ""
        except FileExistsError:
            raise UsageError(f"--anonymise {folder}: is a file: name a folder for the key") from None
        except OSError as error:
            raise MachineError(
                f"--anonymise {folder}: the key cannot be read or made ({error.strerror}): check the folder"
            ) from error
        if not re.fullmatch(rf"[0-9a-f]{{{2 * _KEY_BYTES}}}", text):
            raise UsageError(f"{path}: is no key: put the right one back, or name another folder")
        return cls(bytes.fromhex(text))

    @property
    def fingerprint(self) -> str:
        """Tells keys apart and gives nothing away."""
        return hashlib.sha256(b"fingerprint" + self.key).hexdigest()[:_DIGITS]

    def of(self, text: str) -> str:
        """A pseudonym of `_DIGITS` hexadecimal digits."""
        data = text.encode("utf-8", "surrogateescape")
        return hmac.new(self.key, data, "sha256").hexdigest()[:_DIGITS]

    def of_uid(self, uid: str) -> str:
        """A UID (DICOM PS3.5 B.2) instead of `uid`."""
        digest = hmac.new(self.key, uid.encode("ascii", "replace"), "sha256").digest()
        return f"2.25.{int.from_bytes(digest[:16], 'big')}"

    def of_path(self, path: str) -> str:
        """A pseudonym for each folder of `path` and for its last part, joined as they were."""
        parts = accumulate(path.split("/"), lambda above, name: f"{above}/{name}")
        return "/".join(self.of(part) for part in parts)

    def of_stem(self, stem: bytes) -> bytes:
        """The same for a path of bytes."""
        return self.of_path(os.fsdecode(stem)).encode()

    def of_row(self, row: SliceRow) -> SliceRow:
        """`row` as others may see it. Paths of masks are pseudonyms already, on the disk too."""
        return replace(
            row,
            volume=self.of_path(row.volume),
            image_path=self.of_path(row.image_path),
            message=WITHHELD if row.message else "",
        )

    def of_arguments(self, words: Iterable[str]) -> list[str]:
        """A command line with its options, and without what they and it name."""
        return [self._of_word(word) for word in words]

    def _of_word(self, word: str) -> str:
        if word.startswith("-") and not word.startswith("-/"):
            option, equals, value = word.partition("=")
            return option + equals + (self._of_word(value) if equals else "")
        return word if _HARMLESS.fullmatch(word) else self.of(word)


def write_names(rows: Iterable[SliceRow], pseudonyms: Pseudonyms, path: Path) -> None:
    """Write who is who, a line a file of `rows`, to be kept private. Raises MachineError where it cannot."""
    last = ""
    try:
        with replacing(path, durable=True) as file:
            file.write(line(NAMES_COLUMNS))
            for row in rows:
                if row.image_path != last:
                    last = row.image_path
                    file.write(line((last, pseudonyms.of_path(last))))
    except OSError as error:
        raise cannot_write(path, error) from error
