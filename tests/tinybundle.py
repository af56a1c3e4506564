"""A bundle of the real contract whose graphs are small enough to score a slice in a millisecond.

The classifier says tumour where many pixels of the middle channel (FLAIR) are bright; the segmenter
standardises the slice, blurs that channel and cuts it. Both are right on the slices of `tiny_slice`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.bundle import Bundle, Normalisation, Operating, Training, write_manifest

LESION_SIDE = 40
MASK_THRESHOLD = 0.5
_OPSET = 18
_IR_VERSION = 8  # the one that belongs to opset 18; older runtimes refuse a newer one


def tiny_slice(seed: int, *, lesion: bool) -> npt.NDArray[np.uint8]:
    """uint8 [256,256,3]: dark noise, with a bright square of 40x40 somewhere in it if asked for."""
    rng = np.random.default_rng(seed)
    image = rng.integers(30, 110, (256, 256, 3), dtype=np.uint8)
    if lesion:
        top, left = rng.integers(20, 256 - LESION_SIDE - 20, 2)
        image[top : top + LESION_SIDE, left : left + LESION_SIDE] = rng.integers(220, 256, dtype=np.uint8)
    return image


def tiny_slices(n: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """uint8 [n,256,256,3]; two of three have a lesion."""
    return np.stack([tiny_slice(seed + i, lesion=i % 3 != 1) for i in range(n)])


def make_tiny_bundle(
    folder: Path,
    *,
    gate_threshold: float = 0.5,
    min_pixels: int = 1,
    sharpness: float = 0.5,
) -> Bundle:
    """Write graphs, model card and bundle.json into `folder` (made if need be) and load them.

    `sharpness` is the classifier's: 0 makes every probability 0.5, NaN makes every probability NaN.
    """
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(classifier_graph(sharpness), folder / "classifier.onnx")
    onnx.save(segmenter_graph(), folder / "segmenter.onnx")
    (folder / "MODEL_CARD.md").write_text("# A bundle for tests\n")
    return write_manifest(
        folder,
        name="tiny",
        date="2026-01-01",
        graphs={"classifier": {"fp32": "classifier.onnx"}, "segmenter": {"fp32": "segmenter.onnx"}},
        files=["MODEL_CARD.md"],
        normalisation=Normalisation(classifier="unit"),
        operating=Operating(
            gate_threshold=gate_threshold,
            mask_threshold=MASK_THRESHOLD,
            min_pixels=min_pixels,
            chosen="by hand",
        ),
        training=Training(data="none", presets={}),
        metrics={},
        versions={"onnx": onnx.__version__},
    )


def classifier_graph(sharpness: float) -> onnx.ModelProto:
    """sigmoid(sharpness * (100 m - 10)): m is the mean square root of what FLAIR has above 150."""
    constants = {
        "channel": np.int64(1),
        "level": np.float32(150),
        "zero": np.float32(0),
        "axes": np.array([1, 2], np.int64),
        "hundred": np.float32(100),
        "middle": np.float32(10),
        "sharpness": np.float32(sharpness),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["x", "channel"], ["flair"], axis=3),
        helper.make_node("Sub", ["flair", "level"], ["above"]),
        helper.make_node("Max", ["above", "zero"], ["bright"]),
        helper.make_node("Sqrt", ["bright"], ["root"]),
        helper.make_node("ReduceMean", ["root", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "hundred"], ["percent"]),
        helper.make_node("Sub", ["percent", "middle"], ["centred"]),
        helper.make_node("Mul", ["centred", "sharpness"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["tumor_probability"]),
    ]
    outputs = [helper.make_tensor_value_info("tumor_probability", TensorProto.FLOAT, ["N"])]
    return _model("classifier", nodes, outputs, constants)


def segmenter_graph() -> onnx.ModelProto:
    """sigmoid(2 * (blur of standardised FLAIR - 3)), cut at MASK_THRESHOLD."""
    blur = np.zeros((1, 3, 3, 3), np.float32)
    blur[0, 1] = 2 / 9
    constants = {
        "columns": np.array([2, 3], np.int64),
        "rest": np.array([1], np.int64),
        "one": np.float32(1),
        "blur": blur,
        "bias": np.array([-6], np.float32),
        "channel": np.array([1], np.int64),
        "threshold": np.float32(MASK_THRESHOLD),
        "full": np.float32(255),
        "half": np.float32(0.5),
        "pixels": np.array([1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "columns"], ["row_means"], keepdims=1),
        helper.make_node("ReduceMean", ["row_means", "rest"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "columns"], ["row_squares"], keepdims=1),
        helper.make_node("ReduceMean", ["row_squares", "rest"], ["variance"], keepdims=1),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Max", ["deviation", "one"], ["scale"]),
        helper.make_node("Div", ["centred", "scale"], ["standardised"]),
        helper.make_node("Transpose", ["standardised"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "blur", "bias"], ["logits"], pads=[1, 1, 1, 1]),
        helper.make_node("Squeeze", ["logits", "channel"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["p"]),
        helper.make_node("GreaterOrEqual", ["p", "threshold"], ["tumour"]),
        helper.make_node("Cast", ["tumour"], ["mask"], to=TensorProto.UINT8),
        helper.make_node("Cast", ["tumour"], ["ones"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["ones", "pixels"], ["mask_pixels"], keepdims=0),
        helper.make_node("Mul", ["p", "full"], ["p255"]),
        helper.make_node("Add", ["p255", "half"], ["p255_half"]),
        helper.make_node("Floor", ["p255_half"], ["p255_rounded"]),
        helper.make_node("Cast", ["p255_rounded"], ["mask_probability"], to=TensorProto.UINT8),
    ]
    outputs = [
        helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", 256, 256]),
        helper.make_tensor_value_info("mask_pixels", TensorProto.INT32, ["N"]),
        helper.make_tensor_value_info("mask_probability", TensorProto.UINT8, ["N", 256, 256]),
    ]
    return _model("segmenter", nodes, outputs, constants)


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, npt.NDArray[np.generic] | np.generic],
) -> onnx.ModelProto:
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 256, 256, 3])
    initializers = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, [images], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return model
