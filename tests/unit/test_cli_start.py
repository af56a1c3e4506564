"""The command's first half second, in which it is loaded."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from engine import cli
assert "typer" not in sys.modules
{before}
def load():
    os.kill(os.getpid(), {number})
    from engine import app
    return app
cli.load = load
sys.argv = ["tumorscan", "--version"]
cli.main()
"""


def started(number: int, before: str = "") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(number=number, before=before)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_asks_for_the_end_while_it_loads_is_told_in_one_line(number: int, status: int) -> None:
    ended = started(number)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", "tumorscan: interrupted\n")


def test_a_signal_that_is_ignored_stays_so() -> None:
    ended = started(signal.SIGINT, "signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("tumorscan ")
