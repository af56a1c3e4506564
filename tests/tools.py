"""Linters that the `dev` extra installs beside the interpreter, whose folder need not be on the PATH."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """The path of a linter. Skips the test where it is not installed."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"no {name} here (extra: dev)")
    return found
