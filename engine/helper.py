"""A helper: a process of this interpreter that answers what it is asked, one message at a time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from typing import Any, Final

from engine import channel
from engine.child import death, last_line, start_module
from engine.errors import MachineError

_END_S: Final = 2.0


class Helper:
    """The process of `python -m MODULE PARENT DESCRIPTOR`, and the stream to it.

    It is to end where the stream does, and with this process. Raises MachineError where it cannot be started.
    """

    def __init__(self, module: str, what: str) -> None:
        """`what` it is called in errors, with its article."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._complaints = os.memfd_create("tumorscan-helper-stderr", os.MFD_CLOEXEC)
        # Both may reach the whole process group; blocked here, they are blocked in the helper from its start,
        # which ends with this process.
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            numbers = (os.getpid(), theirs.fileno())
            self._process = start_module(module, *numbers, inherits=numbers[1:], complaints=self._complaints)
        except OSError as error:
            self._channel.close()
            os.close(self._complaints)
            raise MachineError(f"{what} cannot be started: {error}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            theirs.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, message: Any, data: bytes = b"", limit_s: float | None = None) -> bool:
        """Ask it; False where it is dead. Each message is to be answered before the next one.

        Where it says nothing for `limit_s` seconds, it is taken for dead.
        """
        self._channel.settimeout(limit_s)
        try:
            channel.send(self._channel, message, data)
        except OSError:
            return False
        return True

    def receive(self) -> tuple[Any, bytes] | None:
        """What it answers, None where it is dead."""
        try:
            return channel.receive(self._channel)
        except OSError:
            return None

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
