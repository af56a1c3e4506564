"""Masks as PNG files, and how every file of a run is written: whole, or not at all."""

from __future__ import annotations

import errno
import itertools
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import cv2
import numpy as np
import numpy.typing as npt

_PROCESS: Final = secrets.token_hex(4)  # tells apart processes of one number on two hosts that share a folder
_numbers = itertools.count()  # drawing the next one is atomic, so threads never share a name
_TEMPORARY: Final = re.compile(r"\.tumorscan-[0-9a-f]{8}-\d+-\d+\.tmp")


def write_mask(path: bytes, mask: npt.NDArray[np.uint8]) -> None:
    """Write `mask` (`[h,w] uint8` of 0/1) as a PNG of 0/255, making its folders.

    Raises OSError; its `errno` tells a full disk (ENOSPC, EDQUOT) from a name that is too long.
    """
    write_png(path, mask * np.uint8(255))


def box(mask: npt.NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """The smallest box (x, y, width, height; pixels) around all that is not 0 in `mask` `[h,w]`, or zeros."""
    x, y, width, height = cv2.boundingRect(mask)
    return x, y, width, height


def write_png(path: bytes, image: npt.NDArray[np.uint8]) -> None:
    """Write `image` (uint8, `[h,w]` or BGR `[h,w,3]`) as PNG at OpenCV's level: naming one is 4 times slower.

    Not flushed to the disk, which would take longer than scoring does: after a power cut, unlike after a
    kill, the last few seconds' files may be short. Raises OSError.
    """
    encoded, data = cv2.imencode(".png", image)
    if not encoded:
        raise OSError(errno.EIO, "OpenCV cannot encode this image as PNG", os.fsdecode(path))
    with replacing(Path(os.fsdecode(path))) as file:
        file.write(data.data)


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Give a new file that takes the place of `path` when the block ends, or vanishes when it raises.

    It lies beside `path` under a name of its own, so the rename is atomic and nobody reads half a file.
    Missing folders are made. `durable` flushes it to the disk before the rename. Raises OSError.
    """
    temporary = path.with_name(f".tumorscan-{_PROCESS}-{os.getpid()}-{next(_numbers)}.tmp")
    file = _create(temporary)
    try:
        with file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def clean_stale(out: Path) -> int:
    """Delete the temporary files that killed runs left below `out`; returns how many.

    Only for the holder of the run's lock, before its first write. Lists every folder below `out`, so it is
    for continuations. Links to folders are not followed. Raises OSError when a file cannot be deleted.
    """
    stale = [
        Path(folder, name)
        for folder, _, names in os.walk(out)
        for name in names
        if _TEMPORARY.fullmatch(name)
    ]
    for path in stale:
        path.unlink()
    return len(stale)


def _create(path: Path) -> BinaryIO:
    """Open a new file. Its folder is made only when it is missing, which spares a look at it every time."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
