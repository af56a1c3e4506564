"""Slices of volumes, as a decode worker reads them: the volume that was read last stays open.

What a worker holds is bounded: one file of at most `MAX_FILE_BYTES` that has several slices, or a byte a
voxel of one volume (three where sequences are combined); while a volume is opened, its voxels as they are
stored too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from engine.errors import SliceError
from engine.sources import dicom
from engine.sources.dicom_pixels import Pixels
from engine.sources.entries import SourceFile
from engine.sources.files import Content, read_content, read_file
from engine.sources.geometry import fit
from engine.sources.headers import refused
from engine.sources.nifti import read_nifti
from engine.sources.planes import (
    Image,
    Lookup,
    Reals,
    dicom_sequence,
    dicom_to_world,
    dicom_window,
    nifti_images,
    nifti_sequence,
)
from engine.sources.read import decode_slice
from engine.sources.tiff import page_directories, read_tiff
from engine.sources.volumes import CHANNELS, Channel, Source, Window, check_volume_bytes, understood
from engine.sources.windows import Tally, apply

_WHOLE_FILE: Final = -1
"""Stands for every frame of a file that cannot be read."""


class Watch(Protocol):
    """Hears what a reader is at, so that it can be told when it hangs or dies there."""

    def opens(self) -> None:
        """A volume, or another file of it: what goes wrong now is the whole volume's fault."""

    def reads(self) -> None:
        """The slice's own file."""

    def decodes(self) -> None:
        """The slice's pixels, all of whose file was read."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A slice in 0..255, [h,w] or [h,w,3] RGB, and its file's bytes and time (nanoseconds) when read."""

    pixels: Image
    size: int
    mtime_ns: int

    def put(self, out: Image) -> tuple[int, int]:
        """Write the slice into `out` [256,256,3], as `decode_slice` does; return its height and width."""
        pixels = self.pixels
        fit(pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, np.newaxis], 3, axis=2), out)
        height, width = pixels.shape[:2]
        return height, width


class _Open(Protocol):
    def piece(self, path: bytes, number: int, /) -> Piece: ...


class _Unwatched:
    def opens(self) -> None: ...

    def reads(self) -> None: ...

    def decodes(self) -> None: ...


class VolumeReader:
    """Reads slices of volumes one after the other. Raises SliceError: what is wrong with slice or volume."""

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch = watch or _Unwatched()
        self._recipe = ""
        self._volume: _Open | SliceError | None = None

    def decode(self, file: SourceFile, out: Image) -> tuple[int, int]:
        """Any slice, a picture too, into `out` [256,256,3]; return its height and width."""
        if file.source is None:
            return decode_slice(read_file(file.path), out)
        return self.read(file.source.recipe, file.path, file.slice).put(out)

    def read(self, recipe: str, path: bytes, number: int) -> Piece:
        """Slice `number` of the file at `path`, which belongs to the volume of `recipe`."""
        if recipe != self._recipe or self._volume is None:
            self._volume = None  # its memory may be needed
            self._recipe = recipe
            self._watch.opens()
            try:
                self._volume = _open(understood(recipe), self._watch)
            except SliceError as error:
                self._volume = error
        if isinstance(self._volume, SliceError):
            # A new one: what is raised again would gather tracebacks.
            raise SliceError(self._volume.failure)
        return self._volume.piece(path, number)


def _open(sources: tuple[Source | None, ...], watch: Watch) -> _Open:
    if len(sources) > 1:
        return _Combined.open(sources, watch)
    (source,) = sources
    assert source is not None
    if source.kind == "pages":
        return _Pages.open(source.paths[0])
    return _Planes.open(source.paths[0]) if source.kind == "nifti" else _Series(source, watch)


@dataclass(frozen=True, slots=True)
class _Pages:
    """A TIFF of several pages. Those of 8 bits are taken as they are, the others share a window."""

    content: Content
    directories: list[int]
    window: Window | None

    @classmethod
    def open(cls, path: bytes) -> _Pages:
        content = _whole(path)
        directories = page_directories(content.data)
        tally = Tally()
        for directory in directories:
            try:
                image = read_tiff(content.data, directory)
            except SliceError:
                continue  # that page's own fault, told when its turn comes
            if image.dtype != np.uint8:
                tally.add(image)
        return cls(content, directories, tally.window())

    def piece(self, _path: bytes, number: int, /) -> Piece:
        if number >= len(self.directories):
            raise refused("decode", f"it has no page {number}: it changed since it was found")
        image = read_tiff(self.content.data, self.directories[number])
        if image.dtype != np.uint8:
            image = np.zeros(image.shape, np.uint8) if self.window is None else apply(self.window, image)
        return Piece(image, len(self.content.data), self.content.mtime_ns)


@dataclass(frozen=True, slots=True)
class _Planes:
    """A NIfTI file."""

    images: list[Image]
    size: int
    mtime_ns: int

    @classmethod
    def open(cls, path: bytes) -> _Planes:
        content = _whole(path)
        return cls(nifti_images(read_nifti(content.data)), len(content.data), content.mtime_ns)

    def piece(self, _path: bytes, number: int, /) -> Piece:
        if number >= len(self.images):
            raise refused("decode", f"it has no slice {number}: it changed since it was found")
        return Piece(self.images[number], self.size, self.mtime_ns)


