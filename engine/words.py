"""The options of a run as the words of a command line: for run.json and a dry run, which show what held."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any, Final

from engine.run import Options
from engine.text import shown

_UNSHOWN: Final = ("inputs", "arguments", "listed")
_SPELLED: Final[Mapping[str, Callable[[Any], list[str]]]] = MappingProxyType(
    {
        "gate": lambda _: ["--no-gate"],
        "flips": lambda flips: [
            "--flips", flips.mirrors, *(["--flip-classifier"] if flips.classifier else [])
        ],
        "components": lambda rule: ["--components", rule.text],
        "shard": lambda shard: ["--shard", shard.text],
    }
)  # fmt: skip


def words_of(options: Options) -> list[str]:
    """Every option of `score` that is not at its default, and the output: `["--out", "results", "--fresh"]`.

    Where they came from, the command line, a file or Python, makes no difference.
    """
    words: list[str] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in _UNSHOWN or value == field.default or field.default_factory is not MISSING:
            continue
        if field.name in _SPELLED:
            words += _SPELLED[field.name](value)
            continue
        words.append(f"--{field.name.replace('_', '-')}")
        if value is not True:
            words.append(shown(value) if isinstance(value, os.PathLike) else str(value))
    return words
