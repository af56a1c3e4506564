"""One lane: a CUDA stream, the two models on it, their buffers, and the thread that keeps it filled.

A lane has one stream, so what it enqueues runs in that order and needs no events among itself. Events tell
the host: it waits for the oldest of them, does what that allows, and enqueues as much as there is room for
before it waits again. While the gate is decided for one batch the next one is already on the stream.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.errors import MachineError
from engine.gpu.device import Device, Event
from engine.gpu.results import Results
from engine.runners.base import INPUT, SIDE
from engine.runners.device import DeviceModel, DeviceRunner

SLICE_BYTES: Final = SIDE * SIDE * 3
INPUTS: Final = 2
"""Buffers that batches are copied into: one is classified while the gate is decided for the other."""
OUTPUTS: Final = 2
"""Pagelocked buffers for masks. A batch of masks is begun at most once for each batch whose gate is decided,
and is waited for before the second gate after it, so that two are enough."""
PATIENCE: Final = 6
"""Slices wait for so many more batches to fill the segmenter's; then it runs with what there is."""
SEATS: Final = PATIENCE + INPUTS + 2 * OUTPUTS
"""Blocks that a lane may have before it without ever being short of one."""


@dataclass(slots=True)
class Work:
    """A block on its way: at most a batch of `images` uint8 [n,256,256,3], where the ring has them.

    `copied` is called when nothing reads the images any more, `scored` when all of `results` is there; both
    in a lane's thread.
    """

    images: npt.NDArray[np.uint8]
    results: Results
    copied: Callable[[], None]
    scored: Callable[[], None]
    left: int = 0


Works = queue.SimpleQueue[Work | None]
"""What is to do, for all lanes of a GPU; a None for each of them ends it."""


@dataclass(frozen=True, slots=True)
class _Input:
    """`images` is device memory for a batch; `probability` float32 [N] is pagelocked."""

    images: int
    probability: npt.NDArray[np.float32]
    copied: Event
    classified: Event


@dataclass(frozen=True, slots=True)
class _Output:
    """`bits` uint8 [N,256,32] is pagelocked."""

    bits: npt.NDArray[np.uint8]
    segmented: Event


@dataclass(frozen=True, slots=True)
class _Passed:
    """Slices `first` and on of a work, which stand at `place` and on in the segmenter's batch."""

    work: Work
    first: int
    count: int
    place: int


