"""The command's own process, and nobody else's, is tuned for runs."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import pytest

from engine.own_process import tune

SCRIPT = """
import gc, sys, engine.scoring, engine.cli
before = gc.get_threshold()
sys.argv = ["tumorscan", "--version"]
try:
    engine.cli.main()
except SystemExit:
    print(before[0] < 10_000 < gc.get_threshold()[0])
"""


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_garbage_is_looked_for_seldom_and_on_several_cores_turns_are_short(
    monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    called: list[Any] = []
    monkeypatch.setenv("OPENCV_FOR_THREADS_NUM", "3")  # as the user has it
    monkeypatch.setattr(gc, "set_threshold", lambda *numbers: called.append(numbers))
    monkeypatch.setattr(sys, "setswitchinterval", called.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    tune()
    assert called == [(50_000, *gc.get_threshold()[1:]), 0.0005][: min(cores, 2)]
    assert os.environ["OPENCV_FOR_THREADS_NUM"] == "3"


def test_importing_leaves_a_process_as_it_is_and_the_command_does_not() -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "True"


def test_opencv_keeps_to_the_thread_that_calls_it() -> None:
    script = "from engine.own_process import tune; tune(); import cv2; print(cv2.getNumThreads())"
    environment = {name: value for name, value in os.environ.items() if name != "OPENCV_FOR_THREADS_NUM"}
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert ran.stdout.split() == ["1"]
