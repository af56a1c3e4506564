"""NVIDIA's own tools on the same plans: what trtexec and Polygraphy say of them, where they are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from engine.errors import MachineError

LIMIT: Final = 300.0
_QUERIES: Final = re.compile(r"Throughput: ([\d.eE+-]+) qps")
_COMPUTE: Final = re.compile(r"GPU Compute Time: .*?median = ([\d.eE+-]+) ms")
_AVERAGE: Final = re.compile(r"Average inference time: ([\d.eE+-]+) ms")


def trtexec(plan: Path, seconds: float) -> tuple[float, float]:
    """Batches a second, and the median seconds that a batch computes: one stream, no copies.

    MachineError where there is no such command, or where it fails.
    """
    words = ["--loadEngine=" + str(plan), "--noDataTransfers", "--useSpinWait", "--warmUp=500"]
    said = _run("trtexec", [*words, f"--duration={max(1, round(seconds))}"])
    return _number(_QUERIES, said, "trtexec"), _number(_COMPUTE, said, "trtexec") / 1e3


def polygraphy(plan: Path, iterations: int) -> float:
    """Mean seconds of a batch from host to host, its copies with it. MachineError as above."""
    words = ["run", str(plan), "--model-type", "engine", "--trt", "--iterations", str(iterations)]
    return _number(_AVERAGE, _run("polygraphy", words), "polygraphy") / 1e3


def _run(command: str, words: Sequence[str]) -> str:
    found = shutil.which(command) or _beside(command)
    if found is None:
        raise MachineError(f"{command} is not installed")
    try:
        done = subprocess.run([found, *words], capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise MachineError(f"{command} does not end within {LIMIT:g} seconds") from None
    said = done.stdout + done.stderr
    if done.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        wrong = next((line for line in lines if "[E]" in line or "[!]" in line), lines[-1] if lines else "")
        raise MachineError(f"{command} ended with status {done.returncode}: {wrong}")
    return said


def _beside(command: str) -> str | None:
    """Where NVIDIA's packages and containers put it, which is not always on the PATH."""
    for folder in ("/usr/src/tensorrt/bin", "/opt/tensorrt/bin", "/workspace/tensorrt/bin"):
        if (place := Path(folder, command)).is_file():
            return str(place)
    return None


def _number(pattern: re.Pattern[str], said: str, command: str) -> float:
    found = pattern.search(said)
    if found is None:
        raise MachineError(f"{command} says no {pattern.pattern.partition(':')[0].lower()}")
    return float(found[1])
