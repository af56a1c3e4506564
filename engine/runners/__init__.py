"""One file a runtime, behind one protocol; here is chosen which."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from engine.bundle import Bundle, Model
from engine.errors import UsageError
from engine.runners.base import Precision, Runner

BACKENDS = ("openvino", "onnxruntime")

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Of a CPU that multiplies in bfloat16, as Linux names them."""


def choose_backend(asked: str) -> str:
    """The runtime that "auto" means here; `UsageError` for a name that is none."""
    if asked == "auto":
        return "openvino" if find_spec("openvino") else "onnxruntime"
    if asked not in BACKENDS:
        raise UsageError(f"there is no backend {asked!r}: choose from auto, {', '.join(BACKENDS)}")
    return asked


def choose_precision(bundle: Bundle, backend: str, flags: frozenset[str]) -> tuple[Precision, Precision]:
    """The fastest (classifier, segmenter) pair that this CPU has and whose recorded parity holds."""
    recorded = bundle.manifest.parity.get("openvino:bf16", {}).get("holds")
    if backend == "openvino" and flags & BF16_FLAGS and recorded is True:
        return "bf16", "bf16"
    return "fp32", "fp32"


def cpu_flags() -> frozenset[str]:
    """The first core's instruction-set flags as Linux names them; empty where it tells none."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), ":")
    return frozenset(line.partition(":")[2].split())


def open_runner(
    backend: str,
    bundle: Bundle,
    model: Model,
    precision: Precision = "fp32",
    *,
    batch: int = 1,
    threads: int | None = None,
    outputs: tuple[str, ...] | None = None,
) -> Runner:
    """One model of the bundle on one runtime ("openvino", "onnxruntime" or "auto").

    `batch` slices are computed at a time. `threads` are the cores for OpenVINO (None: all) and the cores a
    call for ONNX Runtime (None: 1). `outputs` names what is computed (None: all but `mask_probability`).
    Raises `UsageError` for a graph or a combination that cannot be, `MachineError` for what is not installed.
    """
    graph = bundle.graph(model)  # bfloat16 is a way to compute the float graph, not another file
    if choose_backend(backend) == "openvino":
        from engine.runners.openvino import OpenVinoRunner

        return OpenVinoRunner(graph, model, precision, batch=batch, threads=threads, outputs=outputs)
    if precision != "fp32":
        raise UsageError(f"ONNX Runtime computes in fp32 only, not {precision}: use --backend openvino")
    from engine.runners.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(graph, model, batch=batch, threads=threads or 1, outputs=outputs)
