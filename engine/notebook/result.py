"""One slice's outcome as Python code meets it: a row of the tables, with its mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import Failure

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from engine.ledger import SliceRow


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one slice. Pixels and boxes are at the slice's own size.

    Attributes:
        path: The file, as INPUT was given plus the path below it; None of an array. Bytes in a name that are
            no UTF-8 are written ``\\xHH``, and such a path does not open.
        index: Which of `images` it is, from 0; None of a file.
        slice: Which slice of the file, from 0: a page, plane or frame.
        volume: Folder, series or file that the slice belongs to; "" of an array.
        error: Why it could not be scored (`stage`, `code`, `message`); None where it was.
        tumor_probability: The classifier's, 0 to 1; None where it was not scored.
        has_mask: Whether it passed the gate and has a mask of at least the minimum of pixels.
        mask_pixels: Pixels of the mask; 0 without one.
        mask_fraction: Those pixels as a share of the slice, 0 to 1.
        box: The mask's bounding box `(x, y, width, height)`; None without a mask.
        mask_path: The mask as PNG, where one was written.
        probability_path: The pixels' probabilities as PNG, where they were written.
    """

    path: Path | None
    index: int | None
    slice: int
    volume: str
    error: Failure | None
    tumor_probability: float | None
    has_mask: bool
    mask_pixels: int
    mask_fraction: float
    box: tuple[int, int, int, int] | None
    mask_path: Path | None
    probability_path: Path | None
    _mask_rle: str = field(repr=False)

    @property
    def mask(self) -> npt.NDArray[np.uint8] | None:
        """The mask, `[h,w] uint8` of 0 and 1; None without one. Kept as run lengths: made anew each time."""
        if not self._mask_rle:
            return None
        from engine.outputs.rle import decode

        return decode(self._mask_rle)

    @classmethod
    def of_row(cls, row: SliceRow, out: Path | None, images: Path | None = None) -> Result:
        """The result that `row` tells of.

        `out` is the run's output, None where that is nobody's; `images` the folder of arrays (see
        `engine.notebook.arrays`).
        """
        path = Path(row.image_path)
        is_array = images is not None
        box = (row.bbox_x or 0, row.bbox_y or 0, row.bbox_w or 0, row.bbox_h or 0)
        return cls(
            path=None if is_array else path,
            index=int(path.stem) if is_array else None,
            slice=row.slice,
            volume="" if is_array else row.volume,
            error=Failure(row.stage, row.code, row.message, row.transient) if row.code else None,
            tumor_probability=row.tumor_probability,
            has_mask=row.has_mask == 1,
            mask_pixels=row.mask_pixels or 0,
            mask_fraction=row.mask_fraction or 0.0,
            box=box if row.has_mask else None,
            mask_path=out / row.mask_path if out is not None and row.mask_path else None,
            probability_path=out / row.probability_path if out is not None and row.probability_path else None,
            _mask_rle=row.mask_rle,
        )
