"""A scored block becomes files and rows."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypedDict

import cv2
import numpy as np
import numpy.typing as npt

from engine.cascade import Scores
from engine.disk import cannot_write, patiently
from engine.errors import Failure
from engine.ledger import SliceRow
from engine.outputs.masks import box, write_mask, write_png
from engine.outputs.overlays import write_overlay
from engine.outputs.pseudonyms import Pseudonyms
from engine.outputs.rle import encode
from engine.ring import DecodedBlock, DecodedSlice
from engine.sources.discovery import SourceFile, Unlisted
from engine.sources.geometry import place, restore_mask
from engine.text import shown

Folder = Literal["masks", "overlays", "probabilities"]

_SUFFIXES: Final[Mapping[Folder, bytes]] = MappingProxyType(
    {"masks": b"_mask.png", "overlays": b"_overlay.png", "probabilities": b"_probability.png"}
)
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR)
"""The output's file system refuses this one name; others will do."""


@dataclass(frozen=True, slots=True)
class RowWriter:
    """Writes masks, probabilities and overlays below `out` before it gives the rows that speak of them.

    Rows hold the mask itself too, as run lengths. `tidy`: `out` may hold files of an earlier call that was
    killed before it could say so in a row; a slice that has no mask now (it was mended since, or is damaged)
    keeps none. With `pseudonyms` they name the files. A name of more than `longest` bytes is none that can be
    written.
    """

    out: Path
    masks: bool
    overlays: bool
    probabilities: bool = False
    tidy: bool = False
    pseudonyms: Pseudonyms | None = None
    longest: int | None = None

    def write_block(self, block: DecodedBlock, scores: Scores) -> list[SliceRow]:
        """Rows of all slices of a block. Raises MachineError when the output cannot be written at all."""
        rows = []
        for position, piece in enumerate(block.slices):
            if piece.pages:
                continue  # they have rows of their own
            row = self._row(block, scores, position)
            if self.tidy:
                self._remove_files(piece, row)
            rows.append(row)
        return rows

    def unlisted_row(self, entry: Unlisted) -> SliceRow:
        """The row of a folder or file that discovery could not look into, or of a slice not to be had."""
        if (file := entry.file) is not None:
            return _quarantined_slice(file, file.slice, entry.failure)
        volume = os.path.dirname(entry.image_path) or "."  # noqa: PTH120 - the text, as discovery cuts it
        return _quarantined(entry.order, entry.image_path, volume, 0, 0, 0, entry.failure)

    def _row(self, block: DecodedBlock, scores: Scores, position: int) -> SliceRow:
        piece = block.slices[position]
        if piece.failure is not None:
            return _quarantined_slice(piece.file, piece.index, piece.failure)
        mask, probabilities = (
            None if found is None else restore_mask(found, piece.height, piece.width)
            for found in (scores.masks.get(position), scores.probabilities.get(position))
        )
        try:
            patiently(partial(self._write_files, piece, block.images[position], mask, probabilities))
        except OSError as error:
            if error.errno not in _NAME_ERRORS:
                raise cannot_write(self.out, error) from error
            reason = f"its mask cannot be written under this name ({error.strerror}); shorten or change it"
            return _quarantined_slice(piece.file, piece.index, Failure("write", "name", reason))
        shows_probabilities = probabilities is not None and self.probabilities
        return self._scored(piece, float(scores.tumor_probability[position]), mask, shows_probabilities)

    def _scored(
        self,
        piece: DecodedSlice,
        probability: float,
        mask: npt.NDArray[np.uint8] | None,
        shows_probabilities: bool,
    ) -> SliceRow:
        file, stem = piece.file, self._stem(piece)
        has_file = mask is not None and self.masks
        return SliceRow(
            order=file.order,
            slice=piece.index,
            volume=file.volume,
            image_path=file.image_path,
            status="ok",
            size=file.size,
            mtime_ns=file.mtime_ns,
            tumor_probability=probability,
            stem=stem,
            mask_path=shown(name_of("masks", stem)) if has_file else "",
            probability_path=shown(name_of("probabilities", stem)) if shows_probabilities else "",
            **_of_mask(mask),
        )

    def _write_files(
        self,
        piece: DecodedSlice,
        image: npt.NDArray[np.uint8],
        mask: npt.NDArray[np.uint8] | None,
        probabilities: npt.NDArray[np.uint8] | None,
    ) -> None:
        # The longer names come first: one that fails leaves no mask behind.
        if probabilities is not None and self.probabilities:
            write_png(self._path(piece, "probabilities"), probabilities)
        if mask is not None and self.overlays:
            shown_slice = _at_source_size(image, piece.height, piece.width)
            write_overlay(self._path(piece, "overlays"), shown_slice, mask)
        if mask is not None and self.masks:
            write_mask(self._path(piece, "masks"), mask)

    def _remove_files(self, piece: DecodedSlice, row: SliceRow) -> None:
        """Delete those of an earlier call that `row` does not speak of."""
        of_masks: tuple[Folder, ...] = () if row.has_mask else ("masks", "overlays")
        of_probabilities: tuple[Folder, ...] = () if row.probability_path else ("probabilities",)
        for folder in (*of_masks, *of_probabilities):
            try:
                os.unlink(self._path(piece, folder))  # noqa: PTH108 - the name is bytes
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in _NAME_ERRORS:
                    raise cannot_write(self.out, error) from error

    def _path(self, piece: DecodedSlice, folder: Folder) -> bytes:
        name = name_of(folder, self._stem(piece))
        if self.longest is not None and len(shown(name).encode()) > self.longest:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return os.fsencode(self.out) + b"/" + name

    def _stem(self, piece: DecodedSlice) -> bytes:
        stem = piece.file.mask_stem
        if self.pseudonyms is None:
            return stem
        page = b"/%03d" % piece.index  # see sources.entries.numbered_stem
        if stem.endswith(page):
            return self.pseudonyms.of_stem(stem.removesuffix(page)) + page
        return self.pseudonyms.of_stem(stem)


