"""A decode worker as the ring sees it: started, spoken with, ended. What it does is in decode_worker.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import Any

from engine.child import death, last_line, start_module
from engine.decode_worker import MESSAGE_BYTES
from engine.errors import MachineError

_REAP_S = 2.0


class WorkerProcess:
    """The process of one decode worker, the socket to it, and what it wrote before it was ready.

    It is a plain subprocess of this interpreter, which unlike multiprocessing's imports no __main__ (a
    notebook has none to import). It dies with the thread that started it. Raises MachineError where it cannot
    be started.
    """

    def __init__(self, memory: int, slots: int, workers: int, number: int) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._complaints = os.memfd_create("tumorscan-worker-stderr", os.MFD_CLOEXEC)
        numbers = (os.getpid(), memory, slots, workers, number, theirs.fileno())
        try:
            self._process = start_module(
                "engine.decode_worker",
                *numbers,
                inherits=(memory, theirs.fileno()),
                complaints=self._complaints,
            )
        except OSError as error:
            self._channel.close()
            os.close(self._complaints)
            raise MachineError(f"a decode worker cannot be started: {error}") from error
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the descriptor that is readable when the worker has something to say, or is dead."""
        return self._channel.fileno()

    def send(self, request: list[Any]) -> bool:
        """Send one message; False when the worker is dead."""
        message = json.dumps(request).encode()
        try:
            if len(message) <= MESSAGE_BYTES:
                self._channel.send(message)
            else:
                self._send_long(message)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _send_long(self, message: bytes) -> None:
        """A series may have more files than a message of the socket has room for their names."""
        descriptor = os.memfd_create("tumorscan-message", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(message)
            os.lseek(descriptor, 0, os.SEEK_SET)
            socket.send_fds(self._channel, [b"@"], [descriptor])
        finally:
            os.close(descriptor)

    def receive(self) -> list[Any] | None:
        """Return the next message, None when there is none and the worker is dead or its end is closed."""
        while True:
            try:
                message = self._channel.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except ConnectionResetError:
                # It died with requests unread; what it had answered can still be read.
                continue
            except BlockingIOError:
                return None
            return list(json.loads(message)) if message else None

    def kill(self) -> None:
        """End the process and wait for that. Its answers can still be received."""
        self._process.kill()
        try:
            self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            # Stuck in the kernel (a dead file server): it will not run again; `reaped` tells when it is gone.
            return

    def reaped(self) -> bool:
        """Whether the process is gone for good."""
        return self._process.poll() is not None

    def close(self) -> str:
        """Close the socket; return the last line that the worker wrote while it started, if any."""
        self._channel.close()
        said = last_line(self._complaints)
        os.close(self._complaints)
        return said

    @property
    def status(self) -> int | None:
        """The exit status, the signal's number below zero; None while it is not known to have ended."""
        return self._process.returncode

    def death(self) -> str:
        """Say how the process ended."""
        return death(self._process.returncode)
