"""Ray Data: its tasks read the images, one actor runs the whole cascade on each batch by ONNX Runtime.

Ray starts the actor, which loads the models, when the data begins to flow. Time is counted from the actor's
first batch, so that neither this nor the reading ahead of it counts against Ray.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.peers.job import COLUMNS, Job, Results

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name; all others run at the usual priority


class Cascade:
    """Scores batches, writes their masks, gives their rows."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.classifier = ort.InferenceSession(job.graphs["classifier"])
        self.segmenter = ort.InferenceSession(job.graphs["segmenter"])
        self.classifier.run(["tumor_probability"], {"images": job.blank})
        self.segmenter.run(["mask"], {"images": job.blank})
        self.began: float | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.began is None:
            self.began = time.monotonic()
        images = np.ascontiguousarray(batch["image"], np.uint8)
        (probabilities,) = self.classifier.run(["tumor_probability"], {"images": images})
        passes = probabilities >= self.job.gate_threshold
        masks = iter(self.segmenter.run(["mask"], {"images": images[passes]})[0] if passes.any() else ())
        results = Results(self.job)
        for path, probability, passed in zip(batch["path"], probabilities, passes, strict=True):
            results.add_mask(path, probability, next(masks) if passed else None)
        rows = list(results.rows.values())
        columns = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
        return {**columns, "began": np.full(len(rows), self.began)}


def main() -> None:
    import ray

    job = Job.from_command_line()
    ray.init(num_cpus=job.cores, include_dashboard=False, log_to_driver=False, logging_level="error")
    slices = ray.data.read_images(job.files, mode="RGB", include_paths=True)
    scored = slices.map_batches(Cascade, fn_constructor_args=(job,), batch_size=job.batch, concurrency=1)
    rows = scored.take_all()
    results = Results(job, began=min(row.pop("began") for row in rows))
    results.rows = {row["image_path"]: row for row in rows}
    results.finish()
    ray.shutdown()


if __name__ == "__main__":
    main()
