"""volumes.csv: what was found in each volume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

from engine.disk import cannot_write
from engine.ledger import SliceRow
from engine.outputs.atomic import replacing
from engine.outputs.tables import line


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """A row of volumes.csv.

    `slices` are all, `quarantined` those of them that could not be scored, `with_mask` those with has_mask 1.
    `components` and all behind it are of the masks as they were left by --components. The box is in pixels
    and slices, from 0; both are 0 without a mask. Millilitres are None where the volume's spacing is unknown.
    `mask_path` is the mask's volume, None where there is none; `note` says what is odd.
    """

    volume: str
    slices: int
    quarantined: int
    with_mask: int
    voxels: int
    ml: float | None
    components: int
    largest_voxels: int
    largest_ml: float | None
    bbox_x: int
    bbox_y: int
    bbox_z: int
    bbox_w: int
    bbox_h: int
    bbox_d: int
    mask_path: str | None
    note: str | None


VOLUME_COLUMNS: Final = tuple(field.name for field in fields(VolumeRow))


@dataclass(slots=True)
class Tally:
    """Adds up a volume's rows, in their order. `box` is first and last x, y and z, last ones excluded."""

    slices: int = 0
    quarantined: int = 0
    with_mask: int = 0
    voxels: int = 0
    box: tuple[int, int, int, int, int, int] | None = None

    def add(self, row: SliceRow) -> None:
        """Count one more slice."""
        place = self.slices
        self.slices += 1
        self.quarantined += row.status == "quarantined"
        if not row.has_mask:
            return
        self.with_mask += 1
        self.voxels += row.mask_pixels or 0
        x, y = row.bbox_x or 0, row.bbox_y or 0
        right, bottom = x + (row.bbox_w or 0), y + (row.bbox_h or 0)
        left, top, first, rightmost, lowest, _ = self.box or (x, y, place, right, bottom, place)
        self.box = (min(left, x), min(top, y), first, max(rightmost, right), max(lowest, bottom), place + 1)

    def row(
        self,
        volume: str,
        *,
        components: int,
        largest: int,
        voxel_ml: float | None,
        mask_path: str | None,
        note: str,
    ) -> VolumeRow:
        """The volume's row, once all slices are counted; `largest` is in voxels of `voxel_ml` millilitres."""
        x, y, z, right, bottom, last = self.box or (0,) * 6
        return VolumeRow(
            volume=volume,
            slices=self.slices,
            quarantined=self.quarantined,
            with_mask=self.with_mask,
            voxels=self.voxels,
            ml=_ml(self.voxels, voxel_ml),
            components=components,
            largest_voxels=largest,
            largest_ml=_ml(largest, voxel_ml),
            bbox_x=x,
            bbox_y=y,
            bbox_z=z,
            bbox_w=right - x,
            bbox_h=bottom - y,
            bbox_d=last - z,
            mask_path=mask_path,
            note=note or None,
        )


def _ml(voxels: int, voxel_ml: float | None) -> float | None:
    """Nothing is 0 ml, however large a voxel is."""
    return 0.0 if voxels == 0 else None if voxel_ml is None else voxels * voxel_ml


def write_volumes(rows: Iterable[VolumeRow], out: Path) -> None:
    """Write `out`/volumes.csv, a line for each of `rows` as it comes. MachineError where it cannot be."""
    try:
        with replacing(out / "volumes.csv", durable=True) as file:
            file.write(line(VOLUME_COLUMNS))
            for row in rows:
                file.write(line(astuple(row)))
    except OSError as error:
        raise cannot_write(out, error) from error
