"""PyTorch from files to masks and a table, as its users would write it, on the GPU.

`python -m benchmarks.gpu.torch_loop KIND OUT`, settings in the environment. As benchmarks.peers.torch_loop,
but in float16, with pinned batches; slices that pass the gate stay on the GPU until they fill a batch.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.gpu.models import bundle_of
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.torch_rates import cuda_device, job_of, load_networks
from benchmarks.gpu.worker import VARIABLE
from benchmarks.peers.job import Results
from benchmarks.peers.torch_loop import Slices, padded


class Gathered:
    """Segments slices as soon as a batch of them has passed."""

    def __init__(self, segmenter: torch.nn.Module, results: Results, batch: int) -> None:
        self._segmenter, self._results, self._batch = segmenter, results, batch
        self._waiting: list[tuple[str, float, Tensor]] = []

    def add(self, path: str, probability: float, image: Tensor) -> None:
        self._waiting.append((path, probability, image))
        if len(self._waiting) == self._batch:
            self.flush()

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            images = padded(torch.stack([image for _, _, image in waiting]), self._batch)
            masks = (self._segmenter(images) >= self._results.job.mask_threshold).byte().cpu().numpy()
            for (path, probability, _), mask in zip(waiting, masks, strict=False):
                self._results.add_mask(path, probability, mask)


@torch.inference_mode()
def main() -> None:
    kind, out = sys.argv[1:]
    settings = Settings.decode(os.environ[VARIABLE])
    device, bundle, batch = cuda_device(), bundle_of(settings), settings.batch
    networks = load_networks(bundle, settings.folder, device, compiled=kind == "compiled")
    for network in networks.values():
        network(torch.zeros((batch, 256, 256, 3), dtype=torch.uint8, device=device))
    torch.cuda.synchronize()
    files = sorted(str(path) for path in settings.many.rglob("*") if path.is_file())
    Path(out).mkdir(parents=True)
    results = Results(replace(job_of(bundle, {}, compiled=False), files=files, out=out))
    gathered = Gathered(networks["segmenter"], results, batch)
    loader = DataLoader(Slices(files), batch, num_workers=settings.workers, pin_memory=True)
    for images, places in loader:
        there = padded(images.to(device, non_blocking=True), batch)
        probabilities = networks["classifier"](there).tolist()
        for place, probability, image in zip(places.tolist(), probabilities, there, strict=False):
            if probability < bundle.gate_threshold:
                results.add(files[place], probability)
            else:
                gathered.add(files[place], probability, image)
    gathered.flush()
    results.finish()


if __name__ == "__main__":
    main()
