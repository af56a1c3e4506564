"""What the tensors of a graph hold on real slices, as far as int8 has to know it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper

from engine.runners.base import INPUT, Images
from trainer.int8_graph import TOP, candidates, kernels, upward
from trainer.strides import attributes

Values = npt.NDArray[np.float32]
Moments = npt.NDArray[np.float64]

BINS = 4096
SHARES = np.linspace(0.1, 1.0, 181)
"""Of the largest value, where int8 may end: what is larger is cut."""
PATCHES = 96
"""Places a slice that a convolution is looked at."""
MOST_INPUTS = 1152
"""Of numbers that go into one output of a convolution: moments of more take long, and 600 did as well."""
_AT_ONCE = 2


@dataclass(slots=True)
class Range:
    """How the absolute values of a tensor are spread between 0 and `top`."""

    top: float
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: Values) -> None:
        """Count some more."""
        if self.top > 0:
            bins = np.minimum(np.abs(values).ravel() * (BINS / self.top), BINS - 1).astype(np.int64)
            self.counts += np.bincount(bins, minlength=BINS)

    def step(self) -> np.float16:
        """The int8 step with the least mean square of what rounding and cutting do."""
        if self.top == 0:
            return np.float16(1)
        filled = np.flatnonzero(self.counts)
        values, weights = (filled + 0.5) * self.top / BINS, self.counts[filled]
        steps = upward(SHARES * self.top / TOP)
        errors = [
            float(weights @ (values - np.minimum(np.round(values / step), TOP) * step) ** 2)
            for step in steps.astype(np.float64)
        ]
        best: np.float16 = steps[int(np.argmin(errors))]
        return best


def measure(model: onnx.ModelProto, images: Images) -> tuple[dict[str, Range], dict[str, Moments]]:
    """Over `images`: the range of each tensor that may be int8, and each convolution's moments.

    These are the mean products [I*h*w,I*h*w] of the numbers that go into one of its outputs; convolutions of
    more than MOST_INPUTS have none.
    """
    tops = dict.fromkeys(sorted(candidates(model)), 0.0)
    for tensor, values in _computed(model, tops, images):
        tops[tensor] = max(tops[tensor], float(np.abs(values).max()))
    ranges = {tensor: Range(top) for tensor, top in tops.items()}
    shapes = {name: kernel.shape for name, kernel in kernels(model).items()}
    sides = {name: int(np.prod(shape[1:])) for name, shape in shapes.items()}
    moments = {name: np.zeros((side, side)) for name, side in sides.items() if side <= MOST_INPUTS}
    watched = [node for node in model.graph.node if node.name in moments]
    rng = np.random.default_rng(0)
    for tensor, values in _computed(model, {*tops, *(node.input[0] for node in watched)}, images):
        if tensor in ranges:
            ranges[tensor].add(values)
        for node in watched:
            if node.input[0] == tensor:
                patches = _patches(values, node, shapes[node.name][2:], rng)
                moments[node.name] += patches.T @ patches
    return ranges, {name: sums / (PATCHES * len(images)) for name, sums in moments.items()}


def _computed(
    model: onnx.ModelProto, tensors: Collection[str], images: Images
) -> Iterator[tuple[str, Values]]:
    """The tensors by name, a few slices at a time, in a fixed order."""
    names = sorted(tensors)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.output[:]
    whole.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = len(os.sched_getaffinity(0))
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(whole.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    for start in range(0, len(images), _AT_ONCE):
        yield from zip(names, session.run(names, {INPUT: images[start : start + _AT_ONCE]}), strict=True)


def _patches(
    values: Values, node: onnx.NodeProto, window: tuple[int, int], rng: np.random.Generator
) -> Values:
    """What a convolution multiplies its kernel with, [n*PATCHES, I*h*w], at places drawn by `rng`."""
    found = attributes(node)
    top, left, bottom, right = found.get("pads", [0, 0, 0, 0])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, window, axis=(2, 3))
    strides = found.get("strides", [1, 1])
    windows = windows[:, :, :: strides[0], :: strides[1]]
    rows, columns = (rng.integers(0, side, PATCHES) for side in windows.shape[2:4])
    chosen = windows[:, :, rows, columns].transpose(0, 2, 1, 3, 4)
    return chosen.reshape(-1, int(np.prod(chosen.shape[2:])))
