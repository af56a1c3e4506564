"""`--config FILE`: a command whose options may stand in a file, below what is typed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, cast, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from engine.config import Kind, read_options
from engine.errors import UsageError
from engine.text import shown

_OPTION: Final = re.compile(r"--([a-z][a-z-]*)")
_UNSET: Final = frozenset({"config", "return"})
_EITHER: Final = (frozenset({"inputs", "files_from"}),)
"""Of these one is given: what is typed replaces all that a file says of them."""


class ConfiguredCommand(TyperCommand):
    """Takes from the file of `--config` each option that was not typed, and has it judged as if it were."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises UsageError for what the file says wrong, with its name."""
        path: Path | None = ctx.params.get("config")
        if path is None:
            return super().invoke(ctx)
        given = self._fill(ctx, path)
        try:
            return super().invoke(ctx)
        except UsageError as error:
            named = _OPTION.match(str(error))
            if named is None or named[1].replace("-", "_") not in given:
                raise
            raise UsageError(f"{error} (it stands in {shown(path)})") from error

    def _fill(self, ctx: Any, path: Path) -> set[str]:
        """Set what the file gives; the names of what was set."""
        parameters = {str(each.name): each for each in self.params}
        given = read_options(path, str(self.name), kinds_of(inspect.unwrap(cast("Any", self.callback))))
        typed = {name for name in parameters if _is_typed(ctx, name)}
        for names in _EITHER:
            if typed & names:
                typed |= names
            elif names <= given.keys():
                both = " and ".join(sorted(name.replace("_", "-") for name in names))
                raise UsageError(f"--config {shown(path)}: {both}: give one of them")
        set_here = given.keys() - typed
        for name in set_here:
            try:
                ctx.params[name] = parameters[name].process_value(ctx, given[name])
            except typer.BadParameter as error:
                key = name.replace("_", "-")
                raise UsageError(f"--config {shown(path)}: {key} = {given[name]}: {error.message}") from None
        return set(set_here)


def _is_typed(ctx: Any, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def kinds_of(function: Callable[..., Any]) -> dict[str, Kind]:
    """What each parameter of a command takes from a file, by its annotation."""
    hints = get_type_hints(function)
    return {name: _kind(hint) for name, hint in hints.items() if name not in _UNSET}


def _kind(hint: Any) -> Kind:
    several = [each for each in get_args(hint) if each is not NoneType]
    if get_origin(hint) is UnionType and len(several) == 1:
        return _kind(several[0])
    if get_origin(hint) is Literal:
        return "choice"
    kinds: dict[Any, Kind] = {bool: "flag", int: "integer", float: "number", Path: "path", list[str]: "texts"}
    return kinds.get(hint, "text")
