"""MONAI: its reader, transforms, DataLoader and inferer, on the PyTorch networks."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import DataLoader, Dataset, PILReader
from monai.inferers import SimpleInferer
from monai.transforms import Compose, EnsureTyped, LoadImaged, Transposed

from benchmarks.peers.job import Job, Results
from benchmarks.peers.torch_loop import Gathered, padded
from benchmarks.peers.torch_models import load_models


@torch.no_grad()
def main() -> None:
    job = Job.from_command_line()
    classifier, segmenter = load_models(job)
    for model in (classifier, segmenter):
        model(torch.from_numpy(job.blank))
    inferer = SimpleInferer()
    results = Results(job)
    gathered = Gathered(lambda images: inferer(images, segmenter), results)
    for batch in slices(job):
        images, paths = batch["image"], batch["path"]
        probabilities = inferer(padded(images, job.batch), classifier).tolist()
        for path, probability, image in zip(paths, probabilities, images, strict=False):
            if probability < job.gate_threshold:
                results.add(path, probability)
            else:
                gathered.add(path, probability, image)
    gathered.flush()
    results.finish()


def slices(job: Job) -> DataLoader:
    """Batches of `image` `[n,256,256,3] uint8` and `path`."""
    read = Compose(
        [
            LoadImaged("image", reader=PILReader(), dtype=np.uint8, image_only=True),
            Transposed("image", (1, 0, 2)),  # the reader gives columns first
            EnsureTyped("image", dtype=torch.uint8, track_meta=False),
        ]
    )
    files = Dataset([{"image": path, "path": path} for path in job.files], read)
    return DataLoader(files, batch_size=job.batch, num_workers=max(1, job.cores // 2))


if __name__ == "__main__":
    main()
