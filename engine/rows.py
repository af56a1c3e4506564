"""A scored block becomes files and rows."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from engine.cascade import Scores
from engine.disk import cannot_write, patiently
from engine.errors import Failure
from engine.ledger import SliceRow
from engine.outputs.masks import box, write_mask
from engine.outputs.overlays import write_overlay
from engine.ring import DecodedBlock, DecodedSlice
from engine.sources.discovery import Unlisted
from engine.sources.geometry import place, restore_mask
from engine.text import shown

MASK_SUFFIX = b"_mask.png"
OVERLAY_SUFFIX = b"_overlay.png"
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR)
"""The output's file system refuses this one name; others will do."""


@dataclass(frozen=True, slots=True)
class RowWriter:
    """Writes masks and overlays below `out` before it gives the rows that speak of them.

    `tidy`: `out` may hold those of an earlier call that was killed before it could say so in a row; a slice
    that has no mask now (it was mended since, or is damaged) keeps none.
    """

    out: Path
    masks: bool
    overlays: bool
    tidy: bool = False

    def write_block(self, block: DecodedBlock, scores: Scores) -> list[SliceRow]:
        """Rows of all slices of a block. Raises MachineError when the output cannot be written at all."""
        rows = []
        for position, piece in enumerate(block.slices):
            row = self._row(block, scores, position)
            if self.tidy and not row.has_mask:
                self._remove_files(piece)
            rows.append(row)
        return rows

    def unlisted_row(self, entry: Unlisted) -> SliceRow:
        """The row of a folder or file that discovery could not look into."""
        volume = os.path.dirname(entry.image_path) or "."  # noqa: PTH120 - the text, as discovery cuts it
        return _quarantined(entry.order, entry.image_path, volume, 0, 0, 0, entry.failure)

    def _row(self, block: DecodedBlock, scores: Scores, position: int) -> SliceRow:
        piece = block.slices[position]
        if piece.failure is not None:
            return _quarantined_slice(piece, piece.failure)
        mask = None
        if scores.has_mask[position]:
            mask = restore_mask(scores.masks[position], piece.height, piece.width)
            try:
                patiently(partial(self._write_files, piece, block.images[position], mask))
            except OSError as error:
                if error.errno not in _NAME_ERRORS:
                    raise cannot_write(self.out, error) from error
                reason = (
                    f"its mask cannot be written under this name ({error.strerror}); shorten or change it"
                )
                return _quarantined_slice(piece, Failure("write", "name", reason))
        return self._scored(piece, float(scores.tumor_probability[position]), mask)

    def _scored(
        self, piece: DecodedSlice, probability: float, mask: npt.NDArray[np.uint8] | None
    ) -> SliceRow:
        pixels = 0 if mask is None else int(np.count_nonzero(mask))
        x, y, width, height = (0, 0, 0, 0) if mask is None else box(mask)
        file = piece.file
        return SliceRow(
            order=file.order,
            slice=piece.index,
            volume=file.volume,
            image_path=file.image_path,
            status="ok",
            size=file.size,
            mtime_ns=file.mtime_ns,
            tumor_probability=probability,
            has_mask=int(mask is not None),
            mask_path="" if mask is None or not self.masks else shown(self._mask_name(piece)),
            mask_pixels=pixels,
            mask_fraction=pixels / (piece.height * piece.width),
            bbox_x=x,
            bbox_y=y,
            bbox_w=width,
            bbox_h=height,
        )

    def _write_files(
        self, piece: DecodedSlice, image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]
    ) -> None:
        # The overlay, whose name is the longer one, comes first: a name that fails leaves no mask behind.
        top = os.fsencode(self.out)
        if self.overlays:
            name = b"overlays/" + piece.file.mask_stem + OVERLAY_SUFFIX
            write_overlay(top + b"/" + name, _at_source_size(image, piece.height, piece.width), mask)
        if self.masks:
            write_mask(top + b"/" + self._mask_name(piece), mask)

    def _remove_files(self, piece: DecodedSlice) -> None:
        stem = piece.file.mask_stem
        for name in (b"masks/" + stem + MASK_SUFFIX, b"overlays/" + stem + OVERLAY_SUFFIX):
            try:
                os.unlink(os.fsencode(self.out) + b"/" + name)  # noqa: PTH108 - the name is bytes
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in _NAME_ERRORS:
                    raise cannot_write(self.out, error) from error

    @staticmethod
    def _mask_name(piece: DecodedSlice) -> bytes:
        return b"masks/" + piece.file.mask_stem + MASK_SUFFIX


def _at_source_size(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """What the models saw, without its padding, at the source's size: the slice is not read again."""
    size = image.shape[0]
    if (height, width) == (size, size):
        return image
    spot = place(height, width, size)
    inner = image[spot.top : spot.top + spot.height, spot.left : spot.left + spot.width]
    return cv2.resize(inner, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)


def _quarantined_slice(piece: DecodedSlice, failure: Failure) -> SliceRow:
    file = piece.file
    return _quarantined(
        file.order, file.image_path, file.volume, piece.index, file.size, file.mtime_ns, failure
    )


def _quarantined(
    order: bytes, image_path: str, volume: str, index: int, size: int, mtime_ns: int, failure: Failure
) -> SliceRow:
    return SliceRow(
        order=order,
        slice=index,
        volume=volume,
        image_path=image_path,
        status="quarantined",
        size=size,
        mtime_ns=mtime_ns,
        stage=failure.stage,
        code=failure.code,
        message=failure.message,
        transient=failure.transient,
    )
