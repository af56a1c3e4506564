"""Whether the packages of the `train` extra are here."""

from __future__ import annotations

import importlib.util
import os

from engine.errors import MachineError


def need_train_extra(*more: str) -> None:
    """Raise MachineError where a package of the extra, or one of `more`, is missing; imports none of them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    missing = [
        name for name in ("keras", "sklearn", "matplotlib", *more) if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise MachineError(f"this needs {', '.join(missing)}: pip install 'tumorscan[train]'")
