"""Disk to disk by programs of their own: `tumorscan score`, and a loop in PyTorch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.gpu.alone import Rate
from benchmarks.gpu.models import Kind
from benchmarks.gpu.settings import Settings
from benchmarks.machine import CHECKOUT
from engine.errors import MachineError

BACKENDS: Final[Mapping[Kind, str]] = {"tensorrt": "tensorrt", "onnxruntime-cuda": "cuda"}
"""Values of --backend."""
LIMIT: Final = 900.0
_ALL_SCORED: Final = 0


def by_command(backend: str, settings: Settings, out: Path) -> Rate:
    """`tumorscan score` over the links, as its run.json times it: first slice read to last row committed."""
    words = ["engine.cli", "score", settings.links, "--out", str(out), "--bundle", settings.bundle, "--quiet"]
    words += ["--backend", backend, "--batch", str(settings.batch), "--lanes", str(settings.lanes)]
    variables = {} if settings.plan_cache is None else {"TUMORSCAN_PLAN_CACHE": settings.plan_cache}
    try:
        _run([*words, "--workers", str(settings.workers)], "tumorscan score", variables)
        timings = json.loads((out / "run.json").read_text())["timings"]
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return Rate(int(timings["slices"]), float(timings["seconds"]))


def by_torch(kind: Kind, out: Path) -> Rate:
    """The loop in PyTorch, from its first slice read to its table written."""
    try:
        said = _run(["benchmarks.gpu.torch_loop", kind, str(out)], "the loop in PyTorch", {})
    finally:
        shutil.rmtree(out, ignore_errors=True)
    answer = json.loads(said.splitlines()[-1])
    return Rate(int(answer["slices"]), float(answer["seconds"]))


def _run(words: list[str], title: str, variables: Mapping[str, str]) -> str:
    """What it prints. MachineError with its last line where it fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=CHECKOUT,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), **variables},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MachineError(f"{title} does not end within {LIMIT:g} seconds") from None
    if done.returncode != _ALL_SCORED:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise MachineError(f"{title} ended with status {done.returncode}: {lines[-1] if lines else ''}")
    return done.stdout
