"""Both networks in Keras, as they were trained, with the bundle's weights."""

from __future__ import annotations

from pathlib import Path

import keras

from benchmarks.peers.job import Job
from trainer.classifier import build_classifier, load_weights_by_layer
from trainer.segmenter import build_segmenter


def load_models(job: Job, *, normalise: bool) -> tuple[keras.Model, keras.Model]:
    """Classifier and segmenter, with or without the normalisation in front, in the job's precision."""
    keras.config.set_dtype_policy("mixed_bfloat16" if job.precision == "bf16" else "float32")
    classifier = build_classifier(imagenet_input=job.imagenet_input, normalise=normalise)
    segmenter = build_segmenter(standardise=normalise)
    for model, name in ((classifier, "classifier"), (segmenter, "segmenter")):
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                _neutralise(layer)
        filled = set(load_weights_by_layer(model, Path(job.weights[name])))
        empty = [layer.name for layer in model.layers if layer.weights and layer.name not in filled]
        if left := [name for name in empty if "bn" not in name]:
            raise ValueError(f"the bundle has no weights for {', '.join(left)}")
        if job.compiled:
            model.compile(jit_compile=True)
    return classifier, segmenter


def _neutralise(layer: keras.layers.BatchNormalization) -> None:
    """Have it compute what it always does, to no effect: the convolution before it holds its numbers."""
    layer.moving_mean.assign(keras.ops.zeros_like(layer.moving_mean))
    layer.moving_variance.assign(keras.ops.ones_like(layer.moving_variance) - layer.epsilon)
