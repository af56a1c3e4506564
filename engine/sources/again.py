"""Slices that were found once, read again by what a table says of them: the file, and the slice's number."""

from __future__ import annotations

import os
import threading

import numpy as np
import numpy.typing as npt

from engine.errors import Failure, SliceError
from engine.sources.entries import Entry
from engine.sources.files import io_failure, read_file
from engine.sources.folders import kind_of, list_folder
from engine.sources.read import decode_slice
from engine.sources.reader import VolumeReader
from engine.sources.series import is_dicom, sort_series
from engine.sources.volumes import alone, recipe


class Again:
    """Reads slices in any order; those of one volume best after each other. Threads take turns at volumes."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._reader = VolumeReader()
        self._folder: bytes | None = None
        self._series: dict[bytes, str] = {}

    def decode(self, path: bytes, number: int, out: npt.NDArray[np.uint8]) -> tuple[int, int]:
        """Slice `number` of a file into `out` [256,256,3]; return its height and width. Raises SliceError.

        A DICOM file is shown with the window of its series, if the series is still there.
        """
        kind = kind_of(path)
        if kind == "nifti":
            return self._read(alone("nifti", path).recipe, path, number, out)
        if kind == "dicom" or (kind != "picture" and is_dicom(path)):
            with self._turn:
                told = self._told(path)
            return self._read(told, path, number, out)
        try:
            return decode_slice(read_file(path), out)
        except SliceError as error:
            if error.failure.code != "multi_page":
                raise
        return self._read(alone("pages", path).recipe, path, number, out)

    def _read(self, told: str, path: bytes, number: int, out: npt.NDArray[np.uint8]) -> tuple[int, int]:
        with self._turn:
            return self._reader.read(told, path, number).put(out)

    def _told(self, path: bytes) -> str:
        folder = os.path.dirname(path)  # noqa: PTH120 - bytes
        if folder != self._folder:
            try:
                names = list_folder(folder or b".").dicoms
            except OSError as error:
                raise SliceError(io_failure("read", error)) from None
            series, _, _ = sort_series(b"", Entry(folder, folder, b"", b"", named=False).below(names))
            told = {each: recipe([each.source]) for each in series}
            self._series = {file.entry.path: text for each, text in told.items() for file in each.files}
            self._folder = folder
        found = self._series.get(path)
        if found is None:
            raise SliceError(Failure("read", "not_found", "its series is not there any more", transient=True))
        return found
