"""How much of the copying hides behind computing, by events: two streams alone, and the lanes at work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from unittest import mock

import numpy as np

from benchmarks.gpu.alone import Seat
from benchmarks.gpu.clock import Mark
from benchmarks.gpu.data import Resident
from engine.gpu.device import Device, Stream
from engine.gpu.lane import SEATS, Work
from engine.gpu.lanes import open_lanes
from engine.gpu.results import Results
from engine.gpu.start import Models
from engine.runners.base import SIDE
from engine.runners.device import DeviceModel, DeviceRunner

LIMIT: Final = 120.0
"""Seconds in which lanes have scored what they were given."""

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Together:
    """Seconds of so many copies, of so many batches, and of both at once on two streams."""

    copies: float
    batches: float
    both: float

    @property
    def hidden(self) -> float:
        """The share of the shorter one that the longer one hid: 1 is all, 0 is one behind the other."""
        shorter = min(self.copies, self.batches)
        return (self.copies + self.batches - self.both) / shorter if shorter else 0.0


def together(
    device: Device, seat: Seat, copy: Callable[[Stream], None], batches: int, copies: int
) -> Together:
    """Time them alone and then at once. `copy` puts a copy on the stream that it is given."""
    other = device.stream()

    def compute(stream: Stream) -> None:
        del stream  # the runner has its own
        seat.enqueue("classifier")

    alone = _alone(other, copy, copies), _alone(seat.stream, compute, batches)
    begun = Mark(seat.stream)
    begun.hold_up(other)
    for _ in range(copies):
        copy(other)
    for _ in range(batches):
        compute(seat.stream)
    ends = Mark(other), Mark(seat.stream)
    for end in ends:
        end.wait()
    return Together(*alone, max(begun.until(end) for end in ends))


def _alone(stream: Stream, enqueue: Callable[[Stream], None], count: int) -> float:
    begun = Mark(stream)
    for _ in range(count):
        enqueue(stream)
    ended = Mark(stream)
    ended.wait()
    return begun.until(ended)


@dataclass(frozen=True, slots=True)
class AtWork:
    """Shares of the time in which lanes were at work, and of the copying: how much of it was hidden.

    `computing`: some stream was at a model; `copied in hidden`, `copied out hidden`: of the time of these
    """

    slices: int
    seconds: float
    computing: float
    in_hidden: float
    out_hidden: float


@dataclass(slots=True)
class Watch:
    """Marks before and behind everything that lanes put on their streams."""

    spans: list[tuple[str, int, Mark, Mark]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def around(self, kind: str, stream: Stream, work: Callable[[], None]) -> None:
        begun = Mark(stream)
        work()
        ended = Mark(stream)
        with self.lock:
            self.spans.append((kind, stream.handle, begun, ended))


def lanes_at_work(
    device: Device, models: Models, memory: Resident, *, lanes: int, gate: float | None, blocks: int
) -> AtWork:
    """Have lanes in this process score `blocks` blocks, with marks around all that they do."""
    watch, streams = Watch(), dict[int, Stream]()
    watched = tuple(_WatchedModel(model, watch, streams) for model in models)
    failures: list[BaseException] = []
    done = threading.Semaphore(0)

    def failed(error: BaseException) -> None:
        failures.append(error)
        for _ in range(blocks):
            done.release()

    with open_lanes(
        device, (watched[0], watched[1]), count=lanes, batch=memory.batch, gate=gate, failed=failed
    ) as opened:
        opened.begin(memory.images)
        with _marked(watch, streams):
            origin = Mark(device.stream())
            watch.spans.clear()
            room = threading.Semaphore(lanes * SEATS)
            for number in range(blocks):
                room.acquire()

                def scored() -> None:
                    room.release()
                    done.release()

                opened.submit(Work(memory.block(number), _seat(memory.batch), lambda: None, scored))
            for _ in range(blocks):
                if not done.acquire(timeout=LIMIT):
                    raise TimeoutError(f"lanes did not score {blocks} blocks in {LIMIT:g} seconds")
            if failures:
                raise failures[0]
            opened.end()
            found = _at_work(watch, origin, blocks * memory.batch)
        watch.spans.clear()
        del origin
    return found


def _seat(batch: int) -> Results:
    return Results(
        np.empty((batch, SIDE, SIDE // 8), np.uint8),
        np.empty(batch, np.float32),
        np.empty(batch, np.int32),
        np.ones(batch, np.bool_),
        np.ones(batch, np.bool_),
    )


def _at_work(watch: Watch, origin: Mark, slices: int) -> AtWork:
    spans = [(kind, on, origin.until(begun), origin.until(ended)) for kind, on, begun, ended in watch.spans]
    computing = [(begun, ended) for kind, _, begun, ended in spans if kind == "compute"]
    whole = max(ended for *_, ended in spans) - min(begun for _, _, begun, _ in spans)

    def hidden(kind: str) -> float:
        spent = covered = 0.0
        for each, on, begun, ended in spans:
            if each == kind:
                others = [(b, e) for word, at, b, e in spans if word == "compute" and at != on]
                spent += ended - begun
                covered += overlap((begun, ended), others)
        return covered / spent if spent else 0.0

    return AtWork(
        slices, whole, length(computing) / whole if whole else 0.0, hidden("copy in"), hidden("copy out")
    )


def length(spans: list[Span]) -> float:
    """How long at least one of them lasts."""
    total, reached = 0.0, float("-inf")
    for begun, ended in sorted(spans):
        total += max(0.0, ended - max(begun, reached))
        reached = max(reached, ended)
    return total


def overlap(span: Span, others: list[Span]) -> float:
    """How long of a span at least one of the others lasts."""
    begun, ended = span
    return length([(max(begun, b), min(ended, e)) for b, e in others if b < ended and e > begun])


@contextmanager
def _marked(watch: Watch, streams: dict[int, Stream]) -> Iterator[None]:
    """The lanes' own copies, with marks around them."""
    plain: dict[str, Callable[..., None]] = {"copy in": Stream.copy_in, "copy out": Stream.copy_out}

    def teller(kind: str) -> Callable[..., None]:
        def call(stream: Stream, *arguments: Any) -> None:
            streams.setdefault(stream.handle, stream)
            watch.around(kind, stream, lambda: plain[kind](stream, *arguments))

        return call

    with (
        mock.patch.object(Stream, "copy_in", teller("copy in")),
        mock.patch.object(Stream, "copy_out", teller("copy out")),
    ):
        yield
    streams.clear()


class _WatchedModel:
    """A model whose runners have marks around every batch; it stands where `DeviceModel` does."""

    def __init__(self, model: DeviceModel, watch: Watch, streams: dict[int, Stream]) -> None:
        self._model, self._watch, self._streams = model, watch, streams

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def make(self, stream: int, batch: int, workspace: int) -> DeviceRunner:
        return _WatchedRunner(self._model.make(stream, batch, workspace), stream, self._watch, self._streams)


class _WatchedRunner:
    """See `_WatchedModel`. Its stream is known once the lane has copied something on it."""

    def __init__(
        self, runner: DeviceRunner, handle: int, watch: Watch, streams: Mapping[int, Stream]
    ) -> None:
        self.batch = runner.batch
        self._runner, self._handle, self._watch, self._streams = runner, handle, watch, streams

    def enqueue(self, pointers: Mapping[str, int]) -> None:
        """See `DeviceRunner.enqueue`."""
        stream = self._streams.get(self._handle)
        if stream is None:
            self._runner.enqueue(pointers)
        else:
            self._watch.around("compute", stream, lambda: self._runner.enqueue(pointers))

    def close(self) -> None:
        """See `DeviceRunner.close`."""
        self._runner.close()
