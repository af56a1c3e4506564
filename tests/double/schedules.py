"""When operations run: as late, as early, as crosswise or as randomly as CUDA allows."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.double.device import Device, Op

SCHEDULES = ("laziest", "eager", "others first", "random 0", "random 1")
"""What a test runs under; any "random SEED" is one."""

_POLLS_WITHOUT_PROGRESS = 2


class Schedule:
    """Laziest: only what a synchronisation forces runs, and an event that is polled comes after a while."""

    def entered(self) -> None:
        """A function was called; no lock is held."""

    def enqueued(self, device: Device, op: Op) -> None:
        """An operation was put on its stream."""

    def forcing(self, device: Device, op: Op) -> None:
        """A host thread is about to wait for it."""

    def polled(self, device: Device, op: Op) -> None:
        """A host thread asks whether it is done; asked often enough, it must be."""
        op.polls += 1
        if op.polls > _POLLS_WITHOUT_PROGRESS:
            device.force(op)


class Eager(Schedule):
    """All is done by the time the call returns."""

    def enqueued(self, device: Device, op: Op) -> None:
        device.force(op)


class OthersFirst(Schedule):
    """A stream stands still while any other can go on."""

    def enqueued(self, device: Device, op: Op) -> None:
        self.forcing(device, op)

    def forcing(self, device: Device, op: Op) -> None:
        progress = True
        while progress:
            progress = False
            for queue in device.queues.values():
                while queue is not op.queue and device.run_one(queue):
                    progress = True


class Random(Schedule):
    """A few operations of any streams at every turn, and threads that give way at any call."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def entered(self) -> None:
        if self._random.random() < 0.25:
            time.sleep(0)

    def enqueued(self, device: Device, op: Op) -> None:
        for _ in range(self._random.choice((0, 0, 0, 1, 2, 5))):
            self._run_any(device)

    def forcing(self, device: Device, op: Op) -> None:
        self.enqueued(device, op)

    def polled(self, device: Device, op: Op) -> None:
        self._run_any(device)

    def _run_any(self, device: Device) -> None:
        queues = list(device.queues.values())
        self._random.shuffle(queues)
        for queue in queues:
            if device.run_one(queue):
                return


def make_schedule(name: str) -> Schedule:
    """The schedule of that name; see `SCHEDULES`."""
    if name.startswith("random "):
        return Random(int(name.removeprefix("random ")))
    return {"laziest": Schedule, "eager": Eager, "others first": OthersFirst}[name]()
