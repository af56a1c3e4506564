"""ONNX Runtime with its defaults, in a plain loop over batches: the bundle's own graphs."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from benchmarks.peers.job import Job, Results, read_slice


def main() -> None:
    job = Job.from_command_line()
    classifier = ort.InferenceSession(job.graphs["classifier"])
    segmenter = ort.InferenceSession(job.graphs["segmenter"])
    classifier.run(["tumor_probability"], {"images": job.blank})
    segmenter.run(["mask"], {"images": job.blank})
    results = Results(job)
    for start in range(0, len(job.files), job.batch):
        paths = job.files[start : start + job.batch]
        images = np.stack([read_slice(path) for path in paths])
        (probabilities,) = classifier.run(["tumor_probability"], {"images": images})
        passes = probabilities >= job.gate_threshold
        masks = iter(segmenter.run(["mask"], {"images": images[passes]})[0] if passes.any() else ())
        for path, probability, passed in zip(paths, probabilities, passes, strict=True):
            results.add_mask(path, probability, next(masks) if passed else None)
    results.finish()


if __name__ == "__main__":
    main()
