"""A dry run's GPU: the tests' double of one, by which the programs can be walked where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_doubles: list[Any] = []


@contextmanager
def machine(dry: bool) -> Iterator[None]:
    """The GPU at hand, or of a dry run a double of one, of this process alone."""
    if not dry:
        yield
        return
    from tests.timeddouble import TimedDouble

    with TimedDouble("eager") as double:
        _doubles.append(double)
        try:
            yield
        finally:
            _doubles.pop()


def double() -> Any:
    """The double of this process."""
    return _doubles[-1]
