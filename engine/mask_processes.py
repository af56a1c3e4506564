"""Mask workers as a run sees them: started, asked, replaced. What they do is in mask_worker.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, Self

from engine.child import child_environment, death, last_line
from engine.errors import MachineError
from engine.mask_worker import answer_of, receive, request_of, send
from engine.outputs.atomic import clean_after
from engine.outputs.drawing import Drawn, Found

STRIKES: Final = 3
"""Workers that may die in a row at the same masks."""
_STUCK_S: Final = 60.0
_STUCK_A_MASK_S: Final = 10.0
"""A worker that says nothing for so long is replaced; disks are given some seconds for every file."""
_END_S: Final = 2.0


class MaskProcesses:
    """A `Drawer` that has `count` processes draw, each for one caller at a time.

    One that dies or hangs is replaced and asked again: to write a mask twice does no harm.
    """

    def __init__(self, count: int) -> None:
        """Raises MachineError where one cannot be started."""
        self._idle: SimpleQueue[_MaskProcess] = SimpleQueue()
        self._count = 0
        try:
            while self._count < count:
                self._idle.put(_MaskProcess())
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
                answer = process.ask(masks)
                if answer is not None:
                    return answer_of(answer)
                why = process.end()
                for folder in {os.path.dirname(each.path) for each in masks if each.path}:  # noqa: PTH120
                    clean_after(process.pid, folder)
                process = _MaskProcess()
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


class _MaskProcess:
    """One worker's process and the stream to it. Raises MachineError where it cannot be started."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._complaints = os.memfd_create("tumorscan-mask-worker-stderr", os.MFD_CLOEXEC)
        # Both may reach the whole process group; blocked here, they are blocked in the worker from its start,
        # which ends with this process.
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.mask_worker", str(os.getpid()), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                pass_fds=(theirs.fileno(),),
                env=child_environment(),
            )
        except OSError as error:
            self._channel.close()
            os.close(self._complaints)
            raise MachineError(f"a mask worker cannot be started: {error}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            theirs.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ask(self, masks: Sequence[Found]) -> Any | None:
        """What it answers, None where it is dead or hangs."""
        self._channel.settimeout(_STUCK_S + _STUCK_A_MASK_S * len(masks))
        try:
            send(self._channel, *request_of(masks))
            answer = receive(self._channel)
        except OSError:
            return None
        return None if answer is None else answer[0]

    def end(self) -> str:
        """End it; what it complained of, or how it ended. It may have been ended before."""
        if self._channel.fileno() < 0:
            return ""
        self._channel.close()  # it ends at that, unless it hangs
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        said = last_line(self._complaints)
        os.close(self._complaints)
        return said or f"one {death(self._process.returncode)}"
