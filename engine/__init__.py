"""Bulk scoring of brain-MRI slices: what scores. `from engine import score` is the way in from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.notebook.api import score
    from engine.notebook.iterating import Run
    from engine.notebook.result import Result

__all__ = ["Result", "Run", "__version__", "score"]

__version__ = "0.1.0"

_HOMES = {
    "score": "engine.notebook.api",
    "Run": "engine.notebook.iterating",
    "Result": "engine.notebook.result",
}


def __getattr__(name: str) -> object:
    """What notebooks import, loaded with the libraries behind it when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
