"""A finished shard as it lies on the disk: what its run seals, and what `tumorscan merge` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final, cast

from pydantic import ValidationError

from engine.errors import UsageError
from engine.ledger import Counts, Ledger, SliceRow
from engine.ledger_readers import stored_identity, stored_meta, stored_rows
from engine.outputs.runjson import RunReport
from engine.run import LEDGER, private_folder
from engine.sources.shards import Seen, Shard
from engine.text import shown

TABLES: Final = ("results.csv", "errors.csv", "volumes.csv")
_SEAL: Final = "sealed"
_BY_MACHINE: Final = frozenset(
    {"backend", "backend_version", "runtime", "gpu", "batch", "models", "precision"}
)
"""What of an identity is settled by the machine; one that scored nothing had no part in it."""


@dataclass(frozen=True, slots=True)
class UnfinishedShard:
    """A shard of which more is to be scored, or that was scored with --limit."""

    folder: Path
    shard: Shard


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard that may be merged. `identity` is its run's, without the shard; `notes` are the ledger's."""

    folder: Path
    ledger: Path
    shard: Shard
    identity: Mapping[str, object]
    notes: Mapping[str, object]
    seen: Seen
    counts: Counts
    report: RunReport

    @property
    def slices(self) -> int:
        """Its rows."""
        return self.counts.ok + self.counts.quarantined

    @property
    def of_all(self) -> Mapping[str, object]:
        """What of the identity all shards have in common, whether they scored anything or not."""
        return {key: value for key, value in self.identity.items() if key not in _BY_MACHINE}

    @property
    def fingerprint(self) -> str:
        """Another when the shard's results are."""
        return hashlib.sha256(repr(self.notes[_SEAL]).encode()).hexdigest()

    def rows(self, batch: int) -> Iterator[SliceRow]:
        """Its rows in order, as committed, `batch` read at a time. Raises MachineError at a damaged one."""
        return stored_rows(self.ledger, batch)


def break_seal(ledger: Ledger) -> None:
    """Say that the shard is not finished: more of it will be scored."""
    ledger.set_meta(_SEAL, None)


def seal(ledger: Ledger, out: Path, seen: Seen) -> None:
    """Say that the shard is finished and its tables are written; `seen` is what it saw of the input."""
    hashes = {name: _sha256(out / name) for name in TABLES}
    ledger.set_meta(
        _SEAL,
        {"names": seen.names, "digest": seen.digest, "counts": astuple(ledger.counts()), "tables": hashes},
    )


def read_shard(folder: Path, anonymise: Path | None) -> FinishedShard | UnfinishedShard:
    """The shard in `folder`, an output of `tumorscan score --shard`.

    Raises UsageError for what is no shard or was changed since it was finished; MachineError.
    """
    path = private_folder(folder, anonymise) / LEDGER
    identity = _identity(folder, path, anonymise)
    shard = Shard.parse(str(identity.pop("shard")))
    notes = stored_meta(path)
    found = cast("dict[str, Any] | None", notes.get(_SEAL))
    if found is None:
        return UnfinishedShard(folder, shard)
    for name, wanted in found["tables"].items():
        if _sha256(folder / name) != wanted:
            raise UsageError(
                f"{_named(folder, shard)}: {name} is not what was written: run its command again, which "
                "writes it anew, then merge"
            )
    return FinishedShard(
        folder=folder,
        ledger=path,
        shard=shard,
        identity=identity,
        notes=notes,
        seen=Seen(found["names"], found["digest"]),
        counts=Counts(*found["counts"]),
        report=_report(folder, shard),
    )


def _identity(folder: Path, path: Path, anonymise: Path | None) -> dict[str, object]:
    what = "give the output folders of `tumorscan score --shard`, all of them and nothing else"
    if not folder.is_dir():
        raise UsageError(f"{shown(folder)}: no such folder: {what}")
    if not path.exists():
        hint = "; of shards scored with --anonymise FOLDER, give that" if anonymise is None else ""
        raise UsageError(f"{shown(folder)} holds no run ({LEDGER} is not there): {what}{hint}")
    try:
        identity = stored_identity(path)
    except UsageError as error:
        raise UsageError(f"{error} (options of `tumorscan score`)") from error
    if identity is None or "shard" not in identity:
        raise UsageError(f"{shown(folder)} holds a whole run, no shard: {what}")
    return identity


def _report(folder: Path, shard: Shard) -> RunReport:
    path = folder / "run.json"
    try:
        return RunReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged, or another version's"
        raise UsageError(
            f"{_named(folder, shard)}: {path.name} cannot be read ({why}): delete it and run the shard's "
            "command again, then merge"
        ) from error


def _named(folder: Path, shard: Shard) -> str:
    return f"shard {shard.text} in {shown(folder)}"


def _sha256(path: Path) -> str:
    """Of a file; "" where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
