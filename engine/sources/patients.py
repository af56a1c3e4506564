"""Sequences of one patient, found as the input is walked: in one folder, or each in one of its own."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from engine.errors import SliceError
from engine.sources import dicom
from engine.sources.channels import NiftiFile, Patterns, Scan, combine
from engine.sources.entries import Entry, SourceFile, Unlisted
from engine.sources.folders import Listing, kind_of, list_folder
from engine.sources.keyed_names import KeyedName
from engine.sources.series import look, sort_series


@dataclass(slots=True)
class Contents:
    """What a folder comes to: slices and refusals in order, names that are left, and files passed over."""

    found: list[SourceFile | Unlisted] = field(default_factory=list)
    names: list[KeyedName] = field(default_factory=list)
    passed_over: int = 0


class Patients:
    """Combines the sequences of each folder; one whose subfolders share a DICOM study is one patient's."""

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns
        self._aside: dict[bytes, list[SourceFile | Unlisted]] = {}

    def contents(self, folder: Entry, listing: Listing) -> Contents:
        """What is in `folder` itself. What its subfolders have part in is kept until their turn comes."""
        contents = Contents()
        scans: list[Scan] = []
        for keyed_name, entry in zip(listing.names, folder.below(listing.names), strict=True):
            if kind_of(keyed_name[1]) == "nifti" and os.path.isfile(entry.path):  # noqa: PTH113 - bytes
                scans.append(NiftiFile(entry, os.stat(entry.path)))  # noqa: PTH116
            else:
                contents.names.append(keyed_name)
        kept = self._aside.pop(folder.path, None)
        if kept is not None:
            contents.found += kept
        else:
            self._read(folder, listing, scans, contents)
        subfolders = self._of_one_patient(folder, contents.names, bool(listing.dicoms))
        for subfolder, inside in subfolders:
            self._aside[subfolder.path] = []
            aside = Contents()
            self._read(subfolder, inside, scans, aside)
            self._aside[subfolder.path] += aside.found
            contents.passed_over += aside.passed_over
        combined = combine(scans, self._patterns)
        contents.passed_over += combined.left_out
        for each in combined.found:
            holder = next((sub for sub, _ in subfolders if each.order.startswith(sub.order)), None)
            (contents.found if holder is None else self._aside[holder.path]).append(each)
        for found in (contents.found, *(self._aside[sub.path] for sub, _ in subfolders)):
            found.sort(key=lambda each: each.order)
        return contents

    def _read(self, folder: Entry, listing: Listing, scans: list[Scan], contents: Contents) -> None:
        series, refused, passed_over = sort_series(folder.order, folder.below(listing.dicoms))
        scans += series
        contents.found += refused
        contents.passed_over += passed_over

    def _of_one_patient(
        self, folder: Entry, names: list[KeyedName], has_own: bool
    ) -> list[tuple[Entry, Listing]]:
        """The subfolders that hold DICOM files of a study which others hold files of, or this folder."""
        found: list[tuple[Entry, Listing, str]] = []
        for subfolder in folder.below(names):
            if not os.path.isdir(subfolder.path) or os.path.islink(subfolder.path):  # noqa: PTH112, PTH114
                continue
            try:
                listing = list_folder(subfolder.path)
                if listing.dicoms:
                    found.append(
                        (subfolder, listing, look(next(subfolder.below(listing.dicoms))).header.study)
                    )
            except (OSError, SliceError, dicom.NoSliceError):
                continue  # told when its turn comes
        often = Counter(study for *_, study in found)
        return [(subfolder, listing) for subfolder, listing, study in found if has_own or often[study] > 1]
