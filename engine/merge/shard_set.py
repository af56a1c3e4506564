"""All shards of one run: every one there, once, finished, and scored alike."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from engine.errors import UsageError
from engine.shards import FinishedShard, UnfinishedShard, read_shard
from engine.text import shown

_NAMED: Final = 8
"""Shards, or stretches of them, that an error names."""


def read_shards(folders: Sequence[Path], anonymise: Path | None) -> tuple[FinishedShard, ...]:
    """The shards in `folders`, in the order of their numbers.

    Raises UsageError for a folder that is no shard, one given twice, shards that are missing, not finished or
    twice there, and shards of different bundles, options or inputs; MachineError.
    """
    _refuse_twice(folders)
    found = sorted((read_shard(folder, anonymise) for folder in folders), key=lambda each: each.shard.number)
    _expect_all(found)
    finished = tuple(each for each in found if isinstance(each, FinishedShard))
    _expect_one_run(finished)
    _expect_one_input(finished)
    return finished


def leader(shards: Sequence[FinishedShard]) -> FinishedShard:
    """The first that scored something, which says what all were scored with."""
    return next((each for each in shards if each.slices), shards[0])


def _refuse_twice(folders: Sequence[Path]) -> None:
    if not folders:
        raise UsageError("no shards: give the output folders of `tumorscan score --shard`")
    places: dict[str, Path] = {}
    for folder in folders:
        place = os.path.realpath(folder)
        if place in places:
            raise UsageError(f"{shown(folder)} is given twice: give it once")
        places[place] = folder


def _expect_all(shards: Sequence[FinishedShard | UnfinishedShard]) -> None:
    first = shards[0]
    for each in shards:
        if each.shard.count != first.shard.count:
            raise UsageError(
                f"{shown(first.folder)} is shard {first.shard.text} and {shown(each.folder)} is "
                f"{each.shard.text}: give the shards of one division"
            )
    for number, same in groupby(shards, key=lambda each: each.shard.number):
        folders = [shown(each.folder) for each in same]
        if len(folders) > 1:
            raise UsageError(
                f"shard {number}/{first.shard.count} is there twice, in {folders[0]} and {folders[1]}: "
                "give one of them"
            )
    there = {each.shard.number for each in shards}
    missing = [number for number in range(1, first.shard.count + 1) if number not in there]
    unfinished = [each.shard.number for each in shards if isinstance(each, UnfinishedShard)]
    told = []
    if missing:
        told.append(f"{_numbers(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if unfinished:
        told.append(f"{_numbers(unfinished)} {'is' if len(unfinished) == 1 else 'are'} not finished")
    if told:
        raise UsageError(
            f"of {first.shard.count} shards {', and '.join(told)}: run their commands (again, and without "
            "--limit), then merge"
        )


def _expect_one_run(shards: Sequence[FinishedShard]) -> None:
    first = leader(shards)
    for each in shards:
        one, other = (first.identity, each.identity) if each.slices else (first.of_all, each.of_all)
        odd = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
        if odd:
            what = "; ".join(f"{key}: {_value(one.get(key))} and {_value(other.get(key))}" for key in odd)
            raise UsageError(
                f"{shown(first.folder)} and {shown(each.folder)} were not scored alike ({what}): "
                "score one of them again as the other"
            )


def _expect_one_input(shards: Sequence[FinishedShard]) -> None:
    newest = max(shards, key=lambda each: each.report.ended)
    odd = [each for each in shards if each.seen != newest.seen]
    if odd:
        raise UsageError(
            f"the input was another one when shard {_numbers([each.shard.number for each in odd])} of "
            f"{newest.shard.count} looked at it ({odd[0].seen.names:,} files, later {newest.seen.names:,}): "
            "run the command of every shard again, which scores what came since, then merge"
        )


def _numbers(numbers: Iterable[int]) -> str:
    """1, 4-7 and 9; after some, how many more."""
    stretches = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        stretch = [number for _, number in run]
        stretches.append(f"{stretch[0]}" if len(stretch) == 1 else f"{stretch[0]}-{stretch[-1]}")
    if len(stretches) > _NAMED:
        stretches[_NAMED:] = [f"{len(stretches) - _NAMED} more"]
    return stretches[0] if len(stretches) == 1 else f"{', '.join(stretches[:-1])} and {stretches[-1]}"


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
