"""Sections `chip` and `overlap`: what the GPU can do at all, and what it does at once."""

from __future__ import annotations

import numpy as np

from benchmarks.gpu import matrix
from benchmarks.gpu.alone import model_rate, open_seats
from benchmarks.gpu.copies import bandwidth, copies, registered
from benchmarks.gpu.data import first_batch, resident
from benchmarks.gpu.models import RUNTIMES, Kind, bundle_of, laned, open_kind
from benchmarks.gpu.overlap import lanes_at_work, together
from benchmarks.gpu.settings import GPU, Settings
from benchmarks.gpu.told import Told
from engine.bundle import Model
from engine.cascade import OperatingPoint
from engine.gpu.device import Stream, open_device
from engine.gpu.start import Models
from engine.scorer import gate_for_gpu

COPIES: dict[str, str] = {
    "host to GPU, a batch of the ring": "copy in",
    "within the GPU": "memory",
}
"""By the name of a copy, the name under which later sections know its bandwidth."""


def measure_chip(settings: Settings, told: Told) -> None:
    """Copies by their direction, and large float16 matrix products by every library that is here."""
    seconds = settings.seconds_each(9, most=1.0)
    best: dict[str, float] = {}
    for _ in range(settings.repeats):
        with told.left_out("copies"), open_device(GPU) as device:
            stream = device.stream()
            for copy in copies(device, stream, settings.batch, small=settings.dry):
                rate = bandwidth(stream, copy, seconds)
                told.value({"copy": copy.name, "bytes": str(copy.moved)}, "rate", "GB/s", rate / 1e9)
                _keep(best, COPIES.get(copy.name, ""), rate, told)
    if settings.dry:
        told.note("float16 matrix products are left out: a double has none")
    ways = {"PyTorch": matrix.by_torch, "ONNX Runtime": matrix.by_onnxruntime, "TensorRT": matrix.by_tensorrt}
    for title, way in {} if settings.dry else ways.items():
        with told.left_out(f"a float16 matrix product by {title}"):
            for _ in range(settings.repeats):
                rate = way(seconds)
                told.value(
                    {"matrix product": title, "side": str(matrix.SIDE)}, "rate", "TFLOP/s", rate / 1e12
                )
                _keep(best, "matrix", rate, told)


def _keep(best: dict[str, float], name: str, rate: float, told: Told) -> None:
    """Let later sections know the best that there was of what has a name."""
    if name and rate > best.get(name, 0.0):
        best[name] = rate
        told.known(name, rate)


def measure_overlap(settings: Settings, told: Told) -> None:
    """Copying beside computing on two streams, and what the lanes themselves hide."""
    for kind in (*laned(settings), "paced"):
        title = RUNTIMES[kind].title
        with told.left_out(f"{title}, copies beside batches"):
            _measure_together(kind, settings, told)
        for lanes in (1, settings.lanes):
            with told.left_out(f"{title}, {lanes} lanes at work"):
                _measure_lanes(kind, lanes, settings, told)


def _measure_together(kind: Kind, settings: Settings, told: Told) -> None:
    images = first_batch(settings.slices, settings.batch)
    with (
        open_device(GPU) as device,
        open_kind(kind, settings, settings.batch) as models,
        open_seats(device, models, 1, images) as (seat,),
    ):
        ring, back = registered(device, images.nbytes), device.pagelocked((images.nbytes,), np.uint8)
        there = device.memory(images.nbytes)

        def copy_in(stream: Stream) -> None:
            stream.copy_in(there, ring)

        def copy_out(stream: Stream) -> None:
            stream.copy_out(back, there)

        model: Model = "classifier"
        seconds = settings.seconds_each(4, most=0.5)
        rate = model_rate(device, seat, model, settings.batch, seconds)
        batches = 3 if settings.dry else max(3, round(rate.per_second * seconds / settings.batch))
        for _ in range(settings.repeats):
            for name, copy in (("copies in", copy_in), ("copies out", copy_out)):
                found = together(device, seat, copy, batches, batches)
                of = {"runtime": kind, "what": f"{name} beside batches", "batches": str(batches)}
                told.value(of, "copies alone", "s", found.copies)
                told.value(of, "batches alone", "s", found.batches)
                told.value(of, "both at once", "s", found.both)
                told.value(of, "hidden", "1", found.hidden)


def _measure_lanes(kind: Kind, lanes: int, settings: Settings, told: Told) -> None:
    gate = gate_for_gpu(OperatingPoint.of(bundle_of(settings)))
    blocks = 3 if settings.dry else 60 * lanes
    with resident(settings.slices, settings.batch, min(16, blocks) * settings.batch) as memory:
        for _ in range(settings.repeats):
            with open_device(GPU) as device, open_kind(kind, settings, settings.batch) as models:
                loaded: Models = models
                found = lanes_at_work(device, loaded, memory, lanes=lanes, gate=gate, blocks=blocks)
            of = {"runtime": kind, "what": "lanes at work", "lanes": str(lanes), "blocks": str(blocks)}
            told.value(of, "time with a model at work", "1", found.computing)
            told.value(of, "copies in that are hidden", "1", found.in_hidden)
            told.value(of, "copies out that are hidden", "1", found.out_hidden)
