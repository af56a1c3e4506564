"""A plan's FP16 graph on ONNX Runtime's CPU provider: what a plan would say, before one is built.

It multiplies in float32 and rounds every tensor to float16. That is no kernel of a GPU, but it shows what the
rounding does to a model, and that the graph is right.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engine.bundle import Model
from engine.errors import MachineError, UsageError
from engine.plans.emulation import emulated
from engine.runners.base import INPUT, Images, Outputs, Precision, check_images, first_line

_ERRORS_ONLY = 3


class HalfGraphRunner:
    """An FP16 graph (`engine.plans.half.half_graph`) behind the protocol of all runners.

    Masks come as bits and are unpacked; nothing else is computed. `UsageError` for a graph that ONNX Runtime
    refuses, `MachineError` without ONNX Runtime.
    """

    name = "onnxruntime"
    precision: Precision = "fp16"

    def __init__(self, graph: bytes, model: Model, *, threads: int | None = None) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MachineError(f"ONNX Runtime cannot be loaded ({error}): pip install onnxruntime") from error
        settings = ort.SessionOptions()
        settings.log_severity_level = _ERRORS_ONLY
        settings.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.version: str = ort.__version__
        self.outputs = ("tumor_probability",) if model == "classifier" else ("mask", "mask_pixels")
        self.concurrency = 1
        self.options: Mapping[str, str | int] = {}
        self._model = model
        try:
            self._session: Any = ort.InferenceSession(
                emulated(graph), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's errors share no base of their own
            raise UsageError(
                f"ONNX Runtime refuses the {model}'s FP16 graph: {first_line(error)}; "
                "choose another bundle with --bundle"
            ) from error

    def infer(self, images: Images) -> Outputs:
        """See `Runner.infer`."""
        check_images(images)
        if self._model == "classifier":
            return {"tumor_probability": self._session.run(["tumor_probability"], {INPUT: images})[0]}
        masks, pixels = unpack_masks(self._session.run(["mask_bits"], {INPUT: images})[0])
        return {"mask": masks, "mask_pixels": pixels}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None


def unpack_masks(bits: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Masks uint8 [n,256,256] of 0/1, and the pixels int32 [n] of each, from `mask_bits` uint8 [n,256,32]."""
    return np.unpackbits(bits, axis=-1), np.bitwise_count(bits).sum(axis=(1, 2), dtype=np.int32)
