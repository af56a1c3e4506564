"""Rows and files of shards, in the order of the run that was never divided."""

from __future__ import annotations

import csv
import heapq
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, Final

from engine.errors import UsageError
from engine.ledger import Ledger, SliceRow
from engine.merge.copies import Copies
from engine.merge.linking import take_file, take_tree
from engine.outputs.masks import write_mask
from engine.outputs.rle import decode
from engine.outputs.volumes import VolumeRow
from engine.pending import VOLUME_NOTES
from engine.rows import Folder, name_of
from engine.shards import FinishedShard
from engine.text import shown

_AT_ONCE: Final = 4096
"""Rows a transaction."""
_HELD: Final = 65_536
"""Rows that are held of all shards together."""
_TYPES: Final[dict[str, type[str] | type[int] | type[float]]] = {
    field.name: float if "float" in str(field.type) else int if field.type == "int" else str
    for field in fields(VolumeRow)
}

Watch = Callable[[int, int], None]
"""Hears of rows: how many are there, and of how many."""
Placed = tuple[FinishedShard, SliceRow]


def take_rows(
    shards: Sequence[FinishedShard],
    ledger: Ledger,
    out: Path,
    copies: Copies,
    *,
    files: bool,
    watch: Watch,
) -> None:
    """Commit the shards' rows to `ledger`, each after its `files` are below `out`; `copies` brings far ones.

    Raises UsageError for a slice that two shards have, and for a picture that is gone; OSError, MachineError.
    """
    total = sum(each.slices for each in shards)
    merged = _in_order(shards)
    done = 0
    while chunk := list(islice(merged, _AT_ONCE)):
        if files:
            _fetch_files(chunk, copies)
            for shard, row in chunk:
                _take_files(shard, row, out)
            copies.discard()
        ledger.commit([row for _, row in chunk])
        done += len(chunk)
        watch(done, total)
    for shard in shards:
        for key, value in shard.notes.items():
            if key.startswith(VOLUME_NOTES):
                ledger.set_meta(key, value)
        if files:
            if shard.folder in copies:
                copies.fetch_volumes(shard.folder)
            take_tree(shard.folder / "volumes", out / "volumes")


def volume_rows(shards: Sequence[FinishedShard]) -> Mapping[str, VolumeRow]:
    """The rows of all volumes.csv, but of volumes that several shards have slices of: those are made anew."""
    found: dict[str, VolumeRow | None] = {}
    for shard in shards:
        with (shard.folder / "volumes.csv").open(encoding="utf-8", newline="") as file:
            for cells in csv.DictReader(file):
                name = cells["volume"]
                found[name] = None if name in found else _volume_row(cells)
    return {name: row for name, row in found.items() if row is not None}


def _in_order(shards: Sequence[FinishedShard]) -> Iterator[Placed]:
    """All rows in the order of the whole, each with its shard."""
    batch = max(16, _HELD // len(shards))
    last: Placed | None = None
    for shard, row in heapq.merge(*(_placed(shard, batch) for shard in shards), key=_place):
        if last is not None and _place(last) == _place((shard, row)):
            raise UsageError(
                f"{row.image_path} is in shard {last[0].shard.text} and in {shard.shard.text}: score one of "
                "them again with --fresh"
            )
        last = shard, row
        yield last


def _placed(shard: FinishedShard, batch: int) -> Iterator[Placed]:
    return ((shard, row) for row in shard.rows(batch))


def _place(placed: Placed) -> tuple[bytes, int]:
    return placed[1].order, placed[1].slice


def _fetch_files(chunk: Sequence[Placed], copies: Copies) -> None:
    far: dict[Path, list[bytes]] = {}
    for shard, row in chunk:
        if shard.folder in copies:
            kept = _folders_of(shard, row)
            far.setdefault(shard.folder, []).extend(name_of(each, row.stem) for each in kept)
    for folder, names in far.items():
        copies.fetch(folder, names)


def _folders_of(shard: FinishedShard, row: SliceRow) -> list[Folder]:
    """Where the slice has a file of its own."""
    kept: list[Folder] = []
    if row.has_mask and shard.identity["masks"] == "png":
        kept.append("masks")
    if row.has_mask and shard.identity["overlays"]:
        kept.append("overlays")
    if row.probability_path:
        kept.append("probabilities")
    return kept


def _take_files(shard: FinishedShard, row: SliceRow, out: Path) -> None:
    for folder in _folders_of(shard, row):
        name = os.fsdecode(name_of(folder, row.stem))
        if take_file(shard.folder / name, out / name):
            continue
        if folder != "masks":
            raise UsageError(
                f"shard {shard.shard.text}: {shown(shard.folder / name)} is gone: score the shard again with "
                "--fresh, or merge with --no-masks"
            )
        # Lost, or dropped by --components, which drops it here too.
        write_mask(os.fsencode(out / name), decode(row.mask_rle))


def _volume_row(cells: Mapping[str, str]) -> VolumeRow:
    values: dict[str, Any] = {
        name: kind(cells[name]) if cells[name] or name == "volume" else None for name, kind in _TYPES.items()
    }
    return VolumeRow(**values)
