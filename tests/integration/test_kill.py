"""Killed, interrupted, continued: the results are, byte for byte, those of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.runs import command, environment, files_below, results, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle

SLICES = 300
SLOW_SLICES = 3_500
DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A folder of slices, how to score it, and what came of that in how many seconds (of these, at work)."""

    folder: Path
    words: tuple[str, ...]
    results: bytes = field(repr=False)
    files: dict[str, bytes] = field(repr=False)
    seconds: float
    at_work: float

    def start(self, out: str, *words: str, own_group: bool = False) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(*self.words, "--out", out, *words),
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=own_group,
        )

    def assert_continues(self, out: str, *words: str) -> None:
        """Run to the end and compare all that is left."""
        ran = tumorscan(*self.words, "--out", out, *words, cwd=self.folder)
        assert ran.status == 0, ran.err
        assert results(self.folder / out) == self.results
        assert files_below(self.folder / out) == self.files
        left = {path.name for path in (self.folder / out).iterdir()}
        assert left == {"results.csv", "errors.csv", "volumes.csv", "run.json", "run.sqlite", "masks"}


def undisturbed(folder: Path, slices: int) -> Undisturbed:
    write_slices(folder / "data", slices, patients=7)
    bundle = make_tiny_bundle(folder / "bundle").folder
    words = ("score", "data", "--bundle", str(bundle), "--backend", "onnxruntime")
    begun = time.monotonic()
    ran = tumorscan(*words, "--out", "whole", cwd=folder)
    assert ran.status == 0, ran.err
    seconds, whole = time.monotonic() - begun, folder / "whole"
    at_work = json.loads((whole / "run.json").read_text())["timings"]["seconds"]
    return Undisturbed(folder, words, results(whole), files_below(whole), seconds, at_work)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed(tmp_path_factory.mktemp("kill"), SLICES)


def kill_at_random_moments(whole: Undisturbed, out: str, seed: int, kills: int) -> int:
    """SIGKILL the run, start it again with another batch and other workers, until it was hit `kills` times.

    One time in three the moment is counted from its start, else from when it is at work. Returns how many of
    the hits met it at work.
    """
    chance = random.Random(seed)
    at_work = 0
    for hit in range(kills):
        batch, workers = chance.choice([1, 4, 16]), chance.choice([1, 2])
        running = whole.start(out, "--batch", str(batch), "--workers", str(workers))
        if hit % 3:
            _wait_for_new_masks(whole.folder / out, running)
        try:
            running.wait(chance.uniform(0, whole.at_work / kills))
        except subprocess.TimeoutExpired:
            running.kill()
        running.communicate()
        if running.returncode == 0:
            break
        assert running.returncode == -signal.SIGKILL
        at_work += hit % 3 > 0
    return at_work


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(whole: Undisturbed) -> None:
    assert kill_at_random_moments(whole, "killed", seed=20, kills=5) >= 2
    whole.assert_continues("killed")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_long_run_killed_ten_times_ends_with_the_same_bytes(tmp_path: Path) -> None:
    long = undisturbed(tmp_path, SLOW_SLICES)
    assert kill_at_random_moments(long, "killed", seed=3, kills=10) >= 5
    long.assert_continues("killed")


def test_a_run_killed_while_it_starts_over_leaves_nothing_of_the_old_one(whole: Undisturbed) -> None:
    running = whole.start("fresh", "--threshold", "0")  # has masks for the same slices, and rows of its own
    _wait_for_new_masks(whole.folder / "fresh", running)
    running.kill()
    running.communicate()
    running = whole.start("fresh", "--fresh")
    time.sleep(0.4 * whole.seconds)
    running.kill()
    running.communicate()
    whole.assert_continues("fresh", "--fresh")


@pytest.mark.parametrize(
    ("number", "status", "to"),
    [(signal.SIGINT, 130, "group"), (signal.SIGTERM, 143, "process"), (signal.SIGTERM, 143, "group")],
)
def test_an_interrupted_run_says_so_and_continues_to_the_same_bytes(
    whole: Undisturbed, number: signal.Signals, status: int, to: str
) -> None:
    out = f"{number.name}_{to}"
    running = whole.start(out, own_group=True)
    _wait_for_new_masks(whole.folder / out, running)
    os.kill(running.pid, number) if to == "process" else os.killpg(running.pid, number)
    _, said = running.communicate(timeout=DEADLINE_S)
    assert running.returncode == status, said
    last = said.decode().splitlines()[-1]
    assert last.startswith("tumorscan: interrupted: ")
    assert last.endswith("slices are done and the same command continues")
    assert not (whole.folder / out / "results.csv").exists()
    whole.assert_continues(out)


def test_a_second_interrupt_ends_at_once(whole: Undisturbed) -> None:
    running = whole.start("twice")
    _wait_for_new_masks(whole.folder / "twice", running)
    for _ in range(2):
        running.send_signal(signal.SIGINT)
        time.sleep(0.01)
    running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 130
    whole.assert_continues("twice")


def test_a_second_run_in_the_same_folder_is_refused_at_once(whole: Undisturbed) -> None:
    running = whole.start("shared")
    _wait_for_new_masks(whole.folder / "shared", running)
    running.send_signal(signal.SIGSTOP)  # so that it is still there
    for words in ((), ("--fresh",)):
        ran = tumorscan(*whole.words, "--out", "shared", *words, cwd=whole.folder)
        assert ran.status == 2
        (line,) = ran.err.splitlines()
        assert f"another run (process {running.pid} on " in line
    running.send_signal(signal.SIGCONT)
    running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 0
    whole.assert_continues("shared")


def _wait_for_new_masks(out: Path, running: subprocess.Popen[bytes]) -> None:
    """Wait until the run, just started, is at work (or at its end)."""
    until = time.monotonic() + DEADLINE_S
    before = _masks(out)
    while _masks(out) <= before and running.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)


def _masks(out: Path) -> int:
    return sum(1 for _ in (out / "masks").glob("*/*.png"))
