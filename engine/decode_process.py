"""A decode worker as the ring sees it: started, spoken with, ended. What it does is in decode_worker.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

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
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.decode_worker", *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                pass_fds=(memory, theirs.fileno()),
                env=_environment(),
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
        try:
            self._channel.send(json.dumps(request).encode())
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

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
        written = os.pread(self._complaints, os.fstat(self._complaints).st_size, 0)
        os.close(self._complaints)
        lines = [line.strip() for line in written.decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")

    def death(self) -> str:
        """Say how the process ended."""
        status = self._process.returncode
        if status is None:
            return "did not end when killed"
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"


def _environment() -> dict[str, str]:
    """This process's environment and import path; libraries quiet and on one thread."""
    home = str(Path(__file__).resolve().parent.parent)
    path = [os.path.abspath(entry) for entry in sys.path if entry]  # noqa: PTH100 - keeps links as they are
    if home not in path:
        path.insert(0, home)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OPENCV_LOG_LEVEL": "SILENT",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