class _Series:
    """A DICOM series: its window stays, and of its files the last one if it has several frames."""

    def __init__(self, source: Source, watch: Watch) -> None:
        self._watch = watch
        self._window = source.window or dicom_window(_readable(source.paths, watch))
        self._last: tuple[bytes, Content, Pixels] | None = None

    def piece(self, path: bytes, number: int) -> Piece:
        self._watch.reads()
        if self._last is None or self._last[0] != path:
            self._last = None
            content, pixels = _dicom(path)
            self._last = (path, content, pixels)
        _, content, pixels = self._last
        self._watch.decodes()
        image = pixels.image(number, self._window)
        if len(pixels.header.frames) == 1:
            self._last = None
        return Piece(image, len(content.data), content.mtime_ns)


class _Combined:
    """Sequences of a patient as the three channels of the slices of FLAIR; one that is missing is FLAIR."""

    def __init__(self, pieces: dict[tuple[bytes, int], Piece | SliceError]) -> None:
        self._pieces = pieces

    @classmethod
    def open(cls, sources: tuple[Source | None, ...], watch: Watch) -> _Combined:
        named = dict(zip(CHANNELS, sources, strict=True))
        flair = named["flair"]
        assert flair is not None
        others = [_lookup(channel, named[channel], watch) for channel in ("t1", "t1c")]
        return cls({key: _combine(found, others) for key, found in _slices(flair, watch)})

    def piece(self, path: bytes, number: int) -> Piece:
        found = self._pieces.get((path, number)) or self._pieces.get((path, _WHOLE_FILE))
        if found is None:
            raise refused("decode", f"it has no slice {number}: it changed since it was found")
        if isinstance(found, SliceError):
            raise SliceError(found.failure)
        return found


@dataclass(frozen=True, slots=True)
class _Slice:
    """A slice of FLAIR, and where it lies: see `Lookup.look_up`."""

    piece: Piece
    to_world: Reals


def _combine(flair: _Slice | SliceError, others: list[Lookup | None]) -> Piece | SliceError:
    if isinstance(flair, SliceError):
        return flair
    middle = flair.piece.pixels
    before, after = (
        middle if other is None else other.look_up(flair.to_world, *middle.shape) for other in others
    )
    return Piece(np.stack([before, middle, after], axis=-1), flair.piece.size, flair.piece.mtime_ns)


def _slices(flair: Source, watch: Watch) -> Iterator[tuple[tuple[bytes, int], _Slice | SliceError]]:
    """The slices of FLAIR by path and number."""
    if flair.kind == "nifti":
        (path,) = flair.paths
        content = _whole(path)
        volume = read_nifti(content.data)
        for number, image in enumerate(nifti_images(volume)):
            piece = Piece(image, len(content.data), content.mtime_ns)
            yield (path, number), _Slice(piece, volume.grid.to_world(number))
        return
    shared = flair.window or dicom_window(_readable(flair.paths, watch))
    for path in flair.paths:
        watch.opens()
        try:
            content, pixels = _dicom(path)
        except SliceError as error:
            yield (path, _WHOLE_FILE), error
            continue
        for number, frame in enumerate(pixels.header.frames):
            try:
                image = pixels.image(number, shared)
                if image.ndim == 3:
                    raise refused("channels", "a slice in colours: sequences of one channel are combined")
                piece = Piece(image, len(content.data), content.mtime_ns)
                yield (path, number), _Slice(piece, dicom_to_world(frame))
            except SliceError as error:
                yield (path, number), error


def _lookup(channel: Channel, source: Source | None, watch: Watch) -> Lookup | None:
    """A sequence that FLAIR's slices are looked up in. What is wrong with it names the channel."""
    if source is None:
        return None
    try:
        if source.kind == "nifti":
            return nifti_sequence(read_nifti(_whole(source.paths[0]).data))
        shared = source.window or dicom_window(_readable(source.paths, watch))
        values, places = [], []
        for path in source.paths:
            watch.opens()
            _, pixels = _dicom(path)
            for number, frame in enumerate(pixels.header.frames):
                values.append(pixels.values(number).astype(np.float32))
                places.append(dicom_to_world(frame))
        return dicom_sequence(values, places, shared)
    except SliceError as error:
        failure = error.failure
        raise SliceError(replace(failure, message=f"{channel}: {failure.message}")) from None


def _readable(paths: Sequence[bytes], watch: Watch) -> Iterator[Pixels]:
    """The files that a window is taken of: damaged ones do not count, but one that may yet be read must."""
    for path in paths:
        watch.opens()
        try:
            yield _dicom(path)[1]
        except SliceError as error:
            if error.failure.transient:
                raise


def _dicom(path: bytes) -> tuple[Content, Pixels]:
    content = _whole(path)
    believed = not content.data[dicom.MAGIC_AT :].startswith(dicom.MAGIC)
    return content, Pixels.of(dicom.parse(io.BytesIO(content.data), force=believed, pixels=True))


def _whole(path: bytes) -> Content:
    content = read_content(path)
    check_volume_bytes(len(content.data))
    return content
