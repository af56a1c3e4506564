"""The classifier: ResNet50 with a small head, which says whether a slice shows a tumour."""

from __future__ import annotations

import zipfile
from pathlib import Path

import keras
import numpy as np
from keras import layers

from engine.errors import UsageError
from trainer.normalise import ImageNetBGR, UnitRange

INPUT_SIZE = 256
HEAD_UNITS = 256
DROPOUT = 0.3


def build_classifier(*, imagenet_input: bool, momentum: float = 0.99, normalise: bool = True) -> keras.Model:
    """Build ResNet50, 4x4 average pool, flatten, dense 256, dropout, dense 256, dropout, softmax 2.

    Args:
        imagenet_input: normalise as the ImageNet weights expect (BGR less the means), else to 0..1.
        momentum: of every batch normalisation.
        normalise: put the normalisation in front (the exporter puts its own there).

    Returns:
        A model from `images` `[N,256,256,3]` (0..255 RGB, or normalised) to `[N,2]` float32, tumour second.
    """
    images = keras.Input((INPUT_SIZE, INPUT_SIZE, 3), name="images")
    if normalise:
        layer = ImageNetBGR(name="imagenet_bgr") if imagenet_input else UnitRange(name="unit_range")
        x = layer(images)
    else:
        x = images
    backbone = keras.applications.ResNet50(weights=None, include_top=False, input_tensor=x)
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = momentum
    x = layers.AveragePooling2D(4, name="head_pool")(backbone.output)
    x = layers.Flatten(name="head_flatten")(x)
    for index in (1, 2):
        x = layers.Dense(HEAD_UNITS, activation="relu", name=f"head_dense{index}")(x)
        x = layers.Dropout(DROPOUT, name=f"head_dropout{index}")(x)
    logits = layers.Dense(2, dtype="float32", name="logits")(x)
    return keras.Model(images, layers.Softmax(dtype="float32", name="classes")(logits), name="resnet50")


def load_weights_by_layer(model: keras.Model, path: Path) -> list[str]:
    """Fill layers from an .npz of `LAYER/kernel`, `LAYER/bias`, `LAYER/gamma` ... arrays.

    Args:
        model: the model to fill; layers that the file does not name keep their initial values.
        path: the .npz file; read without pickle.

    Returns:
        The names of the layers filled, in the model's order.

    Raises:
        UsageError: the file is no such archive, fills no layer, or an array has another shape.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path}: not an .npz file of weights ({error}); give a file of LAYER/kernel arrays"
        ) from error
    filled = []
    for layer in model.layers:
        found = False
        for variable in layer.weights:
            key = f"{layer.name}/{variable.name}"
            if key not in arrays:
                continue
            if tuple(arrays[key].shape) != tuple(variable.shape):
                raise UsageError(
                    f"{path}: {key} has shape {arrays[key].shape}, the model wants {tuple(variable.shape)}"
                )
            variable.assign(arrays[key].astype(np.float32))
            found = True
        if found:
            filled.append(layer.name)
    if not filled:
        raise UsageError(f"{path}: none of its {len(arrays)} arrays names a layer of {model.name}")
    return filled
