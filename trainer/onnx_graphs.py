"""A trained Keras model as an ONNX graph that every runtime takes: uint8 slices in, answers out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from trainer.rewrite import lift_convolutions

OPSET = 18
"""The newest that tf2onnx 1.17 writes rightly (21 fails)."""


def fold_for_export(model: keras.Model) -> keras.Model:
    """A float32 copy for inference whose kernels are rounded to float16.

    Batch normalisations right behind a linear convolution are folded into it and nearest upsampling becomes
    one Resizing layer; every kernel is then rounded to float16, so that this model and the exported graph
    hold the same numbers. Vectors (biases, the normalisations that stay) keep float32: ImageNet variances
    leave float16's range, and they are 0.2% of the size.
    """
    folded = dict(_foldable(model))

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = {**layer.get_config(), "dtype": "float32"}
        if layer in folded:
            return _Folded(name=layer.name, dtype="float32")
        if isinstance(layer, keras.layers.UpSampling2D):
            height, width = layer.output.shape[1:3]
            return keras.layers.Resizing(
                height, width, interpolation="nearest", name=layer.name, dtype="float32"
            )
        if layer in folded.values():
            config["use_bias"] = True
        copy: keras.layers.Layer = layer.__class__.from_config(config)
        return copy

    copied = keras.models.clone_model(model, clone_function=clone)
    convolutions = {conv: bn for bn, conv in folded.items()}
    for layer in model.layers:
        target = copied.get_layer(layer.name)
        if layer in convolutions:
            target.set_weights(_folded_weights(layer, convolutions[layer]))
        elif layer not in folded and layer.weights:
            target.set_weights(layer.get_weights())
    for variable in copied.weights:
        if len(variable.shape) >= 2:
            variable.assign(variable.numpy().astype(np.float16).astype(np.float32))
    return copied


def with_temperature(model: keras.Model, temperature: float) -> keras.Model:
    """The classifier with its logits divided by a temperature before its last softmax; 1 is itself."""
    if temperature == 1:
        return model
    softmax = model.layers[-1]
    if not isinstance(softmax, keras.layers.Softmax):
        raise ValueError(f"{model.name} ends with {softmax.name}, a temperature stands before a Softmax")
    return keras.Model(model.input, softmax(softmax.input / temperature), name=model.name)


def classifier_graph(model: keras.Model) -> onnx.ModelProto:
    """`images` uint8 `[N,S,S,3]` to `tumor_probability` float32 `[N]`, from a folded classifier."""

    def call(images: Any) -> dict[str, Any]:
        return {"tumor_probability": model(images, training=False)[:, 1]}

    return _convert(call, model)


def segmenter_graph(model: keras.Model, mask_threshold: float) -> onnx.ModelProto:
    """`images` to `mask` uint8, `mask_pixels` int32 and `mask_probability` uint8, from a folded segmenter.

    The 1x1 convolutions behind each upsampling are computed before it: same kernels, another order of sums.
    """
    import tensorflow as tf

    def call(images: Any) -> dict[str, Any]:
        probability = model(images, training=False)[..., 0]
        inside = probability >= mask_threshold
        return {
            "mask": tf.cast(inside, tf.uint8),
            "mask_pixels": tf.reduce_sum(tf.cast(inside, tf.int32), axis=(1, 2)),
            "mask_probability": tf.cast(tf.floor(probability * 255.0 + 0.5), tf.uint8),
        }

    return lift_convolutions(_convert(call, model))


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Check and write a graph, kernels stored as float16 with a Cast behind each."""
    stored = store_kernels_as_float16(graph)
    onnx.checker.check_model(stored, full_check=True)
    path.write_bytes(stored.SerializeToString(deterministic=True))


def store_kernels_as_float16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Halve the file: float32 matrices that are float16 numbers are stored so and cast back when loaded.

    Raises ValueError for a large matrix that is not: then a converter changed what was rounded.
    """
    stored = onnx.ModelProto()
    stored.CopyFrom(graph)
    casts = []
    for tensor in stored.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2 or np.prod(tensor.dims) < 256:
            continue
        values = numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            raise ValueError(f"{tensor.name} {list(tensor.dims)} is no longer rounded to float16")
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
        casts.append(
            helper.make_node(
                "Cast", [f"{name}_float16"], [name], name=f"{name}_cast", to=onnx.TensorProto.FLOAT
            )
        )
    for cast in reversed(casts):
        stored.graph.node.insert(0, cast)
    return stored


class _Folded(keras.layers.Layer):  # type: ignore[misc]
    """Stands where a batch normalisation stood; takes the arguments that one is called with."""

    def call(self, inputs: Any, mask: Any = None) -> Any:
        del mask
        return inputs


def _foldable(model: keras.Model) -> list[tuple[keras.layers.Layer, keras.layers.Layer]]:
    pairs = []
    for layer in model.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        before = layer.input._keras_history.operation
        linear = isinstance(before, keras.layers.Conv2D) and before.activation is keras.activations.linear
        if linear and len(before._outbound_nodes) == 1:
            pairs.append((layer, before))
    return pairs


def _folded_weights(conv: keras.layers.Layer, bn: keras.layers.Layer) -> list[npt.NDArray[np.float32]]:
    weights = [np.asarray(value, np.float64) for value in conv.get_weights()]
    kernel, bias = weights[0], weights[1] if conv.use_bias else 0.0
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in bn.get_weights())
    scale = gamma / np.sqrt(variance + bn.epsilon)
    return [(kernel * scale).astype(np.float32), ((bias - mean) * scale + beta).astype(np.float32)]


def _convert(call: Callable[[Any], dict[str, Any]], model: keras.Model) -> onnx.ModelProto:
    import tensorflow as tf
    import tf2onnx

    size = model.input_shape[1]
    signature = [tf.TensorSpec([None, size, size, 3], tf.uint8, name="images")]
    graph, _ = tf2onnx.convert.from_function(tf.function(call), input_signature=signature, opset=OPSET)
    _name_the_batch(graph)
    _mend_resizes(graph)
    graph.producer_name, graph.producer_version = "tumorscan", ""
    graph.graph.name = model.name
    return graph


def _name_the_batch(graph: onnx.ModelProto) -> None:
    for value in [*graph.graph.input, *graph.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "N"


def _mend_resizes(graph: onnx.ModelProto) -> None:
    """For a whole factor these pick the same pixels as tf_half_pixel_for_nn, which TensorRT refuses."""
    for node in graph.graph.node:
        if node.op_type == "Resize":
            del node.attribute[:]
            node.attribute.extend(
                [
                    helper.make_attribute("coordinate_transformation_mode", "asymmetric"),
                    helper.make_attribute("mode", "nearest"),
                    helper.make_attribute("nearest_mode", "floor"),
                ]
            )
