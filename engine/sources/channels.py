"""Sequences of a patient as the channels of a slice, as in the LGG set: before contrast, FLAIR, after it.

The slices are FLAIR's; the other two are looked up where those lie, and FLAIR stands in for one that is
missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from engine.errors import Failure, SliceError, UsageError
from engine.sources.entries import Entry, SourceFile, Unlisted, numbered
from engine.sources.files import io_failure
from engine.sources.series import Series, nifti_count
from engine.sources.volumes import CHANNELS, Channel, Source, Volume, fingerprint, recipe
from engine.text import shown

_MATCHED_FIRST: Final[tuple[Channel, ...]] = ("flair", "t1c", "t1")
"""t1=*t1* also fits what is named t1c; what another pattern has taken is left to that."""


@dataclass(frozen=True, slots=True)
class Patterns:
    """What each sequence is called, as a shell's pattern; upper and lower case are one."""

    by_channel: Mapping[Channel, str]

    @classmethod
    def parse(cls, text: str) -> Patterns:
        """Read `t1=PATTERN,flair=PATTERN,t1c=PATTERN`. Raises UsageError."""
        found: dict[Channel, str] = {}
        for part in text.split(","):
            name, _, pattern = part.partition("=")
            channel = next((each for each in CHANNELS if each == name.strip()), None)
            if channel is None or not pattern.strip() or channel in found:
                raise UsageError(
                    f"--channels {text}: give patterns of file names or series, such as "
                    "t1=*t1.nii.gz,flair=*flair*,t1c=*t1c*"
                )
            found[channel] = pattern.strip().lower()
        if "flair" not in found:
            raise UsageError(
                f"--channels {text}: FLAIR is missing, whose slices are scored: add flair=PATTERN"
            )
        return cls(found)

    @property
    def text(self) -> str:
        """What `parse` reads, in one order."""
        return ",".join(f"{name}={self.by_channel[name]}" for name in CHANNELS if name in self.by_channel)

    def channel(self, names: Iterable[str]) -> Channel | None:
        """The sequence that is called one of `names`."""
        lower = [name.lower() for name in names]
        for channel in _MATCHED_FIRST:
            pattern = self.by_channel.get(channel)
            if pattern is not None and any(fnmatchcase(name, pattern) for name in lower):
                return channel
        return None


@dataclass(frozen=True, slots=True)
class NiftiFile:
    """A NIfTI file of a patient's folder."""

    entry: Entry
    status: os.stat_result


Scan = NiftiFile | Series
"""A sequence that was found."""


@dataclass(frozen=True, slots=True)
class Combined:
    """What becomes of a patient's sequences: slices and refusals, and how many files are left out."""

    found: list[SourceFile | Unlisted]
    left_out: int


def combine(sequences: Sequence[Scan], patterns: Patterns) -> Combined:
    """The slices of FLAIR, of three channels. NIfTI files together are one patient's, as a DICOM study is."""
    found: list[SourceFile | Unlisted] = []
    left_out = 0
    patients: dict[str, dict[Channel, list[Scan]]] = {}
    for sequence in sequences:
        channel = patterns.channel(_names(sequence))
        if channel is None:
            left_out += _files(sequence)
        else:
            patients.setdefault(_study(sequence), {}).setdefault(channel, []).append(sequence)
    for by_channel in patients.values():
        try:
            found += _slices(by_channel, patterns)
        except (SliceError, OSError) as error:
            failure = error.failure if isinstance(error, SliceError) else io_failure("discover", error)
            first = (by_channel.get("flair") or next(iter(by_channel.values())))[0]
            found.append(_first_entry(first).refused(failure))
    return Combined(sorted(found, key=lambda each: each.order), left_out)


def _slices(by_channel: dict[Channel, list[Scan]], patterns: Patterns) -> list[SourceFile]:
    for channel, several in by_channel.items():
        if len(several) > 1:
            names = " and ".join(shown(_first_entry(each).shown) for each in several[:2])
            raise _refused(f"{channel}={patterns.by_channel[channel]} fits {names}: give a closer pattern")
    if "flair" not in by_channel:
        raise _refused(f"no FLAIR beside it: nothing here is called {patterns.by_channel['flair']}")
    chosen = {channel: several[0] for channel, several in by_channel.items()}
    flair = chosen["flair"]
    sources = [_source(chosen[channel]) if channel in chosen else None for channel in CHANNELS]
    made_of = fingerprint(*(_made_of(chosen[channel]) if channel in chosen else None for channel in CHANNELS))
    if isinstance(flair, Series):
        return flair.slices(Volume(recipe(sources), flair.order, made_of))
    file = flair.entry.file(flair.status)
    return numbered(file, nifti_count(file.path), Volume(recipe(sources), file.order, made_of))


def _source(sequence: Scan) -> Source:
    return sequence.source if isinstance(sequence, Series) else Source("nifti", (sequence.entry.path,))


def _made_of(sequence: Scan) -> object:
    if isinstance(sequence, Series):
        return sequence.files_made_of
    return sequence.entry.stem, sequence.status.st_size, sequence.status.st_mtime_ns


def _names(sequence: Scan) -> list[str]:
    """What a sequence may be called: its file, or its series and the folder that holds that."""
    entry = _first_entry(sequence)
    name = shown(os.path.basename(entry.shown))  # noqa: PTH119 - bytes
    if isinstance(sequence, NiftiFile):
        return [name]
    folder = shown(os.path.basename(os.path.dirname(entry.shown)))  # noqa: PTH119, PTH120
    return [name, folder, *(file.header.description for file in sequence.files[:1])]


def _study(sequence: Scan) -> str:
    return sequence.files[0].header.study if isinstance(sequence, Series) else ""


def _files(sequence: Scan) -> int:
    return len(sequence.files) if isinstance(sequence, Series) else 1


def _first_entry(sequence: Scan) -> Entry:
    return sequence.files[0].entry if isinstance(sequence, Series) else sequence.entry


def _refused(message: str) -> SliceError:
    return SliceError(Failure("discover", "sequences", message))
