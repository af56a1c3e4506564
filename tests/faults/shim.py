"""shim.c, compiled once, and the environment that preloads it into the command."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

CALLS = ("open", "read", "write", "sync", "rename", "unlink", "truncate")
_SOURCE = Path(__file__).with_name("shim.c")


def why_not() -> str:
    """Why there can be no shim here; "" where there can."""
    return "" if shutil.which("cc") else "needs a C compiler (cc)"


@functools.cache
def library() -> Path:
    """The shim, compiled."""
    folder = Path(tempfile.mkdtemp(prefix="tumorscan-shim-"))
    built = folder / "shim.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", built, _SOURCE, "-ldl"],
        check=True,
        capture_output=True,
    )
    return built


def calls(
    which: str, path: str | Path, *, do: str, mark: Path, first: int = 1, count: int = 1
) -> dict[str, str]:
    """The environment in which the calls `which` (comma-separated) on `path` are hit; `mark` appears then."""
    assert set(which.split(",")) <= set(CALLS)
    return {
        "LD_PRELOAD": str(library()),
        "SHIM_CALLS": which,
        "SHIM_PATH": str(path),
        "SHIM_FIRST": str(first),
        "SHIM_COUNT": str(count),
        "SHIM_DO": do,
        "SHIM_MARK": str(mark),
    }


def clock(most: int) -> dict[str, str]:
    """The environment in which the real-time clock jumps by up to `most` seconds, again and again."""
    return {"LD_PRELOAD": str(library()), "SHIM_CLOCK": str(most)}
