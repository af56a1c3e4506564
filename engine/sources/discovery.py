"""Finding the slices of a run: a stream of files in a fixed order, whatever the number of files.

One folder is listed and sorted at a time, so memory is bounded by the largest folder. Paths stay bytes: a
name need not be valid text.
"""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH112, PTH114, PTH116

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import cast

from engine.cloud.addresses import is_address, of_path
from engine.errors import Failure, UsageError
from engine.sources import endings
from engine.sources.channels import Patterns
from engine.sources.dicom import NoSliceError
from engine.sources.entries import Entry, SourceFile, Unlisted, safe_text
from engine.sources.files import NOT_A_FILE, io_failure
from engine.sources.folders import Far, Kind, Listing, kind_of, list_folder, natural_key
from engine.sources.looking import Looking
from engine.sources.named import input_entries, list_entries, place_of, refuse_overlap, typed_path
from engine.sources.patients import Patients
from engine.sources.series import dicom_refused, is_dicom, nifti_slices, single, sort_series
from engine.sources.shards import Dealt, FolderPart, Seen
from engine.sources.stretches import Stretch, stretches

__all__ = ["ENDINGS", "Discovery", "SourceFile", "Unlisted", "natural_key"]

ENDINGS = endings.PICTURES
"""Of files that are a slice by themselves."""

Found = Entry | SourceFile | Unlisted | Stretch


