"""What this machine can do: everything that a run may stand on is looked at, and nothing is changed.

Works on a machine that has nothing, and on one where CUDA is half installed: a look that fails, crashes or
hangs becomes a finding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

import engine
from engine.bundle import Bundle, Model
from engine.checks.finding import Finding, Line, guarded
from engine.checks.gpu import gpus, look_at_driver, look_at_pycuda, look_at_tensorrt
from engine.checks.machine import (
    look_at_cores,
    look_at_cpu,
    look_at_descriptors,
    look_at_disk,
    look_at_memory,
    look_at_system,
)
from engine.checks.models import look_at_bundle, look_at_plans
from engine.checks.runtimes import look_at_decoding, look_at_onnxruntime, look_at_openvino
from engine.probes import LIMIT_SECONDS, MODULES, Answer, Subject, ask

_RUNTIMES: Final[tuple[Subject, ...]] = ("openvino", "onnxruntime")
_ASKERS: Final = 4

Answers = Mapping[Subject, Answer]
"""Of what is installed; the driver and decoding are always asked."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(_Frozen):
    """What `score --backend auto` would take; `backend` is None where it would fail."""

    backend: str | None
    precision: dict[Model, str] = {}
    why: Line

    @property
    def sentence(self) -> str:
        """The choice and its reason in one line."""
        if self.backend is None:
            return f"score --backend auto would fail: because {self.why}"
        bits = ", ".join(dict.fromkeys(self.precision.values()))
        return f"score --backend auto would use {self.backend} ({bits}): because {self.why}"


class Report(_Frozen):
    """All that `tumorscan doctor --json` prints, in its order; programs may rely on every key.

    `findings` are in the order of the table, each with `group`, `name`, `status` (ok, warn, missing, fail),
    `value`, `advice` and `facts`. Names: driver, gpu-N, tensorrt, tensorrt-rtx, pycuda; decoding, openvino,
    onnxruntime; system, cpu, cores, memory, descriptors, disk; bundle, parity-KEY, plans, disk-plans. All but
    gpu-N, parity-KEY and disk-plans are always there. `can_score` is False when nothing scores here: slices
    cannot be decoded, no runtime loads, or the bundle is no good.
    """

    format_version: Literal[1] = 1
    tumorscan: str = engine.__version__
    can_score: bool
    choice: Choice
    findings: tuple[Finding, ...]


def examine(
    bundle: Path | None = None, plan_cache: Path | None = None, limit: float = LIMIT_SECONDS
) -> Report:
    """Look at this machine, at the bundle in `bundle` (None: the default) and at the plans in `plan_cache`.

    `limit` is how long each runtime may take to load, in seconds.
    """
    answers = _ask_all(limit)
    loaded: list[Bundle] = []

    def load_bundle() -> list[Finding]:
        loaded.append(Bundle.load(bundle or Bundle.default_folder()))
        return look_at_bundle(loaded[0])

    driver, get = answers["driver"], answers.get
    trt, rtx = get("tensorrt"), get("tensorrt-rtx")
    packages = _installed()
    findings = [
        *guarded("GPU", "driver", lambda: look_at_driver(driver, get("contexts"))),
        *guarded("GPU", "tensorrt", lambda: look_at_tensorrt("tensorrt", trt, driver, packages)),
        *guarded("GPU", "tensorrt-rtx", lambda: look_at_tensorrt("tensorrt-rtx", rtx, driver, packages)),
        *guarded("GPU", "pycuda", lambda: look_at_pycuda(get("pycuda"), driver)),
        *guarded("runtimes", "decoding", lambda: look_at_decoding(answers["decoding"])),
        *guarded("runtimes", "openvino", lambda: look_at_openvino(get("openvino"))),
        *guarded("runtimes", "onnxruntime", lambda: look_at_onnxruntime(get("onnxruntime"), packages)),
        *guarded("machine", "system", look_at_system),
        *guarded("machine", "cpu", lambda: look_at_cpu(answers["decoding"])),
        *guarded("machine", "cores", look_at_cores),
        *guarded("machine", "memory", look_at_memory),
        *guarded("machine", "descriptors", look_at_descriptors),
        *guarded("machine", "disk", lambda: look_at_disk("machine", "disk", Path.cwd())),
        *guarded("models", "bundle", load_bundle),
        *guarded("models", "plans", lambda: look_at_plans(plan_cache, driver)),
    ]
    loads = [name for name in _RUNTIMES if name in answers and answers[name].ok]
    return Report(
        can_score=bool(answers["decoding"].ok and loaded and loads),
        choice=_choose(loaded[0] if loaded else None, answers),
        findings=tuple(findings),
    )


