"""One file a runtime, behind one protocol; here is chosen which."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from engine.bundle import Bundle, Model
from engine.errors import MachineError, UsageError
from engine.runners.base import Precision, Runner

BACKENDS = ("openvino", "onnxruntime")

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Of a CPU that multiplies in bfloat16, as Linux names them."""

INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Of a CPU that adds up products of int8 in int32: without them sums saturate in int16."""

_PAIRS: tuple[tuple[Precision, Precision], ...] = (
    ("int8", "int8"),
    ("int8", "bf16"),
    ("int8", "fp32"),
    ("bf16", "bf16"),
)
"""(classifier, segmenter), the fastest first: the classifier is most of the work."""


def choose_backend(asked: str) -> str:
    """The runtime that "auto" means here; `UsageError` for a name that is none."""
    if asked == "auto":
        return "openvino" if find_spec("openvino") else "onnxruntime"
    if asked not in BACKENDS:
        raise UsageError(f"there is no backend {asked!r}: choose from auto, {', '.join(BACKENDS)}")
    return asked


def choose_precision(bundle: Bundle, backend: str, flags: frozenset[str]) -> tuple[Precision, Precision]:
    """The fastest (classifier, segmenter) pair that this CPU has and whose recorded parity holds."""
    return next((pair for pair in _PAIRS if _is_proven(bundle, backend, flags, pair)), ("fp32", "fp32"))


def choose_int8(bundle: Bundle, backend: str, flags: frozenset[str]) -> tuple[Precision, Precision]:
    """What `--precision int8` means: the classifier in int8, the segmenter in the lowest that holds with it.

    `UsageError` where the bundle or the backend has no such pair, `MachineError` where the CPU has not.
    """
    if "int8" not in bundle.manifest.models["classifier"]:
        raise UsageError(
            f"{bundle.folder} has no int8 graphs: make them with tumorscan quantise, or take --precision fp32"
        )
    if backend != "openvino":
        raise UsageError(f"--precision int8 is OpenVINO's, not {backend}'s: use --backend openvino")
    if not flags & INT8_FLAGS:
        raise MachineError("this CPU has no int8 dot products (VNNI): use --precision fp32")
    pairs = (pair for pair in _PAIRS if pair[0] == "int8" and _is_proven(bundle, backend, flags, pair))
    pair = next(pairs, None)
    if pair is None:
        raise UsageError(
            f"{bundle.folder} records no parity of its int8 graphs that holds here: use --precision fp32"
        )
    return pair


def parity_key(backend: str, pair: tuple[str, str]) -> str:
    """What a bundle records the parity of a (classifier, segmenter) pair under: "openvino:int8+bf16"."""
    return f"{backend}:{'+'.join(dict.fromkeys(pair))}"


def _is_proven(
    bundle: Bundle, backend: str, flags: frozenset[str], pair: tuple[Precision, Precision]
) -> bool:
    if backend != "openvino" or ("bf16" in pair and not flags & BF16_FLAGS):
        return False
    if "int8" in pair and not flags & INT8_FLAGS:
        return False
    return bundle.manifest.parity.get(parity_key(backend, pair), {}).get("holds") is True


def cpu_flags() -> frozenset[str]:
    """The first core's instruction-set flags as Linux names them; empty where it tells none."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), ":")
    return frozenset(line.partition(":")[2].split())


def graph_for(bundle: Bundle, model: Model, precision: Precision) -> Path:
    """The file to compute from: bfloat16 is a way to compute the float graph, int8 another file."""
    return bundle.graph(model, precision if precision == "int8" else "fp32")


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
    graph = graph_for(bundle, model, precision)
    if choose_backend(backend) == "openvino":
        from engine.runners.openvino import OpenVinoRunner

        return OpenVinoRunner(graph, model, precision, batch=batch, threads=threads, outputs=outputs)
    if precision != "fp32":
        raise UsageError(f"ONNX Runtime computes in fp32 only, not {precision}: use --backend openvino")
    from engine.runners.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(graph, model, batch=batch, threads=threads or 1, outputs=outputs)
