"""A scored block becomes files and rows."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from engine.outputs.drawing import NAME_ERRORS, Drawer, Drawn, DrawnHere, Found, drawn
from engine.outputs.masks import write_png
from engine.outputs.overlays import write_overlay
from engine.outputs.pseudonyms import Pseudonyms
from engine.ring import DecodedBlock, DecodedSlice
from engine.sources.discovery import SourceFile, Unlisted
from engine.sources.geometry import place, restore_mask
from engine.text import shown

Folder = Literal["masks", "overlays", "probabilities"]

_SUFFIXES: Final[Mapping[Folder, bytes]] = MappingProxyType(
    {"masks": b"_mask.png", "overlays": b"_overlay.png", "probabilities": b"_probability.png"}
)


@dataclass(frozen=True, slots=True)
class RowWriter:
    """Writes masks, probabilities and overlays below `out` before it gives the rows that speak of them.

    Rows hold the mask itself too, as run lengths. `tidy`: `out` may hold files of an earlier call that was
    killed before it could say so in a row; a slice that has no mask now (it was mended since, or is damaged)
    keeps none. With `pseudonyms` they name the files. A name of more than `longest` bytes is none that can be
    written. `drawer` makes masks into files and what rows say of them.
    """

    out: Path
    masks: bool
    overlays: bool
    probabilities: bool = False
    tidy: bool = False
    pseudonyms: Pseudonyms | None = None
    longest: int | None = None
    drawer: Drawer = field(default_factory=DrawnHere)

    def write_block(self, block: DecodedBlock, scores: Scores) -> list[SliceRow]:
        """Rows of all slices of a block. Raises MachineError when the output cannot be written at all."""
        try:
            drawn = self._write_files(block, scores)
        except OSError as error:
            raise cannot_write(self.out, error) from error
        rows = []
        for position, piece in enumerate(block.slices):
            if piece.pages:
                continue  # they have rows of their own
            row = self._row(piece, scores, position, drawn.get(position))
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

    def _write_files(self, block: DecodedBlock, scores: Scores) -> dict[int, Drawn | OSError]:
        """Write a block's files: what became of each mask, or the error of a slice's name, by position."""
        told: dict[int, Drawn | OSError] = {}
        found: dict[int, Found] = {}
        for position, piece in enumerate(block.slices):
            mask = scores.masks.get(position)
            try:
                # The longer names come first: one that fails leaves no mask behind.
                self._write_pictures(block, scores, position)
                if mask is not None:
                    path = self._path(piece, "masks") if self.masks else None
                    found[position] = Found(mask, piece.height, piece.width, path)
            except OSError as error:
                if error.errno not in NAME_ERRORS:
                    raise
                told[position] = error
        told.update(zip(found, self.drawer.draw(list(found.values())), strict=True))
        return told

    def _write_pictures(self, block: DecodedBlock, scores: Scores, position: int) -> None:
        """Write a slice's probabilities and overlay. Raises OSError."""
        piece = block.slices[position]
        probabilities, mask = scores.probabilities.get(position), scores.masks.get(position)
        if probabilities is not None and self.probabilities:
            shades = restore_mask(probabilities, piece.height, piece.width)
            patiently(partial(write_png, self._path(piece, "probabilities"), shades))
        if mask is not None and self.overlays:
            outlined = restore_mask(mask, piece.height, piece.width)
            image = _at_source_size(block.images[position], piece.height, piece.width)
            patiently(partial(write_overlay, self._path(piece, "overlays"), image, outlined))

    def _row(
        self, piece: DecodedSlice, scores: Scores, position: int, drawn: Drawn | OSError | None
    ) -> SliceRow:
        if piece.failure is not None:
            return _quarantined_slice(piece.file, piece.index, piece.failure)
        if isinstance(drawn, OSError):
            reason = f"its mask cannot be written under this name ({drawn.strerror}); shorten or change it"
            return _quarantined_slice(piece.file, piece.index, Failure("write", "name", reason))
        shows_probabilities = position in scores.probabilities and self.probabilities
        file, stem = piece.file, self._stem(piece)
        return SliceRow(
            order=file.order,
            slice=piece.index,
            volume=file.volume,
            image_path=file.image_path,
            status="ok",
            size=file.size,
            mtime_ns=file.mtime_ns,
            tumor_probability=float(scores.tumor_probability[position]),
            stem=stem,
            mask_path=shown(name_of("masks", stem)) if drawn is not None and self.masks else "",
            probability_path=shown(name_of("probabilities", stem)) if shows_probabilities else "",
            **_of_mask(drawn, piece.height * piece.width),
        )

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
                if error.errno not in NAME_ERRORS:
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
    if mask is None:
        return replace(row, mask_path="", **_of_mask(None, 0))
    return replace(row, **_of_mask(drawn(mask), mask.size))


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


def _of_mask(drawn: Drawn | None, size: int) -> _OfMask:
    """What a row says of a mask in a slice of `size` pixels."""
    if drawn is None:
        return _NO_MASK
    x, y, width, height = drawn.box
    return _OfMask(
        has_mask=1, mask_rle=drawn.rle, mask_pixels=drawn.pixels, mask_fraction=drawn.pixels / size,
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
