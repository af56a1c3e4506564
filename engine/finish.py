"""The last stage of a run: what its committed rows say, as tables and volumes.

All of it follows from the ledger and the sources' headers, so it is done anew whenever a run comes to its
end, and a kill within it costs nothing. Only the tables of plain pictures are left as they are while no row
changes: of a million slices they take half a minute. At most one volume is in memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from engine import __version__
from engine.disk import cannot_write, patiently
from engine.errors import MachineError
from engine.ledger import MADE, Ledger, SliceRow
from engine.outputs.components import KEEP_ALL, Components, Rule, find_components
from engine.outputs.masks import write_mask
from engine.outputs.pseudonyms import Pseudonyms, write_names
from engine.outputs.rle import Crop, decode, decode_crops
from engine.outputs.volumes import Tally, VolumeRow, write_volumes
from engine.rows import name_of, with_mask
from engine.sources.series import Start, start_of
from engine.sources.statuses import status_of
from engine.table_process import tables_aside
from engine.table_worker import write_all
from engine.text import shown
from engine.volumes import Kind, Space, find_space, kind_of, write_mask_volume

CLEANED: Final = "cleaned"
"""Of the ledger's notes: masks on the disk may be those of an earlier end, which dropped other components."""
_TABLES: Final = ("volumes.csv", "results.csv", "errors.csv")
_PARQUET: Final = ("results.parquet", "errors.parquet")
_OVERRULED_AT_ONCE: Final = 512
_READ_AT_ONCE: Final = 4096
_DECODED_AT_ONCE: Final = 1024
_ENDINGS: Final[dict[Kind, bytes]] = {"nifti": b"_mask.nii.gz", "dicom": b"_mask.dcm"}
_PAGE: Final = re.compile(rb"/\d{1,6}$")

Pair = tuple[SliceRow, SliceRow]
"""A row as committed, and as the rule for components leaves it: the same object where it changes nothing."""


@dataclass(frozen=True, slots=True)
class Finish:
    """What a run leaves in `out` beside its slices' files; the command's options of the same names explain.

    `names` is where the list of who is who is kept, with `pseudonyms`. `made` are volumes whose row and mask
    are there already, by the name in the table. `start` reads the first bytes of sources.
    """

    out: Path
    masks: Literal["png", "rle", "none"] = "png"
    components: Rule = KEEP_ALL
    probabilities: bool = False
    parquet: bool = False
    keep_patient: bool = False
    pseudonyms: Pseudonyms | None = None
    names: Path | None = None
    made: Mapping[str, VolumeRow] = field(default_factory=dict)
    start: Start = start_of

    @property
    def extra(self) -> tuple[str, ...]:
        """The columns of results.csv behind those that every run has."""
        rle = ("mask_rle",) if self.masks == "rle" else ()
        return (*rle, "probability_path") if self.probabilities else rle

    @property
    def as_committed(self) -> bool:
        """Whether the tables of slices have the ledger's rows just as they were committed."""
        return self.components.keeps_all and self.pseudonyms is None


def finish(ledger: Ledger, how: Finish, *, whole: bool = True) -> None:
    """Write tables, and the volumes' masks where the run is `whole`; `ledger` then has the rows as left.

    Raises MachineError where something cannot be written. One volume's fault leaves the others their files
    and the run its tables.
    """
    if _is_made(ledger, how, whole=whole):
        return
    ledger.stack()
    restores = False
    if not how.components.keeps_all:
        restores = bool(ledger.get_meta(CLEANED))
        ledger.set_meta(CLEANED, True)
    faults: list[MachineError] = []
    of_headers = False

    def finished() -> Iterator[VolumeRow]:
        nonlocal of_headers
        for volume in ledger.volumes():
            row = _finish_volume(ledger, how, volume, whole=whole, restores=restores, faults=faults)
            of_headers |= bool(row.mask_path or row.ml or row.note)
            yield row

    with _tables_aside(ledger, how) as are_written:
        write_volumes(finished(), how.out)
        if not are_written():
            write_all(partial(_public, ledger, how), how.out, how.extra, parquet=how.parquet)
    if how.pseudonyms is not None and how.names is not None:
        write_names(ledger.rows(), how.pseudonyms, how.names)
    if faults:
        raise faults[0]
    if how.as_committed and not of_headers:
        ledger.set_meta(MADE, _as_made(how, whole=whole))


def _is_made(ledger: Ledger, how: Finish, *, whole: bool) -> bool:
    """Whether the same was made of the same rows, and is there as it was written."""
    made = ledger.get_meta(MADE)
    return made is not None and made == _as_made(how, whole=whole)


def _as_made(how: Finish, *, whole: bool) -> object:
    """What the tables are made by, and they themselves as they are on the disk."""
    files: list[list[int] | None] = []
    for name in (*_TABLES, *(_PARQUET if how.parquet else ())):
        status = status_of(os.fsencode(how.out / name))
        files.append(None if status is None else [status.st_size, status.st_mtime_ns])
    options = [how.masks, how.components.keeps_all, how.pseudonyms is None, how.probabilities, how.parquet]
    return [__version__, whole, *options, *files]


