"""Paths as text: in tables, in run.json and on the screen they all look the same."""

from __future__ import annotations

import os

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What makes a spreadsheet take a cell for a formula, or is skipped before that; the wide ones in Asia."""


def shown(path: str | bytes | os.PathLike[str]) -> str:
    """A path as text that UTF-8 can encode: bytes that are none are written \\xHH."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
