"""One model on ONNX Runtime's CPU provider, in float32: the reference, and the fallback.

Calls are pieces of a fixed number of slices, the last one padded: a dense layer of one row takes another path
through the runtime than one of several, and a result would depend on how many slices were in the call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from engine.bundle import Model
from engine.errors import MachineError, UsageError
from engine.runners.base import (
    CONTRACT,
    DEFAULT_OUTPUTS,
    INPUT,
    SIDE,
    Images,
    Outputs,
    Precision,
    allocate,
    check_images,
    first_line,
)

_ERRORS_ONLY = 3


class OnnxRuntimeRunner:
    """A graph in ONNX Runtime, one session for all threads.

    Each call computes on `threads` cores; `concurrency` calls are worth having in flight (None: one a core).
    `UsageError` for a graph that will not load or breaks the contract, `MachineError` without ONNX Runtime.
    """

    name = "onnxruntime"
    precision: Precision = "fp32"

    def __init__(
        self,
        graph: Path,
        model: Model,
        *,
        batch: int = 1,
        threads: int = 1,
        concurrency: int | None = None,
        outputs: tuple[str, ...] | None = None,
    ) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MachineError(f"ONNX Runtime cannot be loaded ({error}): pip install onnxruntime") from error
        ort.set_default_logger_severity(_ERRORS_ONLY)
        settings = ort.SessionOptions()
        settings.log_severity_level = _ERRORS_ONLY
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores from the other model and the decoders.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.version: str = ort.__version__
        self.outputs = outputs or DEFAULT_OUTPUTS[model]
        self.concurrency = concurrency or len(os.sched_getaffinity(0))
        self.options: Mapping[str, str | int] = {"batch": batch, "threads": threads}
        self._model = model
        self._batch = batch
        self._session: Any = None
        try:
            self._session = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
            trial = self._session.run(list(self.outputs), {INPUT: np.zeros((batch, SIDE, SIDE, 3), np.uint8)})
        except Exception as error:  # the runtime's errors share no base of their own
            raise UsageError(
                f"ONNX Runtime cannot run {graph}: {first_line(error)}; choose another bundle with --bundle"
            ) from error
        _check_outputs(dict(zip(self.outputs, trial, strict=True)), graph, model, batch)

    def infer(self, images: Images) -> Outputs:
        """See `Runner.infer`."""
        check_images(images)
        session = self._session
        if session is None:
            raise ValueError("infer() was called on a closed runner")
        n, batch = len(images), self._batch
        results = allocate(self._model, self.outputs, -(-n // batch) * batch)
        for start in range(0, n, batch):
            piece = images[start : start + batch]
            if len(piece) < batch:
                piece = np.concatenate([piece, np.zeros((batch - len(piece), SIDE, SIDE, 3), np.uint8)])
            _run(session, piece, {name: array[start : start + batch] for name, array in results.items()})
        return {name: array[:n] for name, array in results.items()}

    def close(self) -> None:
        """Free the model; a call still in flight finishes."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _run(session: Any, images: Images, results: Outputs) -> None:
    """Read and write the arrays where they lie."""
    binding = session.io_binding()
    binding.bind_input(INPUT, "cpu", 0, np.uint8, images.shape, images.ctypes.data)
    for name, array in results.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    session.run_with_iobinding(binding)


def _check_outputs(trial: Outputs, graph: Path, model: Model, batch: int) -> None:
    for name, array in trial.items():
        spec = CONTRACT[model][name]
        if array.dtype != spec.dtype or array.shape != (batch, *spec.shape):
            raise UsageError(
                f"{graph} gives {name!r} as {array.dtype} {list(array.shape)} where {spec.dtype} "
                f"{[batch, *spec.shape]} is due: export the bundle again or choose another"
            )
