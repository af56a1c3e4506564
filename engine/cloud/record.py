"""The truth of a run whose output is an object store: parts, each the rows of one transaction.

A part is written once, after the masks that its rows speak of, and never changed: `part-00000017.jsonl.gz`
holds a line that says what run it is of, which files were forgotten before, and then a row a line. Read in
order they give the ledger, whichever machine asks.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Final

from engine.cloud.addresses import Address
from engine.cloud.faults import StoreError, told
from engine.cloud.store import Store
from engine.errors import MachineError, UsageError
from engine.ledger import SliceRow

RECORD: Final = "ledger"
"""The folder of parts and lock, below the output."""
FORMAT: Final = 1
FETCHED_AHEAD: Final = 64
_BYTES: Final = ("order", "stem")
"""Fields of a row that are no text."""
_NAME: Final = re.compile(r"part-(\d{8})\.jsonl\.gz")


@dataclass(frozen=True, slots=True)
class Part:
    """One transaction of the run `run`: `forgets` are orders of files that lost their rows before it.

    `notes` are those of the ledger's that belong to the rows of this part or of a later one.
    """

    run: str
    identity: Mapping[str, object]
    forgets: Sequence[bytes]
    rows: Sequence[SliceRow]
    notes: Mapping[str, object] = field(default_factory=dict)

    def packed(self, writer: str) -> bytes:
        """As bytes; those of another `writer` are others."""
        head = {
            "format": FORMAT,
            "run": self.run,
            "writer": writer,
            "identity": self.identity,
            "forgets": [order.hex() for order in self.forgets],
            "notes": self.notes,
        }
        lines = [json.dumps(head, sort_keys=True), *(json.dumps(_packed(row)) for row in self.rows)]
        return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)

    @classmethod
    def unpacked(cls, data: bytes, name: str) -> Part:
        """What `packed` gave. Raises UsageError where it is something else, or damaged."""
        try:
            head, *rows = map(json.loads, gzip.decompress(data).decode().splitlines())
            if head["format"] != FORMAT:
                raise UsageError(
                    f"{name}: has format {head['format']}, this version reads {FORMAT}: --fresh starts over"
                )
            return cls(
                str(head["run"]),
                head["identity"],
                [bytes.fromhex(order) for order in head["forgets"]],
                [_unpacked(row) for row in rows],
                head.get("notes", {}),
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{name}: is damaged ({type(error).__name__}): delete it, and its slices are scored again"
            ) from error


class Record:
    """The parts below an address. Only its writer, who holds the lock, adds to it."""

    def __init__(self, store: Store, address: Address, writer: str) -> None:
        """Lists what is there. Raises what `told` gives."""
        self._store = store
        self._address = address
        self._writer = writer
        try:
            found = [each.name for each in store.do(store.folder(address.path)) if not each.folder]
        except StoreError as error:
            raise told(address, error, writing=True) from error
        self.numbers = sorted(int(match[1]) for name in found if (match := _NAME.fullmatch(name)))

    @property
    def next(self) -> int:
        """The number of the part that will be written next."""
        return self.numbers[-1] + 1 if self.numbers else 0

    def parts(self, numbers: Iterable[int]) -> Iterator[tuple[int, Part]]:
        """Those parts in order, fetched ahead. Raises UsageError for a damaged one, and what `told` gives."""
        left = iter(numbers)
        begun: list[tuple[int, Future[bytes]]] = []
        while True:
            wanted = islice(left, FETCHED_AHEAD - len(begun))
            begun += [(number, self._store.begin(self._store.get(self._path(number)))) for number in wanted]
            if not begun:
                return
            number, future = begun.pop(0)
            try:
                data = future.result()
            except StoreError as error:
                raise told(self._address, error, writing=True) from error
            yield number, Part.unpacked(data, f"{self._address}/{_name(number)}")

    def append(self, part: Part) -> int:
        """Write the next part; its number. Raises MachineError where another run wrote it."""
        number = self.next
        try:
            self._store.do(self._store.put(self._path(number), part.packed(self._writer), create=True))
        except StoreError as error:
            if error.fault.kind == "taken":
                raise MachineError(
                    f"{self._address}: another run writes to this output: nothing of either is lost; wait "
                    "for its end, then run the same command"
                ) from error
            raise told(self._address, error, writing=True) from error
        self.numbers.append(number)
        return number

    def delete(self) -> None:
        """Delete all parts."""
        self._store.do(self._store.delete([self._path(number) for number in self.numbers]))
        self.numbers = []

    def _path(self, number: int) -> str:
        return f"{self._address.path}/{_name(number)}"


def _name(number: int) -> str:
    return f"part-{number:08d}.jsonl.gz"


def _packed(row: SliceRow) -> dict[str, Any]:
    """Its values by name, bytes as hexadecimal."""
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in asdict(row).items()}


def _unpacked(values: dict[str, Any]) -> SliceRow:
    hexadecimal = {name: bytes.fromhex(values[name]) for name in _BYTES}
    return SliceRow(**{**values, **hexadecimal})