class Lane:
    """The cascade on one stream, in batches of exactly `batch` slices; without a `gate` every slice passes.

    To be made, and `start_up` and `stage` to be called, before the first slice is decoded: from then on
    nothing is allocated. Raises MachineError when the GPU fails, GpuMemoryError when it is too small.
    """

    def __init__(
        self, device: Device, classifier: DeviceModel, segmenter: DeviceModel, batch: int, gate: float | None
    ) -> None:
        self._batch = batch
        self._gate = None if gate is None else np.float32(gate)
        self._stream = device.stream()
        # One model runs after the other, so that both may work in the same memory.
        workspace = device.memory(max(classifier.workspace(batch), segmenter.workspace(batch)))
        self._inputs = deque(_input(device, batch) for _ in range(INPUTS))
        self._outputs = deque(_output(device, batch) for _ in range(OUTPUTS))
        self._gathered = device.memory(batch * SLICE_BYTES)
        self._answers = {model.model: _answers(device, model, batch) for model in (classifier, segmenter)}
        self._classifier = self._runner(device, classifier, workspace)
        self._segmenter = self._runner(device, segmenter, workspace)
        self._staging: npt.NDArray[np.uint8] | None = None
        self._staging_is_free = True
        self._flight: deque[tuple[Event, Callable[[], None]]] = deque()
        self._passed: list[_Passed] = []
        self._filled = 0
        self._waited = 0
        self._ended = False

    def _runner(self, device: Device, model: DeviceModel, workspace: int) -> DeviceRunner:
        runner = model.make(self._stream.handle, self._batch, workspace)
        device.on_free(runner.close)
        return runner

    def _enqueue(self, runner: DeviceRunner, pointers: Mapping[str, int]) -> None:
        """Enqueue one execution. Where the GPU has failed, that is what is raised.

        A fault of another lane, or of what was enqueued before, is found by whichever call is next; a
        runtime tells it as a failure of its own.
        """
        try:
            runner.enqueue(pointers)
        except MachineError:
            self._stream.check()
            raise

    def start_up(self) -> None:
        """Run both models once, which makes them take what memory they need, and wait for that."""
        for buffer in self._inputs:
            self._stream.clear(buffer.images, self._batch * SLICE_BYTES)
        self._stream.clear(self._gathered, self._batch * SLICE_BYTES)
        self._enqueue(self._classifier, {INPUT: self._inputs[0].images, **self._answers["classifier"]})
        self._enqueue(self._segmenter, {INPUT: self._gathered, **self._answers["segmenter"]})
        done = self._inputs[0].classified
        done.record(self._stream)
        done.wait()

    def stage(self, device: Device) -> None:
        """Have slices go through pagelocked memory, as the ring's is none that the GPU can read."""
        self._staging = device.pagelocked((self._batch, SIDE, SIDE, 3), np.uint8)

    def run(self, works: Works) -> None:
        """Work until told to end, and until all that was taken is scored."""
        while True:
            self._take(works)
            if self._flight:
                event, settle = self._flight.popleft()
                event.wait()
                settle()
            elif self._passed:
                self._segment()  # nothing else is under way that could add to it
            else:
                return

    def _take(self, works: Works) -> None:
        """Begin as many works as there is room for; wait for one where there is nothing else to do."""
        while self._inputs and self._staging_is_free and not self._ended:
            idle = not self._flight and not self._passed
            try:
                work = works.get(block=idle)
            except queue.Empty:
                return
            if work is None:
                self._ended = True
            else:
                self._classify(work)

    def _classify(self, work: Work) -> None:
        buffer = self._inputs.popleft()
        if self._staging is None:
            source, copied = work.images, work.copied
        else:
            source, copied = self._staging[: len(work.images)], self._free_staging
            source[:] = work.images
            self._staging_is_free = False
            work.copied()
        self._stream.copy_in(buffer.images, source)
        self._mark(buffer.copied, copied)
        answers = self._answers["classifier"]
        self._enqueue(self._classifier, {INPUT: buffer.images, **answers})
        self._stream.copy_out(buffer.probability, answers["tumor_probability"])
        self._mark(buffer.classified, partial(self._decide, buffer, work))

    def _free_staging(self) -> None:
        self._staging_is_free = True

    def _decide(self, buffer: _Input, work: Work) -> None:
        """Let slices pass the gate and gather them for the segmenter, as `engine.cascade` would."""
        results, gate = work.results, self._gate
        passed = results.valid.copy()
        probability = np.where(passed, buffer.probability[: len(passed)], np.float32(np.nan))
        if gate is not None:
            passed &= probability >= gate
        results.probability[:], results.passed[:], results.pixels[:] = probability, passed, 0
        work.left = int(np.count_nonzero(passed))
        if work.left == 0:
            work.scored()
        for first, stop in _runs(passed):
            self._gather(buffer, work, first, stop)
        self._inputs.append(buffer)  # what is copied into it from now on comes behind the gather
        if self._passed:
            self._waited += 1
            if self._waited > PATIENCE:
                self._segment()

    def _gather(self, buffer: _Input, work: Work, first: int, stop: int) -> None:
        while first < stop:
            count = min(stop - first, self._batch - self._filled)
            self._stream.copy_within(
                self._gathered + self._filled * SLICE_BYTES,
                buffer.images + first * SLICE_BYTES,
                count * SLICE_BYTES,
            )
            self._passed.append(_Passed(work, first, count, self._filled))
            self._filled += count
            first += count
            if self._filled == self._batch:
                self._segment()

    def _segment(self) -> None:
        output, answers = self._outputs.popleft(), self._answers["segmenter"]
        self._enqueue(self._segmenter, {INPUT: self._gathered, **answers})
        self._stream.copy_out(output.bits[: self._filled], answers["mask_bits"])
        self._mark(output.segmented, partial(self._deliver, output, self._passed))
        self._passed, self._filled, self._waited = [], 0, 0

    def _deliver(self, output: _Output, pieces: list[_Passed]) -> None:
        for piece in pieces:
            bits = output.bits[piece.place : piece.place + piece.count]
            there = slice(piece.first, piece.first + piece.count)
            piece.work.results.bits[there] = bits
            piece.work.results.pixels[there] = np.bitwise_count(bits).sum(axis=(1, 2), dtype=np.int32)
            piece.work.left -= piece.count
            if piece.work.left == 0:
                piece.work.scored()
        self._outputs.append(output)

    def _mark(self, event: Event, settle: Callable[[], None]) -> None:
        """Have `settle` called when all that is on the stream by now is done."""
        event.record(self._stream)
        self._flight.append((event, settle))


def _input(device: Device, batch: int) -> _Input:
    probability = device.pagelocked((batch,), np.float32)
    return _Input(device.memory(batch * SLICE_BYTES), probability, device.event(), device.event())


def _output(device: Device, batch: int) -> _Output:
    return _Output(device.pagelocked((batch, SIDE, SIDE // 8), np.uint8), device.event())


def _answers(device: Device, model: DeviceModel, batch: int) -> dict[str, int]:
    """Device memory for each output of a model, by its name."""
    return {
        name: device.memory(batch * spec.dtype.itemsize * int(np.prod(spec.shape)))
        for name, spec in model.outputs.items()
    }


def _runs(flags: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of set flags: neighbours go in one copy."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    for start, stop in edges.reshape(-1, 2):
        yield int(start), int(stop)
