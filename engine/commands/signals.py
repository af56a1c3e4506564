"""Ctrl-C, SIGTERM and the clock: a run ends in order when it is asked to, and at once when it must."""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Final, Self

from engine.commands.screen import complaint
from engine.stop import Stop

GRACE_S: Final = 17.0
"""How long what is under way may take to end: a scheduler kills 20 seconds after SIGTERM, or later."""
OUT_OF_TIME_STATUS: Final = 75
_SHOW_CURSOR: Final = b"\x1b[?25h\n"
_ENDING: Final = (signal.SIGINT, signal.SIGTERM)
_LEFT: Final = "what was under way took too long and is left to the same command, which continues"
_POLL_S: Final = 0.25


class SignalStop:
    """Asks a run to stop at the first Ctrl-C or SIGTERM, and ends the process at the second.

    So does the end of the grace: whatever was asked for (a file that hangs its decoder, a batch of a thousand
    slices, a disk that waits) is left to the call that continues, since every row is in the ledger by then or
    will be made again. A thread listens, because the main one may be inside a library for longer than that.
    """

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.received: int | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._hears, self._told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        for number in _ENDING:
            signal.signal(number, _leave_it_to_the_listener)
        self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A signal that comes now finds everything done, and takes nothing from the status. Python gives its
        # handlers back when it ends, and what is ignored it leaves.
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self._over.set()
        os.write(self._told, b"\0")  # so that it need not wait for its next look
        self._listener.join()
        os.close(self._hears)
        os.close(self._told)

    def _listen(self) -> None:
        asked = math.inf
        while not self._over.is_set():
            if select.select([self._hears], [], [], _POLL_S)[0]:
                for number in os.read(self._hears, 64):
                    self._on_signal(number)
            now = time.monotonic()
            if self.stop.asked.is_set():
                asked = min(asked, now)
            if now > min(asked, self.stop.deadline) + GRACE_S:
                status = 128 + self.received if self.received is not None else OUT_OF_TIME_STATUS
                with suppress(OSError):
                    os.write(sys.stderr.fileno(), complaint(_LEFT, status).encode())
                self._end(status)

    def _on_signal(self, number: int) -> None:
        if number not in _ENDING:
            return
        if self.received is not None:
            self._end(128 + number)
        self.received = number
        self.stop.asked.set()

    @staticmethod
    def _end(status: int) -> None:
        with suppress(OSError, ValueError):  # it may be gone
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), _SHOW_CURSOR)  # the bar hid it
        os._exit(status)


def _leave_it_to_the_listener(_number: int, _frame: FrameType | None) -> None:
    """The wakeup descriptor has told it already."""
