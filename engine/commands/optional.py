"""An option whose value may be left out, which typer has not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from typer.core import TyperCommand

from engine.ray_address import AUTO, is_address

_RAY: Final = "--ray"


class AddressOptional(TyperCommand):
    """A command whose --ray may stand without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See typer, which has the rest."""
        return super().parse_args(ctx, with_values(args))


def with_values(words: Sequence[str]) -> list[str]:
    """`words` of a command line with the value of each --ray: "auto" where no address follows."""
    return list(_with_values(words))


def _with_values(words: Sequence[str]) -> Iterator[str]:
    options = True
    for word, after in zip(words, (*words[1:], ""), strict=False):
        options = options and word != "--"
        yield word
        if options and word == _RAY and not is_address(after):
            yield AUTO
