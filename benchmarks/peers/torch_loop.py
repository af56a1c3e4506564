"""PyTorch: a DataLoader reads ahead, slices that pass the gate are gathered into whole batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.job import Job, Results, read_slice
from benchmarks.peers.torch_models import load_models


class Slices(Dataset[tuple[Tensor, int]]):
    """Slices `[256,256,3] uint8` and their places."""

    def __init__(self, files: list[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return torch.from_numpy(read_slice(self.files[place])), place


class Gathered:
    """Segments slices as soon as a batch of them has passed; every batch is whole, or padded to be."""

    def __init__(self, segmenter: Callable[[Tensor], Tensor], results: Results) -> None:
        self._segmenter = segmenter
        self._results = results
        self._batch = results.job.batch
        self._waiting: list[tuple[str, float, Tensor]] = []

    def add(self, path: str, probability: float, image: Tensor) -> None:
        self._waiting.append((path, probability, image))
        if len(self._waiting) == self._batch:
            self.flush()

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            images = padded(torch.stack([image for _, _, image in waiting]), self._batch)
            masks = self._segmenter(images).numpy()
            for (path, probability, _), mask in zip(waiting, masks, strict=False):
                self._results.add(path, probability, mask)


def padded(images: Tensor, batch: int) -> Tensor:
    """As many slices as a batch has: another shape would be compiled anew."""
    missing = batch - len(images)
    return images if missing == 0 else torch.cat([images, images.new_zeros(missing, *images.shape[1:])])


@torch.no_grad()
def main() -> None:
    job = Job.from_command_line()
    classifier, segmenter = load_models(job)
    for model in (classifier, segmenter):
        model(torch.from_numpy(job.blank))
    results = Results(job)
    gathered = Gathered(segmenter, results)
    for images, places in DataLoader(Slices(job.files), job.batch, num_workers=max(1, job.cores // 2)):
        probabilities = classifier(padded(images, job.batch)).tolist()
        for place, probability, image in zip(places.tolist(), probabilities, images, strict=False):
            if probability < job.gate_threshold:
                results.add(job.files[place], probability)
            else:
                gathered.add(job.files[place], probability, image)
    gathered.flush()
    results.finish()


if __name__ == "__main__":
    main()