def _finish_volume(
    ledger: Ledger, how: Finish, volume: str, *, whole: bool, restores: bool, faults: list[MachineError]
) -> VolumeRow:
    """Drop what the rule drops, write the mask as a volume, and give the row of volumes.csv."""
    name = volume if how.pseudonyms is None else how.pseudonyms.of_path(volume)
    made = how.made.get(name)
    if made is not None and how.components.keeps_all:
        return made
    tally = Tally()
    found = find_components(_masks(ledger.rows_of(volume), tally))
    space = Space("pictures")
    if made is None or how.components.ml:
        try:
            space = _space_of(ledger, volume, how.start, any_mask=len(found.voxels) > 0)
        except MachineError as error:
            faults.append(error)
    kept = how.components.kept(found.voxels, space.voxel_ml)
    left = partial(_left, ledger, volume, found, kept)
    if not how.components.keeps_all:
        _overrule(ledger, how, left(), restores=restores)
    if made is not None:
        return made
    if not how.components.keeps_all:
        tally = Tally()
        for _, row in left():
            tally.add(row)
    mask_path, note = None, space.note
    if whole and how.masks != "none" and space.sources and (space.kind == "nifti" or tally.with_mask):
        try:
            mask_path, note = _write_volume(how, volume, space, left())
        except MachineError as error:
            faults.append(error)
    if how.components.ml and space.voxel_ml is None and len(found.voxels):
        note = "; ".join(filter(None, (note, "all components kept: the spacing is unknown")))
    sizes = found.voxels[kept]
    return tally.row(
        name,
        components=len(sizes),
        largest=int(sizes.max(initial=0)),
        voxel_ml=space.voxel_ml,
        mask_path=mask_path,
        note=note,
    )


def _space_of(ledger: Ledger, volume: str, start: Start, *, any_mask: bool) -> Space:
    """Where its slices lie, as far as that is needed: headers of a series without a mask are left alone."""
    first = next(_scored(ledger, volume, batch=1), None)
    if first is None:
        return Space("pictures")
    kind = kind_of(first)
    if not any_mask and kind != "nifti":
        return Space(kind)
    return find_space(_scored(ledger, volume), kind, start)


def _masks(rows: Iterator[SliceRow], tally: Tally) -> Iterator[Crop | None]:
    """The masks of a volume's scored slices; all of its `rows` are counted on the way."""
    while some := list(islice(rows, _DECODED_AT_ONCE)):
        masks = decode_crops(row.mask_rle for row in some if row.status == "ok" and row.mask_rle)
        for row in some:
            tally.add(row)
            if row.status == "ok":
                yield next(masks) if row.mask_rle else None


def _scored(ledger: Ledger, volume: str, batch: int = _READ_AT_ONCE) -> Iterator[SliceRow]:
    """The volume's rows as committed. Slices in quarantine are left out, and so part no component."""
    return (row for row in ledger.rows_of(volume, batch) if row.status == "ok")


def _left(ledger: Ledger, volume: str, found: Components, kept: npt.NDArray[np.bool_]) -> Iterator[Pair]:
    """All rows of the volume, each with the row that the rule leaves of it."""
    number = 0
    for row in ledger.rows_of(volume):
        if row.status != "ok":
            yield row, row
            continue
        if found.untouched(number, kept):
            yield row, row
        else:
            mask = found.keep(number, decode(row.mask_rle), kept)
            yield row, with_mask(row, mask if mask.any() else None)
        number += 1


def _overrule(ledger: Ledger, how: Finish, pairs: Iterator[Pair], *, restores: bool) -> None:
    """Have ledger and masks on the disk say what the rule leaves; `restores` what an earlier end took."""
    changed: list[SliceRow] = []
    for row, left in pairs:
        if left is not row:
            changed.append(left)
        if len(changed) == _OVERRULED_AT_ONCE:
            ledger.overrule(changed)
            changed = []
        if how.masks == "png" and row.has_mask and (restores or left is not row):
            try:
                patiently(partial(_replace_mask, how.out, left))
            except OSError as error:
                raise cannot_write(how.out, error) from error
    ledger.overrule(changed)


def _replace_mask(out: Path, row: SliceRow) -> None:
    path = os.fsencode(out) + b"/" + name_of("masks", row.stem)
    if row.has_mask:
        write_mask(path, decode(row.mask_rle))
        return
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - the name is bytes


def _write_volume(how: Finish, volume: str, space: Space, pairs: Iterator[Pair]) -> tuple[str | None, str]:
    """Write the mask's volume; its path below the output, None where there is none, and a note."""
    rows = (left for _, left in pairs if left.status == "ok")
    first = next(rows)
    name = b"volumes/" + _stem(how, volume, space, first) + _ENDINGS[space.kind]
    try:
        fault = write_mask_volume(
            chain((first,), rows),
            space,
            how.out / os.fsdecode(name),
            keep_patient=how.keep_patient,
            pseudonyms=how.pseudonyms,
        )
    except OSError as error:
        raise cannot_write(how.out, error) from error
    note = "; ".join(filter(None, (space.note, fault)))
    return (None, note) if fault else (shown(name), note)


def _stem(how: Finish, volume: str, space: Space, first: SliceRow) -> bytes:
    """Where the mask's volume lies below volumes/: as its file does, or in the folder of its series."""
    if space.kind == "nifti":
        return _PAGE.sub(b"", first.stem)
    name = volume.rpartition("/")[2] if how.pseudonyms is None else how.pseudonyms.of(volume)
    return os.path.join(os.path.dirname(first.stem), os.fsencode(name))  # noqa: PTH118, PTH120 - bytes


def _tables_aside(ledger: Ledger, how: Finish) -> AbstractContextManager[Callable[[], bool]]:
    """See `tables_aside`."""
    if how.as_committed:
        return tables_aside(ledger.path, how.out, how.extra, parquet=how.parquet)
    return nullcontext(lambda: False)


def _public(ledger: Ledger, how: Finish) -> Iterator[SliceRow]:
    """The rows of the tables."""
    rows = ledger.rows()
    return rows if how.pseudonyms is None else map(how.pseudonyms.of_row, rows)
