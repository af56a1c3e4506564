"""The ledger of a run whose output is an object store: a cache of the record, which has every row first."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, Protocol, Self

from engine import ledger_file
from engine.cloud.record import Part, Record
from engine.cloud.uploads import Uploads
from engine.errors import UsageError
from engine.finish import CLEANED
from engine.ledger import Ledger, SliceRow, stored_identity, stored_meta

_AT: Final = "record"
"""Of the ledger's notes: the record's run, and how much of it the ledger has."""
_ROWS_AT_ONCE: Final = 4096


class Way(Protocol):
    """How rows and their files come into the store: the desk."""

    @property
    def record(self) -> Record:
        """What is written into."""

    def append(self, part: Part) -> int:
        """Write a part, the files that its rows speak of first; its number. Raises MachineError."""

    @property
    def uploads(self) -> Uploads:
        """What brings files of slices there."""


class StoredLedger(Ledger):
    """A ledger whose rows are in the record before they are here."""

    _desk: Way
    _run: str
    _identity: Mapping[str, object]

    def kept_at(self, desk: Way, identity: Mapping[str, object]) -> Self:
        """Write into the record of `desk`, as the run that the ledger is of."""
        noted = self.get_meta(_AT)
        self._run = str(noted["run"]) if isinstance(noted, dict) else secrets.token_hex(8)
        self._desk, self._identity = desk, identity
        return self

    def declare(self, identity: Mapping[str, object]) -> None:
        """See `Ledger.declare`."""
        self._identity = identity
        super().declare(identity)

    def commit(self, rows: Sequence[SliceRow]) -> None:
        """See `Ledger.commit`. Raises MachineError where the store does not take them."""
        number = self._desk.append(Part(self._run, self._identity, (), rows))
        super().commit(rows)
        self._note(number)
        self._desk.uploads.discard(rows)

    def forget(self, orders: Iterable[bytes]) -> None:
        """See `Ledger.forget`."""
        forgotten = tuple(orders)
        number = self._desk.append(Part(self._run, self._identity, forgotten, ()))
        super().forget(forgotten)
        self._note(number)

    def _note(self, number: int) -> None:
        self.set_meta(_AT, {"run": self._run, "part": number, "parts": len(self._desk.record.numbers)})


def bring_up_to_date(path: Path, record: Record) -> None:
    """Have the ledger at `path` hold what the record does: by the parts that it lacks, or by all of them."""
    known = _known(path)
    if not record.numbers:
        ledger_file.delete(path)
        return
    last = known.get("part")
    if not isinstance(last, int) or not _is_same(record, known, last):
        ledger_file.delete(path)
        last = -1
    parts = record.parts(number for number in record.numbers if number > last)
    first = next(parts, None)
    if first is None:
        return
    with Ledger.open(path, first[1].identity, fresh=last < 0) as ledger:
        rows: list[SliceRow] = []
        for _, part in chain((first,), parts):
            if part.forgets or len(rows) >= _ROWS_AT_ONCE:
                ledger.commit(rows)
                rows = []
            if part.forgets:
                ledger.forget(part.forgets)
            rows += part.rows
        ledger.commit(rows)
        if last < 0:
            ledger.set_meta(CLEANED, True)
        ledger.set_meta(_AT, {"run": first[1].run, "part": record.numbers[-1], "parts": len(record.numbers)})


def holds_all(path: Path, record: Record) -> bool:
    """Whether the ledger at `path` is of the record, and no part came since."""
    known = _known(path)
    last = known.get("part")
    return isinstance(last, int) and last == record.numbers[-1] and _is_same(record, known, last)


def _known(path: Path) -> Mapping[str, object]:
    """Up to where the ledger has the record; nothing where there is none, or it is damaged."""
    try:
        noted = stored_meta(path).get(_AT) if stored_identity(path) is not None else None
    except UsageError:
        return {}
    return noted if isinstance(noted, dict) else {}


def _is_same(record: Record, known: Mapping[str, object], last: int) -> bool:
    """Whether the record is that which the ledger has the beginning of, and nothing of it is gone."""
    if sum(number <= last for number in record.numbers) != known.get("parts") or last not in record.numbers:
        return False
    ((_, part),) = record.parts([last])
    return part.run == known.get("run")
