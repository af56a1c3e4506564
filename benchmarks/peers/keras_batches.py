"""Keras `predict` in batches that tf.data reads ahead: all are classified, then those that pass segmented."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from benchmarks.peers.job import Images, Job, Results, read_slice
from benchmarks.peers.keras_models import load_models


def main() -> None:
    job = Job.from_command_line()
    classifier, segmenter = load_models(job, normalise=True)
    for model in (classifier, segmenter):
        for count in (job.batch, 1):  # the last batch is another shape
            model.predict(job.blank[:count], verbose=0)
    results = Results(job)
    probabilities = classifier.predict(slices(job.files, job.batch), verbose=0)[:, 1]
    passing = []
    for path, probability in zip(job.files, probabilities, strict=True):
        if probability < job.gate_threshold:
            results.add(path, probability)
        else:
            passing.append((path, probability))
    if passing:
        masks = segmenter.predict(slices([path for path, _ in passing], job.batch), verbose=0)[..., 0]
        for (path, probability), mask in zip(passing, masks, strict=True):
            results.add(path, probability, mask)
    results.finish()


def slices(paths: Sequence[str], batch: int) -> tf.data.Dataset:
    """Batches `[n,256,256,3] uint8`, read by as many threads as tf.data sees fit."""

    def read(path: bytes) -> Images:
        return read_slice(path.decode())

    def load(path: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(read, [path], tf.uint8), (256, 256, 3))

    files = tf.data.Dataset.from_tensor_slices(np.array(paths))
    return files.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(batch).prefetch(tf.data.AUTOTUNE)


if __name__ == "__main__":
    main()
