"""What every runner promises: the graphs' contract and the protocol that the cascade stands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from engine.bundle import Model

SIDE = 256
INPUT = "images"

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Images = npt.NDArray[np.uint8]
Outputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output of a graph: its element type, and its shape after the leading N."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


CONTRACT: Mapping[Model, Mapping[str, OutputSpec]] = {
    "classifier": {"tumor_probability": OutputSpec(np.dtype(np.float32), ())},
    "segmenter": {
        "mask": OutputSpec(np.dtype(np.uint8), (SIDE, SIDE)),
        "mask_pixels": OutputSpec(np.dtype(np.int32), ()),
        "mask_probability": OutputSpec(np.dtype(np.uint8), (SIDE, SIDE)),
    },
}
DEFAULT_OUTPUTS: Mapping[Model, tuple[str, ...]] = {
    "classifier": ("tumor_probability",),
    "segmenter": ("mask", "mask_pixels"),
}


class Runner(Protocol):
    """One model on one runtime: a context manager whose `infer` may be called by many threads at once."""

    @property
    def name(self) -> str:
        """The runtime: "openvino", "onnxruntime"."""
        ...

    @property
    def version(self) -> str:
        """The runtime's own version."""
        ...

    @property
    def precision(self) -> Precision:
        """What the convolutions are computed in."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names that `infer` gives; whatever else the graph offers is not computed."""
        ...

    @property
    def concurrency(self) -> int:
        """How many calls are worth having in flight."""
        ...

    @property
    def options(self) -> Mapping[str, str | int]:
        """What else may change a bit of a result; belongs to a run's identity."""
        ...

    def infer(self, images: Images) -> Outputs:
        """Score [n,256,256,3] uint8 RGB, C-contiguous, n >= 0; blocks; leaves `images` as it is.

        The input is read where it lies and must not change until the call returns. The arrays given back
        belong to the caller. A slice's result depends on no other slice of the call.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_images(images: Images) -> None:
    """Raise `ValueError` for an array that `infer` would have to copy or cannot score."""
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 3) or not images.flags.c_contiguous:
        raise ValueError(
            f"images must be C-contiguous uint8 [n,{SIDE},{SIDE},3], not {images.dtype} {list(images.shape)}"
        )


def allocate(model: Model, names: tuple[str, ...], n: int) -> Outputs:
    """Empty output arrays for n slices."""
    specs = CONTRACT[model]
    return {name: np.empty((n, *specs[name].shape), specs[name].dtype) for name in names}


def first_line(error: Exception) -> str:
    """The first line of a runtime's message that says something (OpenVINO's begins with source lines)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("Exception from ")), type(error).__name__)
