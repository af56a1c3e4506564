from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the train extra")

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.int8_graph import TOP
from trainer.int8_ranges import BINS, Range
from trainer.int8_rounding import round_kernel


def error(kernel: np.ndarray, moments: np.ndarray, *, seen: bool) -> float:
    """The mean square error of what a kernel gives, over inputs of these moments."""
    made = round_kernel(kernel, moments if seen else None)
    back = made.values.astype(np.float64) * made.steps.astype(np.float64)[:, None, None, None]
    off = (back - kernel).reshape(len(kernel), -1)
    return float(np.einsum("oi,ij,oj->", off, moments, off))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_errors_are_made_up_for_where_inputs_are_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(8, 4, 3, 3)).astype(np.float32)
    inputs = rng.normal(size=(500, 1)) * 3 + rng.normal(size=(500, 36)) * 0.3
    moments = inputs.T @ inputs / len(inputs)
    assert error(kernel, moments, seen=True) < 0.5 * error(kernel, moments, seen=False)


def test_a_kernel_keeps_its_shape_and_largest_weight() -> None:
    kernel = np.random.default_rng(0).normal(size=(5, 2, 3, 3)).astype(np.float32)
    made = round_kernel(kernel, None)
    back = made.values * made.steps.astype(np.float32)[:, None, None, None]
    assert made.values.shape == kernel.shape
    assert made.values.dtype == np.int8
    assert np.abs(back - kernel).max() <= made.steps.max() / 2 * 1.001


def test_a_channel_without_weights_and_inputs_that_are_always_zero_do_no_harm() -> None:
    kernel = np.zeros((2, 1, 1, 1), np.float32)
    kernel[1] = 0.5
    for moments in (np.zeros((1, 1)), np.ones((1, 1)), None):
        made = round_kernel(kernel, moments)
        assert made.values[0].item() == 0
        assert abs(made.values[1].item() * float(made.steps[1]) - 0.5) < 0.005


def test_a_range_with_a_far_value_is_cut() -> None:
    values = np.random.default_rng(0).exponential(1, 100_000).astype(np.float32)
    far = Range(200.0)
    far.add(np.append(values, np.float32(200)))
    assert 10 < float(far.step()) * TOP < 150


def test_an_even_range_is_not_cut() -> None:
    even = Range(1.0)
    even.add(np.linspace(-1, 1, 10 * BINS, dtype=np.float32))
    assert 0.99 < float(even.step()) * TOP < 1.01


def test_a_tensor_of_zeros_has_a_step_all_the_same() -> None:
    nothing = Range(0.0)
    nothing.add(np.zeros(5, np.float32))
    assert nothing.step() > 0
