"""The article's own loop: Keras `predict`, one slice at a time, each model's normalisation done in numpy."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.job import Images, Job, Results, read_slice
from benchmarks.peers.keras_models import load_models

IMAGENET_BGR_MEANS = np.array([103.939, 116.779, 123.68])


def main() -> None:
    job = Job.from_command_line()
    classifier, segmenter = load_models(job, normalise=False)
    for model in (classifier, segmenter):
        model.predict(job.blank[:1].astype(np.float64), verbose=0)
    results = Results(job)
    for path in job.files:
        image = read_slice(path)
        probability = classifier.predict(for_classifier(image, job), verbose=0)[0, 1]
        if probability < job.gate_threshold:
            results.add(path, probability)
            continue
        mask = segmenter.predict(for_segmenter(image), verbose=0)[0, ..., 0]
        results.add(path, probability, mask)
    results.finish()


def for_classifier(image: Images, job: Job) -> np.ndarray:
    """One slice as a batch `[1,256,256,3] float64`."""
    values = np.array(image, dtype=np.float64)
    values = values[..., ::-1] - IMAGENET_BGR_MEANS if job.imagenet_input else values / 255.0
    return np.reshape(values, (1, 256, 256, 3))


def for_segmenter(image: Images) -> np.ndarray:
    """The same, standardised."""
    values = np.array(image, dtype=np.float64)
    values -= values.mean()
    values /= max(values.std(), 1.0)
    return np.reshape(values, (1, 256, 256, 3))


if __name__ == "__main__":
    main()
