"""The files that a benchmark scores: chosen, linked into a tree of their own, warm or cold in the cache."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.results import Data
from engine.errors import UsageError
from engine.sources.discovery import Discovery, SourceFile

_LINKS_REFUSED = (errno.EXDEV, errno.EMLINK, errno.EPERM)
"""Another disk, too many links to one file, a file system without links: copied instead."""
_PHANTOM_SEED = 0


@dataclass(frozen=True, slots=True)
class WorkSet:
    """Files below `folder`, in the order in which tumorscan finds them."""

    name: str
    folder: Path
    files: tuple[Path, ...]

    @property
    def data(self) -> Data:
        return Data(
            name=self.name, files=len(self.files), bytes=sum(file.stat().st_size for file in self.files)
        )


def work_set(data: Path | None, count: int, folder: Path) -> WorkSet:
    """Link `count` files (fewer if there are no more), spread evenly over `data`, into the new `folder`.

    Without `data` phantoms are drawn: then speeds are as good as on real slices, but the share that passes
    the gate is not.
    """
    name = "phantoms" if data is None else data.resolve().name
    source = _draw(count, folder.with_name(f"{folder.name}-phantoms")) if data is None else data
    found = [entry for entry in Discovery((str(source),), None, None) if isinstance(entry, SourceFile)]
    if not found:
        raise UsageError(f"no slices in {source}: give a folder of real slices")
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(int))]
    files = []
    for entry in chosen:
        file = folder / os.fsdecode(entry.mask_stem)
        file.parent.mkdir(parents=True, exist_ok=True)
        _link(Path(os.fsdecode(entry.path)), file)
        files.append(file)
    return WorkSet(name, folder, tuple(files))


def replicate(files: Sequence[Path], folder: Path, count: int, per_folder: int) -> None:
    """Make `count` files of these by links, `per_folder` a folder, below the new `folder`."""
    originals = list(files)
    for first in range(0, count, per_folder):
        below = folder / f"volume_{first // per_folder:04d}"
        below.mkdir(parents=True)
        for number in range(first, min(first + per_folder, count)):
            place = number % len(originals)
            copy = below / f"slice_{number - first:07d}{originals[place].suffix}"
            if _link(originals[place], copy):
                originals[place] = copy  # whose links are counted anew


def warm(files: Sequence[Path]) -> None:
    """Read every file, so that the page cache holds it."""
    for file in files:
        file.read_bytes()


def chill(files: Sequence[Path]) -> None:
    """Have the kernel drop every file from the page cache; `cached` tells whether it did."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # pages that are not on the disk yet are kept
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached(files: Sequence[Path]) -> float:
    """The share of these files' pages that the page cache holds."""
    libc = ctypes.CDLL(None, use_errno=True)
    held = pages = 0
    for file in files:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            view = np.frombuffer(mapping, np.uint8)
            states = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
            address, size = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view))
            failed = libc.mincore(address, size, states.ctypes.data_as(ctypes.c_void_p))
            del view  # the mapping cannot be closed under it
            if failed:
                raise OSError(ctypes.get_errno(), "mincore", str(file))
            held += int((states & 1).sum())
            pages += len(states)
    return held / pages


def _link(source: Path, to: Path) -> bool:
    """Make `to` the same file, or a copy where that cannot be; whether it is a copy."""
    try:
        os.link(source, to)
    except OSError as error:
        if error.errno not in _LINKS_REFUSED:
            raise
        shutil.copyfile(source, to)
        return True
    return False


def _draw(count: int, folder: Path) -> Path:
    from trainer.phantoms import write_phantoms

    return write_phantoms(folder, count, _PHANTOM_SEED).root
