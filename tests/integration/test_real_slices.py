"""Promises that need thousands of real slices: TUMORSCAN_LGG names a kaggle_3m folder, and run -m slow."""

from __future__ import annotations

import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("TUMORSCAN_LGG", "")
KILLS = 10
SEED = 2026

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not DATA, reason="TUMORSCAN_LGG names no kaggle_3m folder"),
]


def start(out: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "engine.cli", "score", DATA, "--out", str(out), "--quiet", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_ten_kills_at_random_moments_leave_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert start(tmp_path / "calm").wait() == 0
    took = time.monotonic() - begun
    moments = random.Random(SEED)
    for _ in range(KILLS):
        process = start(tmp_path / "killed")
        time.sleep(moments.uniform(0.02, 1.6) * took / KILLS)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "killed").wait() == 0
    names = ["results.csv", "errors.csv"]
    assert filecmp.cmpfiles(tmp_path / "calm", tmp_path / "killed", names, shallow=False)[0] == names
    calm = sorted(path.relative_to(tmp_path / "calm") for path in (tmp_path / "calm" / "masks").rglob("*.*"))
    killed = sorted(
        path.relative_to(tmp_path / "killed") for path in (tmp_path / "killed" / "masks").rglob("*.*")
    )
    assert calm == killed
    assert all(
        filecmp.cmp(tmp_path / "calm" / path, tmp_path / "killed" / path, shallow=False) for path in calm
    )


def peak_memory(process: subprocess.Popen[bytes]) -> int:
    """The most bytes that the run and its workers held together (shared pages once)."""
    watched = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        total = 0
        for each in [watched, *watched.children(recursive=True)]:
            try:
                total += each.memory_full_info().pss
            except psutil.Error:
                continue
        peak = max(peak, total)
        time.sleep(0.25)
    assert process.returncode == 0
    return peak


def test_memory_for_3500_files_is_that_for_500(tmp_path: Path) -> None:
    small = peak_memory(start(tmp_path / "small", "--limit", "500"))
    large = peak_memory(start(tmp_path / "large", "--limit", "3500"))
    assert large <= 1.1 * small, f"{small / 2**20:.0f} MiB for 500, {large / 2**20:.0f} MiB for 3,500"
