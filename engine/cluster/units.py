"""Units: the slices that a worker is given at a time, and the rows that come back of them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from engine.errors import Failure
from engine.ledger import SliceRow
from engine.sources.discovery import SourceFile, Unlisted
from engine.sources.volumes import Volume

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Datasource

BLOCKS: Final = 8
"""Blocks of the pipeline that make a unit: little is lost with a worker, and messages are few."""
_FASTEST: Final = 1

Slice = SourceFile | Unlisted
_TRAVELS: Final[Mapping[str, Callable[..., object]]] = {
    each.__name__: each for each in (SourceFile, Unlisted, SliceRow)
}


def units(entries: Iterable[Slice], size: int) -> Iterator[list[Slice]]:
    """Cut `entries` into units of `size`, longer ones where a volume goes on: it is opened once then."""
    unit: list[Slice] = []
    for entry in entries:
        if len(unit) >= size and not _of_one_volume(unit[-1], entry):
            yield unit
            unit = []
        unit.append(entry)
    if unit:
        yield unit


def _of_one_volume(first: Slice, second: Slice) -> bool:
    return (
        isinstance(first, SourceFile)
        and isinstance(second, SourceFile)
        and first.source is not None
        and first.source is second.source
    )


def packed(items: Sequence[Slice] | Sequence[SliceRow]) -> bytes:
    """A unit or its rows, small enough to travel within Ray's messages: then no node has to keep them."""
    volumes: dict[int, tuple[int, Volume]] = {}

    def told(value: object) -> dict[str, Any]:
        match value:
            case bytes():
                return {"bytes": value.decode("latin-1")}
            case Volume():
                number, _ = volumes.setdefault(id(value), (len(volumes), value))
                return {"volume": number}
            case Failure():
                return {"failure": astuple(value)}
            case _:
                raise TypeError(f"{type(value).__name__} does not travel")

    listed = [
        [type(item).__name__, *(getattr(item, each.name) for each in fields(type(item)))] for item in items
    ]
    text = json.dumps(listed, default=told)
    shared = [[volume.recipe, volume.order.hex(), volume.fingerprint] for _, volume in volumes.values()]
    return zlib.compress(f"{json.dumps(shared)}\n{text}".encode(), _FASTEST)


def unpacked(data: bytes) -> list[Any]:
    """What was `packed` by another process of this run; nothing for no data."""
    if not data:
        return []
    shared, text = zlib.decompress(data).decode().split("\n")
    volumes = [Volume(recipe, bytes.fromhex(order), mark) for recipe, order, mark in json.loads(shared)]

    def heard(value: dict[str, Any]) -> object:
        ((kind, inside),) = value.items()
        match kind:
            case "bytes":
                return inside.encode("latin-1")
            case "volume":
                return volumes[inside]
            case _:
                return Failure(*inside)

    return [_TRAVELS[name](*values) for name, *values in json.loads(text, object_hook=heard)]


def source_of(board: Any) -> Datasource:
    """What Ray Data reads: a row of `unit` and `slices` for each that the driver puts on the `board`.

    One task reads them, and ends when the board says so. Where Ray reads anew, because it lost what a node
    had, the same units come in the same places, and those that are done are empty.
    """
    import pyarrow as pa
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Units(Datasource):
        def get_name(self) -> str:
            return "Units"

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
            schema = pa.schema([("unit", pa.int64()), ("slices", pa.binary())])
            return [ReadTask(partial(_read, board, schema), unknown, schema=schema)]

    return Units()


def _read(board: Any, schema: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow as pa
    import ray

    place = 0
    while (taken := ray.get(board.take.remote(place))) is not None:
        if taken:
            place += 1
            yield pa.table({"unit": [taken[0]], "slices": [taken[1]]}, schema=schema)
