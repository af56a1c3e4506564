"""Mask workers as a run sees them: started, asked, replaced. What they do is in mask_worker.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, Self

from engine.errors import MachineError
from engine.helper import Helper
from engine.mask_worker import answer_of, request_of
from engine.outputs.atomic import clean_after
from engine.outputs.drawing import Drawn, Found

STRIKES: Final = 3
"""Workers that may die in a row at the same masks."""
_STUCK_S: Final = 60.0
_STUCK_A_MASK_S: Final = 10.0
"""A worker that says nothing for so long is replaced; disks are given some seconds for every file."""


class MaskProcesses:
    """A `Drawer` that has `count` processes draw, each for one caller at a time.

    One that dies or hangs is replaced and asked again: to write a mask twice does no harm.
    """

    def __init__(self, count: int) -> None:
        """Raises MachineError where one cannot be started."""
        self._idle: SimpleQueue[Helper] = SimpleQueue()
        self._count = 0
        try:
            while self._count < count:
                self._idle.put(_started())
                self._count += 1
        except MachineError:
            self.close()
            raise

    def draw(self, masks: Sequence[Found]) -> list[Drawn | OSError]:
        """See `Drawer.draw`."""
        if not masks:
            return []
        process, why = self._idle.get(), ""
        try:
            for _ in range(STRIKES):
                answer = _ask(process, masks)
                if answer is not None:
                    return answer_of(answer)
                why = process.end()
                for folder in {os.path.dirname(each.path) for each in masks if each.path}:  # noqa: PTH120
                    clean_after(process.pid, folder)
                process = _started()
        finally:
            self._idle.put(process)
        raise MachineError(f"mask workers do not stay alive: {why}")

    def close(self) -> None:
        """End them all; for when nobody draws any more."""
        for _ in range(self._count):
            self._idle.get().end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _started() -> Helper:
    return Helper("engine.mask_worker", "a mask worker")


def _ask(process: Helper, masks: Sequence[Found]) -> Any | None:
    """What it answers, None where it is dead or hangs."""
    asked = process.send(*request_of(masks), limit_s=_STUCK_S + _STUCK_A_MASK_S * len(masks))
    answer = process.receive() if asked else None
    return None if answer is None else answer[0]
