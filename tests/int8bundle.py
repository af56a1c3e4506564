"""A bundle whose classifier is a small residual network, as int8 graphs need convolutions to be made of.

Its first channel carries how much of FLAIR is bright, through two blocks whose own kernels are drawn at
random and small; the second block begins with a stride in its 1x1 convolutions, as ResNet50's do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.bundle import Bundle, Normalisation, Operating, Training, write_manifest
from tests.badfiles import tiff
from tests.tinybundle import MASK_THRESHOLD, segmenter_graph, tiny_slice
from trainer.dataset import Split

WIDTH = 16
_SHAPE = {"kernel_shape": [1, 1]}
_WIDE = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
_EVEN = {"strides": [2, 2]}


def residual_classifier(seed: int = 0) -> onnx.ModelProto:
    """Stem, padded pool, two residual blocks, mean, dense layer, softmax; opset 18."""
    rng = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[np.generic]] = {
        "scale": np.float32(1 / 255).reshape(()),
        "edges": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "nothing": np.float32(0).reshape(()),
        "spatial": np.array([2, 3], np.int64),
        "dense": np.zeros((WIDTH, 2), np.float32),
        "offset": np.array([0, -3], np.float32),
        "first": np.array([1], np.int64),
        "last": np.array([2], np.int64),
        "axis": np.array([1], np.int64),
    }
    weights["dense"][0, 1] = 300  # type: ignore[index]
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
    ]

    def convolution(
        name: str, source: str, width: int, identity: float, size: int, **attributes: object
    ) -> None:
        kernel = rng.normal(0, 0.1 / size, (WIDTH, width, size, size)).astype(np.float16).astype(np.float32)
        kernel[0] = 0
        kernel[0, min(1, width - 1) if name == "stem" else 0, size // 2, size // 2] = identity
        weights[f"{name}_kernel"] = kernel
        weights[f"{name}_bias"] = rng.uniform(0, 0.1, WIDTH).astype(np.float32)
        weights[f"{name}_bias"][0] = -0.7 if name == "stem" else 0  # type: ignore[index]
        inputs = [source, f"{name}_kernel", f"{name}_bias"]
        nodes.append(helper.make_node("Conv", inputs, [name], f"{name}_node", **attributes))

    def relu(source: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [f"{source}_relu"]))
        return f"{source}_relu"

    def block(name: str, source: str, stride: dict[str, object]) -> str:
        convolution(f"{name}_short", source, WIDTH, 1, 1, **_SHAPE, **stride)
        convolution(f"{name}_1", source, WIDTH, 0, 1, **_SHAPE, **stride)
        convolution(f"{name}_2", relu(f"{name}_1"), WIDTH, 0, 3, **_WIDE)
        convolution(f"{name}_3", relu(f"{name}_2"), WIDTH, 0, 1, **_SHAPE)
        nodes.append(helper.make_node("Add", [f"{name}_short", f"{name}_3"], [f"{name}_sum"]))
        return relu(f"{name}_sum")

    convolution("stem", "planes", 3, 1, 3, **_WIDE, **_EVEN)
    nodes += [
        helper.make_node("Relu", ["stem"], ["stem_relu"]),
        helper.make_node("Pad", ["stem_relu", "edges", "nothing"], ["padded"]),
        helper.make_node("MaxPool", ["padded"], ["pooled"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    end = block("two", block("one", "pooled", {}), _EVEN)
    nodes += [
        helper.make_node("ReduceMean", [end, "spatial"], ["features"], keepdims=0),
        helper.make_node("MatMul", ["features", "dense"], ["weighed"]),
        helper.make_node("Add", ["weighed", "offset"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["classes"]),
        helper.make_node("Slice", ["classes", "first", "last", "axis"], ["tumour"]),
        helper.make_node("Squeeze", ["tumour", "axis"], ["tumor_probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 256, 256, 3])],
        [helper.make_tensor_value_info("tumor_probability", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def make_int8_bundle(folder: Path, split: Split | None = None) -> Bundle:
    """Write a bundle with float graphs, and with `split` if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(residual_classifier(), folder / "classifier.onnx")
    onnx.save(segmenter_graph(), folder / "segmenter.onnx")
    files = []
    training = Training(data="none", presets={})
    if split is not None:
        split.save(folder / "split.json")
        files = ["split.json"]
        training = Training(data="none", presets={}, split_file="split.json", split_sha256=split.sha256)
    return write_manifest(
        folder,
        name="int8",
        date="2026-01-01",
        graphs={"classifier": {"fp32": "classifier.onnx"}, "segmenter": {"fp32": "segmenter.onnx"}},
        files=files,
        normalisation=Normalisation(classifier="unit"),
        operating=Operating(
            gate_threshold=0.5, mask_threshold=MASK_THRESHOLD, min_pixels=8, chosen="by hand"
        ),
        training=training,
        metrics={},
        versions={},
    )


def write_patients(folder: Path, patients: int = 6, slices: int = 6) -> Split:
    """Slices of `patients` with their true masks; the split trains on all but three of them."""
    names = [f"TCGA_CS_{number:04}_19990101" for number in range(patients)]
    for patient, name in enumerate(names):
        for number in range(slices):
            image = tiny_slice(10 * patient + number, lesion=number % 3 != 1)
            bright = (image[..., 1] >= 220).astype(np.uint8)
            path = folder / name / f"{name}_{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tiff(256, 256, pixels=image.tobytes()))
            mask = tiff(256, 256, channels=1, pixels=(255 * bright).tobytes())
            path.with_name(f"{path.stem}_mask.tif").write_bytes(mask)
    return Split("patient", 0, tuple(names[:-3]), tuple(names[-3:-1]), tuple(names[-1:]))
