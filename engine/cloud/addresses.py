"""Addresses: what a user types for an object store, told from paths. Nothing heavy is imported here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.errors import UsageError
from engine.text import shown

SCHEMES: Final = ("s3", "gs", "gcs")
"""Object stores; file:// is another way to write a path."""
LONGEST_KEY: Final = 1024
"""Bytes of an object's name in its bucket: S3's and Google's limit."""
_ADDRESS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_COLLAPSED: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)(.*)", re.DOTALL)
_START: Final = re.compile(rb"(?:s3|gs|gcs)://")


@dataclass(frozen=True, slots=True)
class Address:
    """A place in an object store. `path` is bucket/key, or the bucket alone, without a / at its end."""

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def __truediv__(self, name: str) -> Address:
        return Address(self.scheme, f"{self.path}/{name}")

    @property
    def bucket(self) -> str:
        """The bucket's address, as text."""
        return f"{self.scheme}://{self.path.partition('/')[0]}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that `text`, for which `is_address` holds, is. UsageError for one without a bucket."""
        scheme, _, path = text.partition("://")
        bucket = path.partition("/")[0]
        if not bucket or set(bucket) & set("@:?#"):
            raise UsageError(
                f"{scheme}://: no address of a bucket: write {scheme}://BUCKET/FOLDER; keys and passwords "
                "belong into the environment or a profile"
            )
        return cls(scheme, path.rstrip("/"))


def of_path(path: Path) -> Address | None:
    """The address that a user gave where a path is taken; None for a path. A Path has dropped a slash of it.

    Raises UsageError for an address of another kind.
    """
    found = _COLLAPSED.match(str(path))
    if found is None:
        return None
    if found[1].lower() == "file":
        return None
    return Address.parse(plain(f"{found[1]}://{found[2]}"))


def as_typed(path: Path) -> str:
    """The address that stands as `path`, or that as text; of file:// the path that it means."""
    return str(of_path(path) or shown(local(path)))


def local(path: Path) -> Path:
    """`path`, and of file:// the path that it means."""
    found = _COLLAPSED.match(str(path))
    return Path(f"/{found[2]}") if found is not None and found[1].lower() == "file" else path


def is_address(path: bytes | str) -> bool:
    """Whether `path`, as `plain` gives it, is of an object store."""
    return _START.match(path if isinstance(path, bytes) else path.encode("utf-8", "replace")) is not None


def plain(typed: str) -> str:
    """What a user typed as a path where it is one (file:// too), or as an address that is well formed.

    Raises UsageError for an address of another kind.
    """
    found = _ADDRESS.match(typed)
    if found is None:
        return typed
    scheme, rest = found[1].lower(), found[2]
    if scheme in SCHEMES:
        return str(Address.parse(f"{scheme}://{rest}"))
    if scheme == "file" and rest.removeprefix("localhost").startswith("/"):
        return rest.removeprefix("localhost")
    if scheme == "file":
        raise UsageError("file://: only whole paths of this machine are read so: file:///FOLDER")
    # The rest is not shown: addresses of other kinds carry keys and signatures.
    raise UsageError(
        f"{scheme}://: an address of an unknown kind: s3://, gs:// and file:// are read and written; copy "
        "what lies elsewhere there, or to a disk"
    )


def longest_name(out: Address) -> int:
    """Bytes that the name of an object below `out` may have."""
    return LONGEST_KEY - len(f"{out.path.partition('/')[2]}/".encode())
