"""Who is measured, what each needs, and how it is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.machine import CHECKOUT
from benchmarks.peers.job import Job
from engine.errors import MachineError, UsageError

LONGEST_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True)
class Peer:
    """A program of this folder. `environment` names the interpreter that has its `packages`.

    Of its `compilers`, the better one in a trial is measured: None is the framework as it is. One that builds
    the networks itself needs the weights of a bundle that was exported from Keras.
    """

    program: str
    title: str
    environment: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp32",)
    compilers: tuple[str | None, ...] = (None,)

    @property
    def builds_networks(self) -> bool:
        return self.environment in ("keras", "torch", "monai")


PEERS: Final = (
    Peer("article_loop", "article's loop: Keras, one slice at a time", "keras", ("keras", "tensorflow")),
    Peer(
        "keras_batches",
        "Keras, batches of 16 from tf.data",
        "keras",
        ("keras", "tensorflow"),
        ("fp32", "bf16"),
        (None, "XLA"),
    ),
    Peer("torch_loop", "PyTorch, DataLoader", "torch", ("torch",), ("fp32", "bf16"), (None, "torch.compile")),
    Peer("onnxruntime_loop", "ONNX Runtime's defaults, plain loop", "onnxruntime", ("onnxruntime",)),
    Peer("ray_data", "Ray Data, an actor with ONNX Runtime", "ray", ("ray", "onnxruntime")),
    Peer(
        "monai_inferer",
        "MONAI's inferer on the PyTorch models",
        "monai",
        ("monai", "torch"),
        ("fp32", "bf16"),
        (None, "torch.compile"),
    ),
)
ENVIRONMENTS: Final = tuple(dict.fromkeys(peer.environment for peer in PEERS))
_COMMON: Final = ("numpy", "opencv-python-headless")
_ASK: Final = """
import importlib.metadata as metadata, importlib.util as util, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
if util.find_spec("cv2"):
    found.setdefault("opencv-python-headless", "another build")
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to run one program; tumorscan itself is one with no peer."""

    peer: Peer | None
    precision: str
    compiler: str | None = None
    backend: str = "openvino"

    @property
    def of(self) -> dict[str, str]:
        """How results name it."""
        if self.peer is None:
            title = "tumorscan" if self.backend == "openvino" else f"tumorscan, {self.backend}"
            return {"program": "tumorscan", "title": title, "precision": self.precision}
        title = self.peer.title + (f", {self.compiler}" if self.compiler else "")
        return {"program": self.peer.program, "title": title, "precision": self.precision}

    @property
    def name(self) -> str:
        return f"{self.of['title']} ({self.precision})"


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds from the first slice read to the table written, and of the whole process."""

    slices: int
    seconds: float
    total: float

    @property
    def per_second(self) -> float:
        return self.slices / self.seconds


def missing(peer: Peer, python: str) -> tuple[list[str], dict[str, str]]:
    """What `python` lacks for the peer, and the versions of what it has. UsageError when it does not run."""
    names = [*peer.packages, *_COMMON]
    try:
        done = subprocess.run([python, "-c", _ASK, *names], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        option = f"--python-{peer.environment}"
        raise UsageError(f"{option} {python}: no Python that runs ({error}); name another") from error
    found: dict[str, str] = json.loads(done.stdout)
    return [name for name in names if name not in found], found


def run_peer(entry: Entry, python: str, job: Job, scratch: Path) -> Timed:
    """Run it to its end. Raises MachineError with its last line when it fails."""
    assert entry.peer is not None
    path = scratch / "job.json"
    job.save(path)
    Path(job.out).mkdir(parents=True)
    words = [python, "-m", f"benchmarks.peers.{entry.peer.program}", str(path)]
    said, total = _run(words, entry, {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"})
    answer = json.loads(said.splitlines()[-1])
    return Timed(answer["slices"], answer["seconds"], total)


def run_tumorscan(entry: Entry, bundle: Path, folder: Path, out: Path, batch: int) -> Timed:
    """`tumorscan score` as a user types it; the time it takes to write its tables is counted as well."""
    words = [sys.executable, "-m", "engine.cli", "score", str(folder), "--out", str(out), "--quiet"]
    words += ["--bundle", str(bundle), "--batch", str(batch)]
    words += ["--backend", entry.backend, "--precision", entry.precision]
    _, total = _run(words, entry, {})
    timings = json.loads((out / "run.json").read_text())["timings"]
    return Timed(timings["slices"], timings["seconds"] + timings["tables_seconds"], total)


def _run(words: list[str], entry: Entry, variables: Mapping[str, str]) -> tuple[str, float]:
    """What it prints, and how long it ran."""
    began = time.monotonic()
    done = subprocess.run(
        words,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **variables},
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise MachineError(f"{entry.name} ended with status {done.returncode}: {reason}")
    return done.stdout, time.monotonic() - began
