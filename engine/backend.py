"""Which runtime a run takes, and why. `score` and `doctor` ask here, each with its own way to ask probes.

On a machine without an NVIDIA driver nothing is started and nothing imported to find that out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final, Literal, cast

from engine import probes
from engine.driver import LIBCUDA
from engine.errors import MachineError, UsageError
from engine.plans.sidecar import TITLES, Flavour
from engine.plans.toolkit import OLDEST_CAPABILITY
from engine.probes import MODULES, Answer, Subject
from engine.runners import BACKENDS as CPU_BACKENDS
from engine.runners import choose_backend

BACKENDS: Final = ("tensorrt", "cuda", *CPU_BACKENDS)
Runtime = Literal["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"]
RUNTIMES: Final[Mapping[str, tuple[Runtime, ...]]] = {
    "tensorrt": ("tensorrt", "tensorrt-rtx"),
    "cuda": ("onnxruntime-cuda",),
}
"""What a GPU backend may be, the best first."""
_NEWER_CUDAS: Final = 3
"""So many major versions of CUDA beyond the driver's are looked for among TensorRT's packages."""

Ask = Callable[[Subject], Answer | None]
"""What a probe says; None of what is not installed."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU that may score: `index` counts those visible, `free` is its free memory in bytes."""

    index: int
    name: str
    free: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A runtime. `why` is a clause, "" for one that was asked for by name; `runtime` is None on the CPU.

    `devices` are the GPUs that take work, in the driver's order.
    """

    backend: str
    why: str = ""
    runtime: Runtime | None = None
    devices: tuple[Device, ...] = ()


def choose(asked: str, ask: Ask, *, cpu: str = "", failed: Mapping[Runtime, str] | None = None) -> Choice:
    """The backend that `asked` stands for: one of BACKENDS, or "auto" for the best that works here.

    `cpu` says what else was asked for that no GPU does, "" for nothing. `failed` are runtimes that did not
    come up after they were chosen, with the reason: "auto" does without them.

    Raises UsageError for a name that is none, MachineError for a GPU backend that does not work here.
    """
    if asked in CPU_BACKENDS:
        return Choice(asked)
    if asked == "auto":
        return _best(ask, cpu, failed or {})
    if asked not in RUNTIMES:
        raise UsageError(f"there is no backend {asked!r}: choose from auto, {', '.join(BACKENDS)}")
    reasons = []
    for runtime in RUNTIMES[asked]:
        reason, devices = _look_at(runtime, ask)
        if not reason:
            return Choice(asked, "", runtime, devices)
        reasons.append(reason)
    raise MachineError(f"--backend {asked}: {'; '.join(dict.fromkeys(reasons))}: see tumorscan doctor")


def choose_runtime(runtime: Runtime, ask: Ask) -> Choice:
    """That runtime, with which a run was begun. Raises MachineError where it does not work here."""
    backend = next(name for name, runtimes in RUNTIMES.items() if runtime in runtimes)
    reason, devices = _look_at(runtime, ask)
    if reason:
        raise MachineError(f"the run was begun with {runtime}: {reason}")
    return Choice(backend, "", runtime, devices)


def asker() -> Ask:
    """Puts each question to a probe once; without a driver no process is started to ask for one."""
    return cache(_ask)


def _ask(subject: Subject) -> Answer | None:
    if subject == "driver":
        try:
            ctypes.CDLL(LIBCUDA)
        except OSError:
            return Answer("absent", {}, f"there is no NVIDIA driver here ({LIBCUDA} is not found)")
    elif subject in MODULES and find_spec(MODULES[subject]) is None:
        return None
    return probes.ask(subject)


def _best(ask: Ask, cpu: str, failed: Mapping[Runtime, str]) -> Choice:
    """TensorRT, else the CUDA provider, else the CPU."""
    if reason := _no_gpu(ask):
        return Choice(choose_backend("auto"), reason)
    gpus = ", ".join(dict.fromkeys(str(gpu["name"]) for gpu in _gpus(ask)))
    if cpu:
        return Choice(choose_backend("auto"), f"{gpus} is left idle: {cpu}")
    reasons: list[str] = []
    for backend, runtimes in RUNTIMES.items():
        for runtime in runtimes:
            reason, devices = (failed[runtime], ()) if runtime in failed else _look_at(runtime, ask)
            if not reason:
                here = f"{gpus} is here" if not reasons else f"for {gpus}, as {'; '.join(reasons)}"
                return Choice(backend, here, runtime, devices)
            reasons.append(reason)
    return Choice(choose_backend("auto"), f"{gpus} is left idle: {'; '.join(dict.fromkeys(reasons))}")


def _no_gpu(ask: Ask) -> str:
    """Why there is no GPU, "" where there is one."""
    driver = ask("driver")
    if driver is None or driver.state == "absent":
        return "there is no NVIDIA GPU to use"
    return "" if driver.ok else "the NVIDIA driver does not work"


def _gpus(ask: Ask) -> list[dict[str, Any]]:
    driver = ask("driver")
    return [] if driver is None else list(driver.facts.get("gpus", ()))


def _look_at(runtime: Runtime, ask: Ask) -> tuple[str, tuple[Device, ...]]:
    """Why the runtime does not work here, "" where it does; and the GPUs on which it would."""
    driver = ask("driver")
    if driver is None or not driver.ok:
        return driver.said if driver else "there is no NVIDIA driver here", ()
    for refused in _refusals(runtime, ask, driver.facts):
        return refused, ()
    known = [gpu for gpu in _gpus(ask) if _knows(runtime, ask, gpu["compute_capability"])]
    if not known:
        first = _gpus(ask)[0]
        capability = ".".join(map(str, first["compute_capability"]))
        title = TITLES[cast("Flavour", runtime)]
        return f"{title} does not know {first['name']} (compute capability {capability})", ()
    contexts = ask("contexts")
    if contexts is None or not contexts.ok:
        return f"no GPU takes work: {contexts.said if contexts else 'none was asked'}", ()
    found = [(gpu, contexts.facts["gpus"][gpu["index"]]) for gpu in known]
    devices = tuple(
        Device(gpu["index"], gpu["name"], here["free"]) for gpu, here in found if "refused" not in here
    )
    return ("" if devices else f"no GPU takes work: {found[0][1]['refused']}"), devices


def _knows(runtime: Runtime, ask: Ask, capability: Sequence[int]) -> bool:
    """Whether the runtime computes on GPUs of that compute capability."""
    if runtime == "onnxruntime-cuda":
        return True
    answer, dotted = ask(runtime), ".".join(map(str, capability))
    targets = answer.facts.get("targets", (dotted,)) if answer else ()
    return tuple(capability) >= OLDEST_CAPABILITY and dotted in targets


def _refusals(runtime: Runtime, ask: Ask, driver: Mapping[str, Any]) -> Iterator[str]:
    """What is not installed, does not load, or needs a newer driver."""
    pycuda = ask("pycuda")
    if pycuda is None:
        yield "pycuda is not installed (pip install 'tumorscan[gpu]')"
    elif not pycuda.ok:
        yield f"pycuda does not load ({pycuda.said})"
    if runtime == "onnxruntime-cuda":
        answer = ask("onnxruntime")
        if answer is None or not answer.ok:
            yield "ONNX Runtime does not load" if answer else "ONNX Runtime is not installed"
        elif "CUDAExecutionProvider" not in answer.facts["providers"]:
            yield "ONNX Runtime has no CUDA provider"
        return
    answer, title = ask(runtime), TITLES[runtime]
    if answer is None:
        yield f"{title} is not installed"
        return
    if not answer.ok:
        yield answer.said if answer.state == "refused" else f"{title} does not load ({answer.said})"
        return
    if newer := _newer_cuda(runtime, driver["cuda"][0]):
        yield f"{title} is made for CUDA {newer}, the driver is too old"


def _newer_cuda(runtime: Runtime, supported: int) -> int | None:
    """The CUDA that a flavour's packages are made for, where the driver's is older."""
    for major in range(supported + 1, supported + 1 + _NEWER_CUDAS):
        for name in (f"{runtime}-cu{major}", f"{runtime}-cu{major}-libs"):
            try:
                version(name)
            except PackageNotFoundError:
                continue
            return major
    return None