class Discovery:
    """Iterates over the slices below `inputs`, or below the paths in `files_from`, depth first.

    Files and folders of one folder are sorted together, numbers in names by value; its DICOM files come
    first, sorted into series. In folders, files that are no picture (.tif .tiff .png .jpg .jpeg .webp), NIfTI
    (.nii .nii.gz) or DICOM file (.dcm .dicom .ima, or without an ending), DICOMDIRs and everything hidden (a
    leading dot) are skipped and counted in `skipped_other`; files named *_mask.* are skipped and counted in
    `skipped_masks`. A file that is named directly is always taken. Links are followed; a loop of them is
    reported once, as an Unlisted. A file that is reached through two INPUTs is scored twice, with a row for
    each name.

    With `channels` the sequences of a patient in NIfTI or DICOM become the channels of one another's slices
    (see patients.py), and other sequences are skipped and counted.

    Masks of one INPUT folder mirror what is below it; of several, each INPUT has its own folder, named after
    it and numbered where names repeat. Listed paths are mirrored whole, without a leading / and with ..
    written _up; where a list mixes absolute and relative paths, those of the kind that came second go below
    _root or _here, and a folder that has such a name itself gets an underscore more: two files never share a
    mask.

    `out` is where results will be written, None where nothing is. With `dealt` only what is its shard's is
    found and counted. `far` looks into object stores; without it their addresses are only spelt out.

    Raises UsageError: nothing to do, a missing INPUT, one given twice, the output inside an INPUT or around
    it. The same is raised while iterating where a listed path or a link leads into the output.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        files_from: Iterable[bytes] | None,
        out: Path | None,
        channels: Patterns | None = None,
        dealt: Dealt | None = None,
        far: Far | None = None,
    ) -> None:
        if not inputs and files_from is None:
            raise UsageError("nothing to score: name a folder, files, or --files-from LIST")
        if inputs and files_from is not None:
            raise UsageError("both INPUT and --files-from are given: give one of them")
        self._far = far
        self._out = None if out is None else place_of(os.fsencode(str(of_path(out) or out)))
        self._files_from = files_from
        self._inputs = [typed_path(text) for text in inputs]
        self._refuse_bad_inputs()
        if channels is not None and any(map(is_address, self._inputs)):
            raise UsageError("--channels combines files on a disk: copy those of the object store to one")
        if channels is not None and not all(map(os.path.isdir, self._inputs or (b"",))):
            raise UsageError("--channels combines the files of folders: give those, not files or a list")
        self._patients = None if channels is None else Patients(channels)
        self._dealt = dealt
        self._looks_inside = True
        self._looking: Looking | None = None
        self.skipped_masks = 0
        self.skipped_other = 0

    def __iter__(self) -> Iterator[SourceFile | Unlisted]:
        return cast("Iterator[SourceFile | Unlisted]", self._found(None))

    def in_stretches(self) -> Iterator[SourceFile | Unlisted | Stretch]:
        """The same, but files of a folder may come as a stretch first; those that it says are passed do not
        come by themselves.
        """
        lists = self._dealt is None and not any(map(is_address, self._inputs))
        with closing(Looking(lists=lists)) as looking:
            yield from self._found(looking)

    def _found(self, looking: Looking | None) -> Iterator[SourceFile | Unlisted | Stretch]:
        self._looking = looking
        self.skipped_masks = 0
        self.skipped_other = 0
        if self._dealt is not None:
            self._dealt.begin()
        if self._files_from is None:
            roots = input_entries(self._inputs, self._is_folder)
        else:
            roots = list_entries(self._files_from)
        for root in roots:
            yield from self._walk(root)

    @property
    def is_lasting(self) -> bool:
        """Whether it can be walked more than once: a list is read as it comes, and then gone."""
        return self._files_from is None

    @property
    def seen(self) -> Seen | None:
        """What this walk came by, of all shards; None where the input is not divided."""
        return None if self._dealt is None else self._dealt.seen

    def roughly(self) -> Iterator[SourceFile | Unlisted]:
        """As many as there are, or nearly, and quickly: each volume of one file and each DICOM file once."""
        self._looks_inside = self._patients is not None
        try:
            yield from self
        finally:
            self._looks_inside = True

    def _refuse_bad_inputs(self) -> None:
        seen: set[bytes] = set()
        for typed in self._inputs:
            shown = safe_text(typed)
            if typed in seen:
                raise UsageError(f"INPUT {shown!r} is given twice: give it once")
            seen.add(typed)
            try:
                if self._far is not None or not is_address(typed):
                    self._stat(typed)
            except FileNotFoundError:
                raise UsageError(f"INPUT {shown!r} does not exist: check its spelling") from None
            except OSError as error:
                raise UsageError(f"INPUT {shown!r} cannot be read: {error.strerror}") from None
            except ValueError:
                raise UsageError(f"INPUT {shown!r} is not a path") from None
            refuse_overlap(typed, self._out)

    def _walk(self, root: Entry) -> Iterator[SourceFile | Unlisted | Stretch]:
        # One level a folder that is open: what is left of it, itself, and its identity.
        waiting: list[Iterator[Found]] = [iter((root,))]
        folders: list[Entry] = []
        identities: list[tuple[int, int]] = []
        while waiting:
            for entry in waiting[-1]:
                if isinstance(entry, Entry):
                    break
                yield entry
            else:
                waiting.pop()
                if folders:
                    folders.pop()
                    identities.pop()
                    if self._looking is not None:
                        self._looking.leave()
                continue
            is_folder = False
            try:
                status = self._stat(entry.path)
                is_folder = stat.S_ISDIR(status.st_mode)
                if entry.named or (is_folder and os.path.islink(entry.path)):
                    refuse_overlap(entry.path, self._out)
                if not is_folder:
                    if self._is_own(entry, folders):
                        yield from self._file(entry, status)
                    continue
                identity = (status.st_dev, status.st_ino)
                if identity not in identities:
                    listing = self._list(entry)
                    if self._looking is not None:
                        self._looking.enter(entry.path, listing)
                    waiting.append(self._contents(entry, listing))
                    folders.append(entry)
                    identities.append(identity)
                    continue
                failure = Failure("discover", "link_loop", "a link to a folder that holds it")
            except OSError as error:
                failure = io_failure("discover", error)
            except ValueError:
                failure = Failure("discover", "bad_name", "not a path: it holds a zero byte")
            if self._is_own(entry, folders, is_folder=is_folder):
                yield entry.refused(failure)

    def _stat(self, path: bytes) -> os.stat_result:
        return self._expect_far(path).stat(path) if is_address(path) else os.stat(path)

    def _is_folder(self, typed: bytes) -> bool:
        return stat.S_ISDIR(self._stat(typed).st_mode) if is_address(typed) else os.path.isdir(typed)

    def _list(self, folder: Entry) -> Listing:
        looked_at = None if self._looking is None else self._looking.listing(folder.path)
        if looked_at is not None:
            return looked_at
        names = self._expect_far(folder.path).list_folder if is_address(folder.path) else list_folder
        return names(folder.path, self._part_of(folder))

    def _expect_far(self, path: bytes) -> Far:
        if self._far is None:
            raise UsageError(f"{safe_text(path)}: read by `tumorscan score` only: copy it to a disk first")
        return self._far

    def _is_own(self, entry: Entry, folders: list[Entry], *, is_folder: bool = False) -> bool:
        """Whether `entry`, in the last of `folders`, is of the shard."""
        if self._dealt is None:
            return True
        if not folders:
            return self._dealt.has_named(entry)
        return self._dealt.has_folder(entry) if is_folder else self._dealt.has_file(entry, folders[-1])

    def _part_of(self, folder: Entry) -> FolderPart | None:
        if self._dealt is None:
            return None
        return self._dealt.part_of(folder, combined=self._patients is not None)

    def _contents(self, folder: Entry, listing: Listing) -> Iterator[Found]:
        """What a folder holds, in order: slices of its DICOM series, then what is yet to be looked at."""
        self.skipped_masks += listing.masks
        self.skipped_other += listing.others
        if self._patients is not None:
            contents = self._patients.contents(folder, listing)
            self._pass_over(folder, contents.passed_over)
            found = filter(partial(self._is_found, folder), contents.found)
            yield from heapq.merge(found, folder.below(contents.names), key=_order_of)
        elif self._looks_inside:
            series, refused, passed_over = sort_series(folder.order, folder.below(listing.dicoms))
            self._pass_over(folder, passed_over)
            slices = chain.from_iterable(each.by_itself() for each in series)
            yield from filter(partial(self._is_found, folder), chain(slices, refused))
            yield from self._below(folder, listing)
        else:
            yield from folder.below(listing.dicoms)
            yield from self._below(folder, listing)

    def _below(self, folder: Entry, listing: Listing) -> Iterator[Found]:
        """Its pictures, looked at, among what is yet to be."""
        if is_address(folder.path):
            return folder.below(listing.names)
        if self._looking is not None:
            return stretches(folder, listing, self._looking)
        return Stretch(folder, listing.names, listing.odd).entries()

    def _is_found(self, folder: Entry, found: SourceFile | Unlisted) -> bool:
        """Whether what a look into the files of `folder` has found is of the shard."""
        return self._dealt is None or self._dealt.has_found(found, folder)

    def _pass_over(self, folder: Entry, files: int) -> None:
        if self._dealt is None or self._dealt.has_folder(folder):
            self.skipped_other += files

    def _file(self, entry: Entry, status: os.stat_result) -> Iterator[SourceFile | Unlisted]:
        kind = kind_of(entry.path)
        # Names were judged when the folder was listed, those of links could not be.
        if not entry.named and kind in ("mask", "other", "perhaps"):
            self.skipped_masks += kind == "mask"
            self.skipped_other += kind != "mask"
        elif not stat.S_ISREG(status.st_mode):
            yield entry.refused(Failure("discover", "not_a_file", NOT_A_FILE))
        elif kind == "picture" or not self._looks_inside:
            yield entry.file(status)
        elif is_address(entry.path):
            yield from self._far_file(entry, status, kind)
        elif kind == "nifti":
            yield from nifti_slices(entry, status)
        elif kind == "dicom" or is_dicom(entry.path):
            yield from self._dicom(entry)
        else:
            yield entry.file(status)

    def _far_file(self, entry: Entry, status: os.stat_result, kind: Kind) -> Iterator[SourceFile | Unlisted]:
        far = self._expect_far(entry.path)
        if kind == "nifti":
            yield from nifti_slices(entry, status, far.start)
        elif kind == "dicom" or far.is_dicom(entry.path):
            raise dicom_refused(entry.path)
        else:
            yield entry.file(status)

    def _dicom(self, entry: Entry) -> Iterator[SourceFile | Unlisted]:
        try:
            yield from single(entry)
        except NoSliceError:
            self.skipped_other += 1


def _order_of(found: Entry | SourceFile | Unlisted) -> bytes:
    return found.order
