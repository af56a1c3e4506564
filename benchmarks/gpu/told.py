"""What a section finds, a line a value in a file: what it had told stands when it is killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import TumorscanError
from engine.runners.base import first_line

Of = dict[str, str]


class Told:
    """Tells the process that started this one. Of a `dry` run no value is told: a double measures nothing."""

    def __init__(self, path: Path, section: str, *, dry: bool) -> None:
        self._path = path
        self._section = section
        self._dry = dry

    def value(self, of: Of, name: str, unit: str, value: float) -> None:
        """One value of the series `name` of what is `of` all this."""
        self._tell(["value", {"section": self._section, **of}, name, unit, None if self._dry else value])

    def known(self, name: str, value: float) -> None:
        """A figure that later sections need."""
        self._tell(["known", name, None if self._dry else value])

    def note(self, text: str) -> None:
        """One line for people, of what is left out."""
        self._tell(["note", f"{self._section}: {text}"])

    @contextmanager
    def left_out(self, what: str) -> Iterator[None]:
        """Go on after a failure in here, which is named."""
        try:
            yield
        except Exception as error:  # whatever it is, the rest is still worth measuring
            self.note(f"{what} is left out: {reason(error)}")

    def _tell(self, line: list[Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(slots=True)
class Heard:
    """All that a section told."""

    values: list[tuple[Of, str, str, float | None]] = field(default_factory=list)
    known: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def hear(path: Path) -> Heard:
    """What was told so far; a last line that was cut off is passed over."""
    heard = Heard()
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith("\n"):
            break
        kind, *rest = json.loads(line)
        if kind == "value":
            of, name, unit, value = rest
            heard.values.append((of, name, unit, value))
        elif kind == "known":
            name, value = rest
            if value is not None:
                heard.known[name] = value
        else:
            heard.notes += rest
    return heard


def reason(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, TumorscanError):
        return str(error)
    said = first_line(error) if isinstance(error, Exception) else ""
    name = type(error).__name__
    return f"{name}: {said}" if said and said != name else name
