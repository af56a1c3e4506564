"""What the models compute: their FP16 graphs by ONNX Runtime on the CPU, and plans that are such graphs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.bundle import Bundle, Model
from engine.plans.half import half_graph
from engine.runners.base import INPUT

_MAGIC: Final = b"plan of the double\n"
_KEPT_SLICES: Final = 4096


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output: its type, and its shape after the leading N."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of one slice."""
        return self.dtype.itemsize * math.prod(self.shape)


class Computer:
    """One graph. What it gave for a slice is remembered: lanes are run over the same slices many times."""

    def __init__(self, graph: bytes) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        self._session: Any = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        self.input = _tensor(self._session.get_inputs()[0])
        self.outputs = tuple(_tensor(output) for output in self._session.get_outputs())
        self._known: dict[bytes, list[npt.NDArray[Any]]] = {}

    def run(self, images: npt.NDArray[np.uint8]) -> Mapping[str, npt.NDArray[Any]]:
        """The outputs for uint8 [N,256,256,3]."""
        keys = [hashlib.blake2b(image.data, digest_size=16).digest() for image in images]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if len(self._known) > _KEPT_SLICES:
            self._known.clear()
            new = {key: i for i, key in enumerate(keys)}
        if new:
            made = self._session.run(None, {INPUT: images[list(new.values())]})
            for place, key in enumerate(new):
                self._known[key] = [output[place] for output in made]
        return {
            tensor.name: np.stack([self._known[key][which] for key in keys])
            for which, tensor in enumerate(self.outputs)
        }


def _tensor(value: Any) -> Tensor:
    names = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(int32)": np.int32}
    return Tensor(value.name, np.dtype(names[value.type]), tuple(value.shape[1:]))


@lru_cache(maxsize=8)
def computer(graph: bytes) -> Computer:
    """The computer of that graph, made once."""
    return Computer(graph)


@lru_cache(maxsize=8)
def _fp16_graph(graph: bytes, model: Model, probabilities: bool) -> bytes:
    return half_graph(graph, model, probabilities=probabilities)


def bundle_graph(bundle: Bundle, model: Model, probabilities: bool = False) -> bytes:
    """The FP16 graph of one of a bundle's models; `probabilities` as in `engine.plans.half.half_graph`."""
    return _fp16_graph(bundle.graph(model).read_bytes(), model, probabilities)


def plan(graph: bytes, batch: int) -> bytes:
    """An FP16 graph (`engine.plans.half.half_graph`) as a plan for that batch size alone."""
    return _MAGIC + json.dumps({"batch": batch}).encode() + b"\n" + graph


def read_plan(content: bytes) -> tuple[bytes, int] | None:
    """The graph and the batch size of a plan, None for what is none."""
    if not content.startswith(_MAGIC):
        return None
    header, _, graph = content.removeprefix(_MAGIC).partition(b"\n")
    return graph, json.loads(header)["batch"]