def _installed() -> dict[str, str]:
    """The version of every installed distribution by its normalised name; damaged ones are passed over."""
    found: dict[str, str] = {}
    for distribution in distributions():
        try:
            name, version = distribution.metadata["Name"], distribution.version
        except Exception:
            continue
        if name and version:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return found


def _ask_all(limit: float) -> Answers:
    there = [subject for subject, module in MODULES.items() if _is_installed(module)]
    subjects: list[Subject] = ["driver", "decoding", *there]
    with ThreadPoolExecutor(_ASKERS) as askers:
        answers = dict(zip(subjects, askers.map(lambda subject: ask(subject, limit), subjects), strict=True))
    if gpus(answers["driver"]) and "pycuda" in answers and answers["pycuda"].ok:
        answers["contexts"] = ask("contexts", limit)
    return answers


def _is_installed(module: str) -> bool:
    """Whether a top-level module can be imported from somewhere; a mere folder of its name is none."""
    try:
        spec = find_spec(module)
    except Exception:
        return True  # whoever asks will see
    return spec is not None and spec.origin is not None


def _choose(bundle: Bundle | None, answers: Answers) -> Choice:
    """What `score` settles on, by its own functions, and whether that works here."""
    if not answers["decoding"].ok:
        return Choice(backend=None, why="no slice can be decoded: NumPy or OpenCV does not load")
    if bundle is None:
        return Choice(backend=None, why="the bundle is no good")
    from engine.backend import choose
    from engine.runners import choose_precision, cpu_flags

    chosen = choose("auto", answers.get)
    if chosen.runtime is not None:
        precision: dict[Model, str] = {"classifier": "fp16", "segmenter": "fp16"}
        return Choice(
            backend=chosen.backend, precision=precision, why=f"{chosen.why}; {_first_use(chosen.runtime)}"
        )
    backend: Subject = "openvino" if chosen.backend == "openvino" else "onnxruntime"
    pair = choose_precision(bundle, backend, cpu_flags())
    refused = _refusal(backend, pair, answers)
    if refused:
        return Choice(backend=None, why=refused)
    return Choice(
        backend=backend,
        precision={"classifier": pair[0], "segmenter": pair[1]},
        why=f"{_why_precision(backend, pair, bundle)}; {chosen.why}",
    )


def _first_use(runtime: str) -> str:
    """What the first run on a GPU does before its first slice."""
    if runtime == "onnxruntime-cuda":
        return "each run proves it against float32 first"
    return "plans that are not cached are built first, and unproven ones are proven on the run's own slices"


def _refusal(backend: Subject, pair: tuple[str, str], answers: Answers) -> str:
    """Why the choice would not run, "" when it would."""
    answer = answers.get(backend)
    if answer is None:
        return f"no runtime is installed: pip install {_RUNTIMES[0]}"
    if not answer.ok:
        others = [name for name in _RUNTIMES if name != backend and name in answers and answers[name].ok]
        instead = f"give --backend {others[0]}" if others else "no other runtime loads"
        return f"{backend} comes first and is not usable; {instead}"
    if "bf16" in pair and "BF16" not in answer.facts["capabilities"]:
        return f"{backend} finds no bfloat16 in this CPU; give --precision fp32"
    return ""


def _why_precision(backend: Subject, pair: tuple[str, str], bundle: Bundle) -> str:
    from engine.runners import BF16_FLAGS, cpu_flags

    if backend != "openvino":
        return "OpenVINO, which is faster, is not installed"
    if "int8" in pair:
        return "this CPU has int8 dot products and the bundle's recorded int8 parity holds"
    if "bf16" in pair:
        return "this CPU multiplies in bfloat16 and the bundle's recorded bf16 parity holds"
    if not cpu_flags() & BF16_FLAGS:
        return "this CPU has no bfloat16 instructions"
    return f"the bundle {bundle.manifest.name} records no bf16 parity that holds"
