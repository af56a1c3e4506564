"""Runner only: models on inputs that lie on the GPU, on as many streams as a run has lanes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.gpu.clock import Mark
from engine.bundle import Model
from engine.gpu.device import Device, Event, Stream
from engine.gpu.start import Models
from engine.runners.base import INPUT, SIDE, Images
from engine.runners.device import DeviceModel, DeviceRunner

AHEAD: Final = 4
"""Batches on a stream at a time, so that it never runs dry."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many slices in so many seconds."""

    slices: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Slices a second; 0 where no time passed, as on a double."""
        return self.slices / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Seat:
    """A stream with both runners, and where each finds its input and leaves its outputs."""

    stream: Stream
    runners: Mapping[Model, DeviceRunner]
    pointers: Mapping[Model, Mapping[str, int]]

    def enqueue(self, model: Model) -> None:
        """One batch."""
        self.runners[model].enqueue(self.pointers[model])


@contextmanager
def open_seats(device: Device, models: Models, count: int, images: Images) -> Iterator[list[Seat]]:
    """`count` seats, each with `images` [batch,256,256,3] as its input; both models have run in each."""
    staging = device.pagelocked(images.shape, np.uint8)
    staging[:] = images
    with ExitStack() as stack:
        seats = []
        for _ in range(count):
            seat = _seat(device, models, len(images), stack)
            for pointers in seat.pointers.values():
                seat.stream.copy_in(pointers[INPUT], staging)
            for model in seat.runners:
                seat.enqueue(model)
            seat.stream.wait()
            seats.append(seat)
        try:
            yield seats
        finally:  # what is under way uses runners that are about to close
            for seat in seats:
                seat.stream.wait()


def model_rate(device: Device, seat: Seat, model: Model, batch: int, seconds: float) -> Rate:
    """One model on one stream, by the GPU's own clock. The stream is never empty."""
    events = [device.event() for _ in range(AHEAD)]
    batches, deadline = 0, time.monotonic() + seconds
    begun = Mark(seat.stream)
    while batches < 2 * AHEAD or time.monotonic() < deadline:
        event = events[batches % AHEAD]
        if batches >= AHEAD:
            event.wait()
        seat.enqueue(model)
        event.record(seat.stream)
        batches += 1
    ended = Mark(seat.stream)
    ended.wait()
    return Rate(batches * batch, begun.until(ended))


def cascade_rate(device: Device, seats: list[Seat], batch: int, passing: float, seconds: float) -> Rate:
    """Both models, the share `passing` of all slices segmented, on all streams at a time; wall time."""
    events = [[device.event() for _ in range(AHEAD)] for _ in seats]
    begins = threading.Barrier(len(seats) + 1)

    def work(seat: Seat, mine: list[Event]) -> int:
        with device.current():
            begins.wait()
            return _cascade(seat, mine, batch, passing, seconds)

    with ThreadPoolExecutor(len(seats)) as pool:
        done = [pool.submit(work, seat, mine) for seat, mine in zip(seats, events, strict=True)]
        begins.wait()
        began = time.monotonic()
        slices = sum(each.result() for each in done)
        return Rate(slices, time.monotonic() - began)


def _cascade(seat: Seat, events: list[Event], batch: int, passing: float, seconds: float) -> int:
    waiting: deque[Event] = deque()
    free = deque(events)
    batches, passed, deadline = 0, 0.0, time.monotonic() + seconds
    while batches < 2 * AHEAD or time.monotonic() < deadline:
        if not free:
            oldest = waiting.popleft()
            oldest.wait()
            free.append(oldest)
        seat.enqueue("classifier")
        passed += passing
        if passed >= 1:
            passed -= 1
            seat.enqueue("segmenter")
        event = free.popleft()
        event.record(seat.stream)
        waiting.append(event)
        batches += 1
    seat.stream.wait()
    return batches * batch


def _seat(device: Device, models: Models, batch: int, stack: ExitStack) -> Seat:
    stream = device.stream()
    workspace = device.memory(max(model.workspace(batch) for model in models))
    runners: dict[Model, DeviceRunner] = {}
    pointers: dict[Model, Mapping[str, int]] = {}
    for model in models:
        runners[model.model] = runner = model.make(stream.handle, batch, workspace)
        stack.callback(runner.close)
        pointers[model.model] = _memory(device, model, batch)
    return Seat(stream, runners, pointers)


def _memory(device: Device, model: DeviceModel, batch: int) -> dict[str, int]:
    sizes = {INPUT: SIDE * SIDE * 3}
    sizes |= {
        name: spec.dtype.itemsize * int(np.prod(spec.shape, dtype=int))
        for name, spec in model.outputs.items()
    }
    return {name: device.memory(batch * size) for name, size in sizes.items()}
