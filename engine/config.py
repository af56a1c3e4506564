"""Options from a TOML file (`--config`): read, and refused in one line where it is not understood."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from engine.errors import UsageError
from engine.text import shown

Kind = Literal["flag", "integer", "number", "text", "choice", "path", "texts"]
"""What an option takes. Text may be a number in the file too: `batch = 32`."""

_TAKES: Final[Mapping[Kind, tuple[str, tuple[type, ...]]]] = MappingProxyType(
    {
        "flag": ("true or false", (bool,)),
        "integer": ("a whole number", (int,)),
        "number": ("a number", (int, float)),
        "text": ('text, such as "auto"', (str, int, float)),
        "choice": ("text in quotes", (str,)),
        "path": ("a path in quotes", (str,)),
        "texts": ('paths, such as ["slices"]', (str, list)),
    }
)


def read_options(path: Path, command: str, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """What the table [`command`] of the file sets: by the names that `kinds` has, as Python spells them.

    A key is an option's name without its dashes, `max-runtime` or `max_runtime`. `texts` become lists.
    Raises UsageError: a file that cannot be read or is no TOML, another table, an unknown key, one that is
    there twice, a value of another type.
    """
    given: dict[str, Any] = {}
    for key, value in _table(path, command).items():
        name = key.replace("-", "_")
        if name not in kinds:
            hint = _hint(key, [each.replace("_", "-") for each in kinds])
            raise UsageError(f"--config {shown(path)}: {key}: `{command}` has no such option{hint}")
        if name in given:
            raise UsageError(f"--config {shown(path)}: {key}: is there twice, with - and with _: keep one")
        takes, types = _TAKES[kinds[name]]
        wrong = isinstance(value, bool) != (kinds[name] == "flag") or not isinstance(value, types)
        if wrong or (isinstance(value, list) and not all(isinstance(each, str) for each in value)):
            raise UsageError(f"--config {shown(path)}: {key} = {_short(value)}: give {takes}")
        given[name] = [value] if kinds[name] == "texts" and isinstance(value, str) else value
    return given


def _table(path: Path, command: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            whole = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"--config {shown(path)}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"--config {shown(path)}: is no TOML: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config {shown(path)}: is no TOML: {error}") from None
    for key, value in whole.items():
        if not isinstance(value, dict):
            raise UsageError(f"--config {shown(path)}: {key} is in no table: put it below a line [{command}]")
        if key != command:
            hint = _hint(key, [command]) or f": there is [{command}]"
            raise UsageError(f"--config {shown(path)}: [{key}]: there is no such table{hint}")
    table = whole.get(command)
    if not table:
        raise UsageError(f"--config {shown(path)}: sets nothing: put options below a line [{command}]")
    assert isinstance(table, dict)
    return table


def _hint(word: str, known: Collection[str]) -> str:
    close = get_close_matches(word.replace("_", "-"), known, n=1)
    return f": did you mean {close[0]}?" if close else ""


def _short(value: object) -> str:
    """The value much as it stands in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
