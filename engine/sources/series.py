"""The slices of volumes: NIfTI files, and the DICOM files of a folder, sorted into series.

A slice's place in the run follows from its own file alone, so that files which come later sort in between.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import BinaryIO, Final

from engine.errors import Failure, SliceError, UsageError
from engine.sources import dicom
from engine.sources.entries import Entry, SourceFile, Unlisted, numbered, numbered_stem, safe_text
from engine.sources.files import NOT_A_FILE, io_failure, time_of
from engine.sources.volumes import Source, Volume, alone, fingerprint, recipe

_BEFORE_NAMES: Final = b"\0"
"""No name has it, so that a folder's series come before its files and folders."""
_AFTER_SERIES: Final = b"\xff" * 16
_SERIES_BYTES: Final = 16
START_BYTES: Final = 8192
"""Of a file: enough of a packed NIfTI one for the longest header."""

Start = Callable[[bytes, int], bytes]
"""Gives the first bytes of the file at a path or an address, so many of them."""


@dataclass(frozen=True, slots=True)
class DicomFile:
    """A DICOM file of a folder, looked at."""

    entry: Entry
    size: int
    mtime_ns: int
    header: dicom.Header


@dataclass(frozen=True, slots=True)
class Series:
    """Files of one series in one folder, in order. `order` is what the orders of all begin with."""

    order: bytes
    volume: str
    files: tuple[DicomFile, ...]

    @property
    def source(self) -> Source:
        """How its voxels are read."""
        windows = {file.header.window for file in self.files}
        window = windows.pop() if len(windows) == 1 else None
        return Source("dicom", tuple(file.entry.path for file in self.files), window)

    @property
    def made_of(self) -> object:
        """What its window hangs on: the value it gives, or every file that it is taken of."""
        window = self.source.window
        return self.files_made_of if window is None else (window.low, window.high)

    @property
    def files_made_of(self) -> object:
        """What stands for all that its files hold."""
        return tuple((file.entry.stem, file.size, file.mtime_ns) for file in self.files)

    def slices(self, whole: Volume) -> list[SourceFile]:
        """Its slices, read as `whole` says."""
        found = []
        for file in self.files:
            several = len(file.header.frames) > 1
            for frame in range(len(file.header.frames)):
                slice_ = SourceFile(
                    path=file.entry.path,
                    image_path=safe_text(file.entry.shown),
                    volume=self.volume,
                    mask_stem=numbered_stem(file.entry.stem, frame) if several else file.entry.stem,
                    order=file.entry.order,
                    size=file.size,
                    mtime_ns=file.mtime_ns,
                    slice=frame,
                    source=whole,
                )
                found.append(slice_)
        return found

    def by_itself(self) -> list[SourceFile]:
        """Its slices, of one channel."""
        return self.slices(Volume(recipe([self.source]), self.order, fingerprint(self.made_of)))


def sort_series(folder: bytes, entries: Iterable[Entry]) -> tuple[list[Series], list[Unlisted], int]:
    """The DICOM files of a folder (whose order is `folder`) as series; those refused; how many are no slices.

    All of them sort before the folder's other entries.
    """
    grouped: dict[bytes, list[DicomFile]] = {}
    refused: list[Unlisted] = []
    passed_over = 0
    for entry in entries:
        name_key = entry.order.removeprefix(folder)
        try:
            file = look(entry)
        except dicom.NoSliceError:
            passed_over += 1
        except (SliceError, OSError) as error:
            failure = error.failure if isinstance(error, SliceError) else io_failure("discover", error)
            order = folder + _BEFORE_NAMES + _AFTER_SERIES + name_key
            refused.append(replace(entry, order=order).refused(failure))
        else:
            order = folder + _BEFORE_NAMES + file.header.key
            placed = replace(file, entry=replace(entry, order=order + name_key))
            grouped.setdefault(order[: len(folder) + 1 + _SERIES_BYTES], []).append(placed)
    series = [_series(order, files) for order, files in sorted(grouped.items())]
    return series, sorted(refused, key=lambda each: each.order), passed_over


def single(entry: Entry) -> list[SourceFile | Unlisted]:
    """The slices of a DICOM file that was named: it stands alone. Raises NoSliceError for a DICOMDIR."""
    try:
        file = look(entry)
    except (SliceError, OSError) as error:
        failure = error.failure if isinstance(error, SliceError) else io_failure("discover", error)
        return [entry.refused(failure)]
    return [*_series(entry.order, [file]).by_itself()]


def look(entry: Entry) -> DicomFile:
    """Read a file's header. Raises SliceError, NoSliceError and OSError."""
    if find_spec("pydicom") is None:
        raise _needs_extra("DICOM")
    with _opened(entry.path) as file:
        status = os.fstat(file.fileno())
        believed = not file.read(dicom.MAGIC_AT + 4).endswith(dicom.MAGIC)
        file.seek(0)
        header = dicom.read_header(file, whatever_it_starts_with=believed)
    return DicomFile(entry, status.st_size, time_of(status), header)


def start_of(path: bytes, count: int) -> bytes:
    """The first bytes of a regular file, at most `count`. Raises SliceError `not_a_file`, and OSError."""
    with _opened(path) as file:
        return file.read(count)


def nifti_slices(
    entry: Entry, status: os.stat_result, start: Start = start_of
) -> list[SourceFile | Unlisted]:
    """The slices of a NIfTI file, one channel each."""
    try:
        count = nifti_count(entry.path, start)
    except (SliceError, OSError) as error:
        failure = error.failure if isinstance(error, SliceError) else io_failure("discover", error)
        return [entry.refused(failure)]
    return [*numbered(entry.file(status), count, alone("nifti", entry.path))]


def nifti_count(path: bytes, start: Start = start_of) -> int:
    """How many slices a NIfTI file has. Raises SliceError and OSError."""
    if find_spec("nibabel") is None:
        raise _needs_extra("NIfTI")
    from engine.sources.nifti import read_grid

    return read_grid(start(path, START_BYTES)).slices


def dicom_refused(path: bytes) -> UsageError:
    """The error of a DICOM file in an object store: a series' window is taken of all of its files."""
    return UsageError(
        f"{safe_text(path)}: DICOM files are scored from a disk only: copy them to one, or list the pictures "
        "and NIfTI files with --files-from"
    )


def is_dicom(path: bytes) -> bool:
    """Whether a file begins as DICOM files do. False for one that cannot be read."""
    try:
        with _opened(path) as file:
            return file.read(dicom.MAGIC_AT + 4).endswith(dicom.MAGIC)
    except (SliceError, OSError):
        return False


def _series(order: bytes, files: Sequence[DicomFile]) -> Series:
    first = min(files, key=lambda file: file.entry.order)
    folder = first.entry.folder
    volume = f"{folder}/{first.header.label}"
    return Series(order, volume, tuple(sorted(files, key=lambda file: file.entry.order)))


def _needs_extra(kind: str) -> SliceError:
    return SliceError(
        Failure("discover", "needs_medical", f"a {kind} file: pip install 'tumorscan[medical]'")
    )


@contextmanager
def _opened(path: bytes) -> Iterator[BinaryIO]:
    """A regular file. Raises SliceError `not_a_file`, and OSError."""
    # A pipe without a writer would block an ordinary open for ever.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SliceError(Failure("discover", "not_a_file", NOT_A_FILE))
        yield file
