"""The ledger of a run whose output is an object store: a cache of the record, which has every row first."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, Protocol, Self

from engine import ledger_file
from engine.cloud.record import Part, Record
from engine.cloud.uploads import Uploads
from engine.errors import UsageError
from engine.finish import CLEANED
from engine.ledger import Ledger, SliceRow
from engine.ledger_readers import stored_identity, stored_meta
from engine.outputs.runjson import RunReport
from engine.pending import VOLUME_NOTES

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
    _notes: dict[str, object]
    _noting: threading.Lock

    def kept_at(self, desk: Way, identity: Mapping[str, object]) -> Self:
        """Write into the record of `desk`, as the run that the ledger is of."""
        noted = self.get_meta(_AT)
        self._run = str(noted["run"]) if isinstance(noted, dict) else secrets.token_hex(8)
        self._desk, self._identity = desk, identity
        self._notes, self._noting = {}, threading.Lock()
        return self

    def declare(self, identity: Mapping[str, object]) -> None:
        """See `Ledger.declare`."""
        self._identity = identity
        super().declare(identity)

    def commit(self, rows: Sequence[SliceRow]) -> None:
        """See `Ledger.commit`. Raises MachineError where the store does not take them."""
        number = self._append((), rows)
        super().commit(rows)
        self._note(number)
        self._desk.uploads.discard(rows)

    def forget(self, orders: Iterable[bytes]) -> None:
        """See `Ledger.forget`."""
        forgotten = tuple(orders)
        number = self._append(forgotten, ())
        super().forget(forgotten)
        self._note(number)

    def set_meta(self, key: str, value: object) -> None:
        """See `Ledger.set_meta`. What is noted of a volume goes with the next part: its rows come later."""
        super().set_meta(key, value)
        if key.startswith(VOLUME_NOTES):
            with self._noting:
                self._notes[key] = value

    def _append(self, forgets: Sequence[bytes], rows: Sequence[SliceRow]) -> int:
        with self._noting:
            notes, self._notes = self._notes, {}
        return self._desk.append(Part(self._run, self._identity, forgets, rows, notes))

    def _note(self, number: int) -> None:
        self.set_meta(_AT, {"run": self._run, "part": number, "parts": len(self._desk.record.numbers)})


def bring_up_to_date(path: Path, record: Record) -> bool:
    """Have the ledger at `path` hold what the record does: by the parts that it lacks, or by all of them.

    Whether it lacked any.
    """
    known = _known(path)
    if not record.numbers:
        ledger_file.delete(path)
        return False
    last = known.get("part")
    if not isinstance(last, int) or not _is_same(record, known, last):
        ledger_file.delete(path)
        last = -1
    parts = record.parts(number for number in record.numbers if number > last)
    first = next(parts, None)
    if first is None:
        return False
    with Ledger.open(path, first[1].identity, fresh=last < 0) as ledger:
        rows: list[SliceRow] = []
        for _, part in chain((first,), parts):
            if part.forgets or len(rows) >= _ROWS_AT_ONCE:
                ledger.commit(rows)
                rows = []
            if part.forgets:
                ledger.forget(part.forgets)
            for key, value in part.notes.items():
                ledger.set_meta(key, value)
            rows += part.rows
        ledger.commit(rows)
        if last < 0:
            ledger.set_meta(CLEANED, True)
        ledger.set_meta(_AT, {"run": first[1].run, "part": record.numbers[-1], "parts": len(record.numbers)})
    return True


def note_report(path: Path, report: RunReport) -> None:
    """Have the ledger at `path` know the `report` of the call that had all rows that it has now, or fewer."""
    identity = stored_identity(path)
    if identity is None:
        return
    counts = [report.counts.ok, report.counts.quarantined, report.counts.has_mask]
    with Ledger.open(path, identity, fresh=False) as ledger:
        ledger.set_meta("seconds", report.timings.seconds_total)
        ledger.set_meta("reported", counts if report.finished else None)


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
