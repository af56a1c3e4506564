"""The shipped bundle's FP16 graphs: what they lose where every tensor is rounded, and what TensorRT says."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the gpu extra")

import onnxruntime as ort  # noqa: E402

from engine.bundle import Bundle, Model  # noqa: E402
from engine.cascade import OperatingPoint  # noqa: E402
from engine.parity import FP16_LIMITS, dice  # noqa: E402
from engine.plans.emulation import emulated  # noqa: E402
from engine.plans.half import half_graph  # noqa: E402
from engine.runners.base import Images, Outputs  # noqa: E402
from trainer.phantoms import write_phantoms  # noqa: E402


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(Bundle.default_folder())


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """uint8 [24,256,256,3]: about one patient with a lesion."""
    root = write_phantoms(tmp_path_factory.mktemp("phantoms"), 24, seed=3).root
    paths = sorted(path for path in root.rglob("*.tif") if not path.stem.endswith("_mask"))
    return np.stack([cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths])


def answer(graph: bytes, images: Images) -> Outputs:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    parts = [session.run(names, {"images": images[i : i + 8]}) for i in range(0, len(images), 8)]
    return {
        name: np.concatenate(arrays) for name, arrays in zip(names, zip(*parts, strict=True), strict=True)
    }


def test_the_classifier_in_float16_is_off_by_less_than_a_hundredth(bundle: Bundle, phantoms: Images) -> None:
    graph = bundle.graph("classifier").read_bytes()
    images = phantoms[::2]
    whole = answer(graph, images)["tumor_probability"]
    half = answer(emulated(half_graph(graph, "classifier")), images)["tumor_probability"]
    assert (whole > 0.9).any()
    assert (whole < 0.1).any()
    assert np.abs(half - whole).max() < 0.01


def test_the_segmenter_in_float16_draws_the_same_masks(bundle: Bundle, phantoms: Images) -> None:
    graph = bundle.graph("segmenter").read_bytes()
    whole = answer(graph, phantoms)["mask"]
    half = np.unpackbits(answer(emulated(half_graph(graph, "segmenter")), phantoms)["mask_bits"], axis=-1)
    least = OperatingPoint.of(bundle).min_pixels
    has = whole.sum((1, 2)) >= least
    assert has.sum() >= 3
    np.testing.assert_array_equal(half.sum((1, 2)) >= least, has)
    likeness = [dice(half[i], whole[i]) for i in np.flatnonzero(has)]
    assert np.mean(likeness) >= FP16_LIMITS.mask_dice  # which is a limit of the mean
    assert min(likeness) >= 0.98


@pytest.mark.parametrize(("model", "convolutions"), [("classifier", 53), ("segmenter", 35)])
def test_tensorrt_takes_the_graph_as_a_strongly_typed_network(
    bundle: Bundle, model: Model, convolutions: int
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX parses and builds without a GPU")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    graph = half_graph(bundle.graph(model).read_bytes(), model, probabilities=True)
    assert parser.parse(graph), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    kinds = Counter(layer.get_output(0).dtype for layer in layers if layer.type == trt.LayerType.CONVOLUTION)
    assert kinds == {trt.float16: convolutions}
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *[(4, 256, 256, 3)] * 3)
    assert config.add_optimization_profile(profile) == 0
    assert builder.build_serialized_network(network, config) is not None
