"""Child processes of this interpreter: what they start with, how they die with it, how they ended.

They are plain subprocesses: those of multiprocessing import __main__, which a notebook has none of.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def child_environment() -> dict[str, str]:
    """This process's environment and import path; libraries quiet and on one thread."""
    return {
        **os.environ,
        "PYTHONPATH": import_path(),
        "OPENCV_LOG_LEVEL": "SILENT",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def import_path() -> str:
    """This process's own import path as PYTHONPATH has it, so that a child finds what this one would find."""
    home = str(Path(__file__).resolve().parent.parent)
    path = [os.path.abspath(entry) for entry in sys.path if entry]  # noqa: PTH100 - keeps links as they are
    return os.pathsep.join(path if home in path else [home, *path])


def start_module(
    module: str, *numbers: int, inherits: Sequence[int], complaints: int
) -> subprocess.Popen[bytes]:
    """The process of `python -m MODULE NUMBER...`, which `inherits` descriptors. Raises OSError.

    All that it says goes to the file `complaints`.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *map(str, numbers)],
        stdin=subprocess.DEVNULL,
        stdout=complaints,
        stderr=complaints,
        pass_fds=inherits,
        env=child_environment(),
    )


def die_with(parent: int) -> None:
    """In a child: have the kernel end it with the thread of process `parent` that started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")


def death(status: int | None) -> str:
    """How a child with this return code ended."""
    if status is None:
        return "did not end when killed"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def last_line(complaints: int) -> str:
    """The last line in a file that a child's output went to, "" where it wrote nothing."""
    written = os.pread(complaints, os.fstat(complaints).st_size, 0)
    lines = [line.strip() for line in written.decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")
