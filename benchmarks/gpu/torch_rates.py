"""Both networks in PyTorch on the GPU: float16, channels last, with torch.compile or without.

The networks are those of benchmarks.peers, with the bundle's weights: the graphs rebuilt.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.gpu.alone import AHEAD
from benchmarks.gpu.models import bundle_of
from benchmarks.gpu.settings import GPU, Settings
from benchmarks.peers.job import Job
from benchmarks.peers.torch_models import Classifier, Segmenter
from benchmarks.peers.weights import write_weights
from engine.bundle import Bundle, Model
from engine.errors import MachineError
from engine.runners.base import Images, Outputs, Precision, check_images

MEASURED_SIDE: Final = 8192


class TorchModels:
    """Both, warmed up, with a batch on the GPU; `lanes` streams."""

    def __init__(self, settings: Settings, images: Images, lanes: int, *, compiled: bool) -> None:
        device = cuda_device()
        self._models = load_networks(bundle_of(settings), settings.folder, device, compiled=compiled)
        self._images = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        self._streams = [torch.cuda.Stream(device) for _ in range(lanes)]
        self._batch = len(images)
        with torch.inference_mode():
            for _ in range(3):
                for network in self._models.values():
                    network(self._images)
        torch.cuda.synchronize()

    @torch.inference_mode()
    def model_rate(self, model: Model, seconds: float) -> tuple[int, float]:
        """See `benchmarks.gpu.alone.model_rate`."""
        network, stream = self._models[model], self._streams[0]
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        events = [torch.cuda.Event(blocking=True) for _ in range(AHEAD)]
        batches, deadline = 0, time.monotonic() + seconds
        with torch.cuda.stream(stream):
            begun.record(stream)
            while batches < 2 * AHEAD or time.monotonic() < deadline:
                event = events[batches % AHEAD]
                if batches >= AHEAD:
                    event.synchronize()
                network(self._images)
                event.record(stream)
                batches += 1
            ended.record(stream)
        ended.synchronize()
        return batches * self._batch, begun.elapsed_time(ended) / 1e3

    @torch.inference_mode()
    def cascade_rate(self, passing: float, seconds: float) -> tuple[int, float]:
        """See `benchmarks.gpu.alone.cascade_rate`; one thread drives all streams, as PyTorch's users do."""
        events = [[torch.cuda.Event(blocking=True) for _ in range(AHEAD)] for _ in self._streams]
        batches, passed, began = 0, 0.0, time.monotonic()
        while batches < 2 * AHEAD * len(self._streams) or time.monotonic() < began + seconds:
            place, turn = batches % len(self._streams), batches // len(self._streams)
            stream, event = self._streams[place], events[place][turn % AHEAD]
            if turn >= AHEAD:
                event.synchronize()
            with torch.cuda.stream(stream):
                self._models["classifier"](self._images)
                passed += passing
                if passed >= 1:
                    passed -= 1
                    self._models["segmenter"](self._images)
                event.record(stream)
            batches += 1
        torch.cuda.synchronize()
        return batches * self._batch, time.monotonic() - began


class TorchRunner:
    """One network behind the protocol of all runners, for the parity gate."""

    name = "torch"
    precision: Precision = "fp16"
    concurrency = 1

    def __init__(self, network: Any, model: Model, device: torch.device, threshold: float) -> None:
        self.version: str = torch.__version__
        self.options: dict[str, str | int] = {}
        self.outputs = ("tumor_probability",) if model == "classifier" else ("mask", "mask_pixels")
        self._network, self._model, self._device = network, model, device
        self._threshold = threshold

    @torch.inference_mode()
    def infer(self, images: Images) -> Outputs:
        """See `Runner.infer`."""
        check_images(images)
        found = self._network(torch.from_numpy(images).to(self._device)).cpu().numpy()
        if self._model == "classifier":
            return {"tumor_probability": found}
        masks = (found >= self._threshold).astype(np.uint8)
        return {"mask": masks, "mask_pixels": masks.sum(axis=(1, 2), dtype=np.int32)}

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(self, *_: object) -> None: ...


def cuda_device() -> torch.device:
    """The GPU. MachineError where this PyTorch has none."""
    if not torch.cuda.is_available():
        raise MachineError(f"this PyTorch ({torch.__version__}) sees no GPU")
    return torch.device("cuda", GPU)


def load_networks(bundle: Bundle, folder: Path, device: torch.device, *, compiled: bool) -> dict[Model, Any]:
    """Both in float16, channels last. UsageError for a bundle that was not exported from Keras."""
    place = folder / f"torch-{os.getpid()}"
    place.mkdir(parents=True, exist_ok=True)
    weights = {str(model): str(path) for model, path in write_weights(bundle, place).items()}
    job = job_of(bundle, weights, compiled=compiled)
    torch.backends.cudnn.benchmark = True
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
    networks: dict[Model, Any] = {}
    for model, network in (("classifier", Classifier(job)), ("segmenter", Segmenter(job))):
        network.eval().to(device).to(memory_format=torch.channels_last)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
            parameter.data = parameter.data.half()
        networks[model] = torch.compile(network) if compiled else network  # type: ignore[index]
    return networks


def job_of(bundle: Bundle, weights: dict[str, str], *, compiled: bool) -> Job:
    """What the networks and the loop have to know of the bundle."""
    return Job(
        files=[],
        out="",
        graphs={},
        weights=weights,
        imagenet_input=bundle.manifest.normalisation.classifier == "imagenet_bgr",
        gate_threshold=bundle.gate_threshold,
        mask_threshold=bundle.mask_threshold,
        min_pixels=bundle.min_pixels,
        precision="fp16",
        compiled=compiled,
        batch=1,
        cores=1,
    )


@torch.inference_mode()
def matrix_rate(seconds: float) -> float:
    """Operations a second of a large float16 matrix product, on random numbers."""
    device = cuda_device()
    first, second = (
        torch.randn(MEASURED_SIDE, MEASURED_SIDE, device=device, dtype=torch.float16) for _ in range(2)
    )
    out = torch.empty_like(first)
    for _ in range(5):
        torch.matmul(first, second, out=out)
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    count, deadline = 0, time.monotonic() + seconds
    begun.record()
    while count < 10 or time.monotonic() < deadline:
        for _ in range(10):
            torch.matmul(first, second, out=out)
        count += 10
        torch.cuda.current_stream().synchronize()
    ended.record()
    ended.synchronize()
    return float(count * 2 * MEASURED_SIDE**3 / (begun.elapsed_time(ended) / 1e3))
