"""What a walk over the input finds: slices, and what cannot be one."""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH118, PTH120

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from engine.errors import Failure
from engine.sources.files import time_of
from engine.sources.volumes import Volume, alone
from engine.text import FORMULA_STARTS, shown


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A slice to score: a file, or slice number `slice` of a file that has several.

    `path` is what open() takes; `image_path` the INPUT as typed plus the path below it, as text that is safe
    in a table; `volume` its folder, series or file; `mask_stem` where its masks go below masks/, without the
    ending; `order` sorts (as bytes) in the order of discovery and is unique to a file within a run; `size` is
    in bytes. `source` is None of a file that stands by itself: a picture.
    """

    path: bytes
    image_path: str
    volume: str
    mask_stem: bytes
    order: bytes
    size: int
    mtime_ns: int
    slice: int = 0
    source: Volume | None = None


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A folder or a file that could not be looked at, or is not what its name says.

    `file` is the slice, where one was found, whose file could not be had afterwards.
    """

    image_path: str
    order: bytes
    failure: Failure
    file: SourceFile | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A path on its way: as it is opened, as it is shown, where its masks go, where it sorts.

    `named` ones were typed, or stand in a list.
    """

    path: bytes
    shown: bytes
    stem: bytes
    order: bytes
    named: bool

    def below(self, keyed_names: Iterable[tuple[bytes, bytes]]) -> Iterator[Entry]:
        """What is called so in this folder; names come with their keys (see `natural_key`)."""
        path, shown_as, stem = (os.path.join(each, b"") for each in (self.path, self.shown, self.stem))
        order = self.order
        for key, name in keyed_names:
            yield Entry(path + name, shown_as + name, stem + name, order + key, named=False)

    @property
    def folder(self) -> str:
        """The folder it lies in, as text for a table."""
        return os.path.dirname(safe_text(self.shown)) or "."

    def file(self, status: os.stat_result) -> SourceFile:
        """The slice that this file is."""
        image_path = safe_text(self.shown)
        return SourceFile(
            path=self.path,
            image_path=image_path,
            volume=os.path.dirname(image_path) or ".",
            mask_stem=self.stem,
            order=self.order,
            size=status.st_size,
            mtime_ns=time_of(status),
        )

    def refused(self, failure: Failure) -> Unlisted:
        """Its row in quarantine."""
        return Unlisted(safe_text(self.shown), self.order, failure)


def safe_text(path: bytes) -> str:
    """`path` as text that opens where it can, and that no spreadsheet takes for a formula."""
    text = shown(path)
    return f"./{text}" if text.startswith(FORMULA_STARTS) else text


def numbered_stem(stem: bytes, number: int) -> bytes:
    """Where the masks of slice `number` go, of a file whose own would go to `stem`."""
    return b"%s/%03d" % (stem, number)


def numbered(file: SourceFile, count: int, source: Volume) -> list[SourceFile]:
    """A file as the `count` slices of a volume that is named after it."""
    return [
        replace(
            file,
            volume=file.image_path,
            mask_stem=numbered_stem(file.mask_stem, number),
            slice=number,
            source=source,
        )
        for number in range(count)
    ]


def pages_of(file: SourceFile, count: int) -> list[SourceFile]:
    """The slices of a picture that turned out to have `count` pages."""
    return numbered(file, count, alone("pages", file.path))
