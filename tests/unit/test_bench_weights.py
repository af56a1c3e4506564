"""The shipped bundle's weights by Keras layer, as peers load them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.peers.weights import Arrays, layer_arrays, write_weights
from engine.bundle import Bundle, Model
from engine.errors import UsageError
from tests.tinybundle import make_tiny_bundle
from trainer.rewrite import lift_convolutions


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(Bundle.default_folder())


@pytest.mark.parametrize(("model", "convolutions"), [("classifier", 53), ("segmenter", 2 + 8 * 3 + 1)])
def test_every_layer_has_its_kernel_and_bias(bundle: Bundle, model: Model, convolutions: int) -> None:
    arrays = layer_arrays(onnx.load(bundle.graph(model)))
    kernels = [name for name, array in arrays.items() if name.endswith("/kernel") and array.ndim == 4]
    assert len(kernels) == convolutions
    for name, array in arrays.items():
        assert array.dtype == np.float32
        if name.endswith("/kernel"):
            assert arrays[name.replace("/kernel", "/bias")].shape == array.shape[-1:]


def test_lifted_convolutions_are_joined_again(bundle: Bundle) -> None:
    graph = onnx.load(bundle.graph("segmenter"))
    once = layer_arrays(graph)
    assert_equal(layer_arrays(lift_convolutions(graph)), once)
    assert once["up4_conv1/kernel"].shape == (1, 1, 384, 128)


def test_a_graph_that_names_no_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was not exported from Keras"):
        write_weights(make_tiny_bundle(tmp_path / "bundle"), tmp_path)


def assert_equal(found: Arrays, wanted: Arrays) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
