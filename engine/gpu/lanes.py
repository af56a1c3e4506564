"""All lanes of a GPU: made, started, given work, ended. They share the models and one queue of work."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from engine.errors import MachineError
from engine.gpu.device import Device, GpuMemoryError
from engine.gpu.lane import Lane, Work, Works
from engine.runners.device import DeviceModel

_OUT_OF_MEMORY = ("out of memory", "outofmemory", "failed to allocate memory", "could not be allocated")
"""How CUDA, TensorRT and ONNX Runtime call it, in lower case."""


class Lanes:
    """`count` lanes; see `Lane`. `open_lanes` makes them and gives all back that they have."""

    def __init__(
        self,
        device: Device,
        models: tuple[DeviceModel, DeviceModel],
        *,
        count: int,
        batch: int,
        gate: float | None,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._device = device
        self._failed = failed
        self._works: Works = queue.SimpleQueue()
        self._lanes = []
        for _ in range(count):
            lane = Lane(device, *models, batch, gate)
            lane.start_up()
            self._lanes.append(lane)
        self._threads: list[threading.Thread] = []

    def begin(self, slots: npt.NDArray[np.uint8]) -> int:
        """Have the ring's memory registered, and start. All works have their images in `slots`.

        The error number with which the driver refused to register it, 0 when it did not; refused, slices go
        through memory of the lanes' own.
        """
        refused = self._device.register(slots)
        if refused:
            for lane in self._lanes:
                lane.stage(self._device)
        for number, lane in enumerate(self._lanes):
            thread = threading.Thread(target=self._work, args=(lane,), name=f"lane{number}")
            thread.start()
            self._threads.append(thread)
        return refused

    def submit(self, work: Work) -> None:
        """Have a block scored by the lane that is first to have room for it."""
        self._works.put(work)

    def end(self) -> None:
        """Wait until all that was submitted is scored, or its lane has failed."""
        for _ in self._threads:
            self._works.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _work(self, lane: Lane) -> None:
        try:
            with self._device.current():
                lane.run(self._works)
        except BaseException as error:  # told to whoever can end the process
            self._failed(error)


@contextmanager
def open_lanes(
    device: Device,
    models: tuple[DeviceModel, DeviceModel],
    *,
    count: int,
    batch: int,
    gate: float | None,
    failed: Callable[[BaseException], None],
) -> Iterator[Lanes]:
    """`count` lanes of `batch` slices over the (classifier, segmenter), which have run once in each.

    `gate` is the least probability that passes, None where all slices do. `failed` hears, in a lane's
    thread, what ended that lane; its works are not scored then. Leaving ends the lanes, with what they have
    before them done, and frees all that the device has made.

    Raises:
        GpuMemoryError: the GPU has no room for so many lanes at this batch.
        MachineError: the GPU or the runtime fails.
        UsageError: the models are for another batch.
    """
    try:
        try:
            lanes = Lanes(device, models, count=count, batch=batch, gate=gate, failed=failed)
        except MachineError as error:
            if not _of_memory(error):
                raise
            room = f"the GPU has no room for {count} lane{'s' * (count > 1)} at batches of {batch} slices"
            raise GpuMemoryError(f"{room} ({error}): choose a smaller --batch or fewer --lanes") from None
        try:
            yield lanes
        finally:
            lanes.end()
    finally:
        device.free()


def _of_memory(error: MachineError) -> bool:
    text = str(error).lower()
    return isinstance(error, GpuMemoryError) or any(words in text for words in _OUT_OF_MEMORY)
