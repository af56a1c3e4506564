"""What Ray raises, as a user is told it."""

from __future__ import annotations

import re
from typing import Final

import engine
from engine.errors import MachineError, TumorscanError

_NO_MODULE: Final = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_OF_TASKS: Final = ("RayTaskError", "UserCodeException")


def plain(error: BaseException, where: str) -> BaseException:
    """`error`, which Ray raised for what happened at `where`, in one line; a fault of our own as it is."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, TumorscanError):
        return cause
    if missing := _NO_MODULE.search(str(error)):
        return MachineError(
            f"{where} has no {missing[1]}: install tumorscan {engine.__version__} with its extra cluster in "
            "the Python that Ray runs with on every node"
        )
    if not type(error).__module__.startswith("ray.") or type(error).__name__.startswith(_OF_TASKS):
        return error
    line = next((text.strip() for text in str(error).splitlines() if text.strip()), "")
    return MachineError(
        f"{where} failed ({type(error).__name__}: {line}): see `ray status`; the same command continues"
    )