def with_mask(row: SliceRow, mask: npt.NDArray[np.uint8] | None) -> SliceRow:
    """`row` of a scored slice with all that it says of its mask [h,w]; None where it has none."""
    return replace(row, mask_path=row.mask_path if mask is not None else "", **_of_mask(mask))


class _OfMask(TypedDict):
    has_mask: int
    mask_rle: str
    mask_pixels: int
    mask_fraction: float
    bbox_x: int
    bbox_y: int
    bbox_w: int
    bbox_h: int


_NO_MASK: Final = _OfMask(
    has_mask=0, mask_rle="", mask_pixels=0, mask_fraction=0.0, bbox_x=0, bbox_y=0, bbox_w=0, bbox_h=0
)


def _of_mask(mask: npt.NDArray[np.uint8] | None) -> _OfMask:
    if mask is None:
        return _NO_MASK
    x, y, width, height = box(mask)
    pixels = int(np.count_nonzero(mask))
    return _OfMask(
        has_mask=1, mask_rle=encode(mask), mask_pixels=pixels, mask_fraction=pixels / mask.size,
        bbox_x=x, bbox_y=y, bbox_w=width, bbox_h=height,
    )  # fmt: skip


def name_of(folder: Folder, stem: bytes) -> bytes:
    """Where what is kept in `folder` of the slice with this `stem` lies, below the run's output."""
    return folder.encode() + b"/" + stem + _SUFFIXES[folder]


def _at_source_size(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """What the models saw, without its padding, at the source's size: the slice is not read again."""
    size = image.shape[0]
    if (height, width) == (size, size):
        return image
    spot = place(height, width, size)
    inner = image[spot.top : spot.top + spot.height, spot.left : spot.left + spot.width]
    return cv2.resize(inner, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)


def _quarantined_slice(file: SourceFile, index: int, failure: Failure) -> SliceRow:
    return _quarantined(file.order, file.image_path, file.volume, index, file.size, file.mtime_ns, failure)


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
