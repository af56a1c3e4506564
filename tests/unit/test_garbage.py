"""The command's own process, and nobody else's, looks for garbage seldom."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from engine.garbage import collect_seldom

SCRIPT = """
import gc, sys, engine.scoring, engine.cli
before = gc.get_threshold()
sys.argv = ["tumorscan", "--version"]
try:
    engine.cli.main()
except SystemExit:
    print(before[0] < 10_000 < gc.get_threshold()[0])
"""


def test_only_how_young_objects_may_grow_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, ...]] = []
    monkeypatch.setattr(gc, "set_threshold", lambda *numbers: set_to.append(numbers))
    collect_seldom()
    assert set_to == [(50_000, *gc.get_threshold()[1:])]


def test_importing_leaves_a_process_as_it_is_and_the_command_does_not() -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "True"
