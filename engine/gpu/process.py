"""A GPU's process as its parent sees it: started, given blocks, ended. What it does is in worker.py."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.child import death, last_line, start_module
from engine.errors import MachineError
from engine.gpu.device import GpuMemoryError
from engine.gpu.lane import SEATS
from engine.gpu.results import Results, allocate_results
from engine.gpu.start import Start
from engine.gpu.worker import KINDS, MESSAGE_BYTES, START_BYTES
from engine.stop import StoppedError

WORKER: Final = "engine.gpu.worker"
"""The module that the process runs."""
STARTUP_LIMIT: Final = 900
"""Seconds in which the models are loaded and have run: TensorRT-RTX compiles its kernels then."""
ANSWER_LIMIT: Final = 120
"""Seconds in which a block is copied or scored: many times what any GPU needs for all that it may have."""
_CLOSE_LIMIT: Final = 20.0

_Inbox = queue.SimpleQueue[list[Any] | None]
"""Messages of the process, the kind left out; None for good once it has failed."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model as the process has loaded it; see `DeviceModel`."""

    name: str
    version: str
    precision: str
    identity: Mapping[str, str | int]


class GpuProcess:
    """The process of one GPU: it starts when this is made. `ready`, `open`, then `score` by many threads.

    It dies with this process. Whatever ends it early, a fault of the GPU or a signal, is raised by all calls
    that wait for it and by all that follow: what was scored until then stands.
    """

    def __init__(self, start: Start, *, module: str = WORKER) -> None:
        self.start = start
        self.seats = start.lanes * SEATS
        self.loaded: tuple[Loaded, Loaded] | None = None
        self._module = module
        self._results: Results | None = None
        self._replies: _Inbox = queue.SimpleQueue()
        self._inboxes: list[_Inbox] = [queue.SimpleQueue() for _ in range(self.seats)]
        self._failure: tuple[type[Exception], str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, START_BYTES)
        self._thread = threading.Thread(target=self._attend, name=f"gpu{start.device}", daemon=True)
        self._thread.start()

    def __enter__(self) -> GpuProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ready(self, over: threading.Event | None = None) -> tuple[Loaded, Loaded]:
        """Wait until the classifier and the segmenter have run once; what they are.

        Raises GpuMemoryError where the GPU is too small, StoppedError when `over` is set before, else what
        `open_models` and `open_lanes` raise.
        """
        (models,) = self._wait(self._replies, STARTUP_LIMIT, over)
        classifier, segmenter = (Loaded(**model) for model in models)
        self.loaded = classifier, segmenter
        return self.loaded

    def open(self, ring: int, slots: int) -> int:
        """Show it the ring's memory, behind the descriptor `ring`, which begins with so many slots.

        CUDA's error number where the driver does not pagelock it, so that slices are copied once more; else
        0. Raises MachineError.
        """
        results = allocate_results(self.seats, self.start.batch)
        try:
            self._results = Results.map(results, self.seats, self.start.batch)
            self._tell(["ring", slots, self.seats], [ring, results])
        finally:
            os.close(results)
        (refused,) = self._wait(self._replies, STARTUP_LIMIT)
        return int(refused)

    def score(
        self, seat: int, first: int, valid: npt.NDArray[np.bool_], copied: Callable[[], None]
    ) -> Results:
        """Score the ring's slots from `first` on, as many as `valid` bool [n] has, at most a batch.

        `copied` is called when they may be filled again. The results stay as they are until the next score
        of this seat, 0 to `seats` - 1; one thread at a time has a seat. Raises MachineError.
        """
        assert self._results is not None
        results, inbox = self._results.seat(seat, len(valid)), self._inboxes[seat]
        results.valid[:] = valid
        self._tell(["score", seat, first, len(valid)])
        self._wait(inbox, ANSWER_LIMIT)
        copied()
        self._wait(inbox, ANSWER_LIMIT)
        return results

    def close(self) -> None:
        """End it, after what it has before it; one that does not end, or has not begun, is killed."""
        if self._results is None:
            self._kill()
        self._channel.shutdown(socket.SHUT_WR)
        self._thread.join(_CLOSE_LIMIT)
        if self._thread.is_alive():
            self._kill()
            self._thread.join(_CLOSE_LIMIT)
        self._channel.close()

    def _tell(self, message: list[Any], descriptors: Sequence[int] = ()) -> None:
        self._raise_failure()
        try:
            socket.send_fds(self._channel, [json.dumps(message).encode()], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self._thread.join(_CLOSE_LIMIT)  # it is about to know why
            self._raise_failure()
            raise

    def _wait(self, inbox: _Inbox, limit: int, over: threading.Event | None = None) -> list[Any]:
        """The next message. Seconds are counted one by one: while this process is stopped none pass."""
        for _ in range(limit):
            if over is not None and over.is_set():
                raise StoppedError
            try:
                message = inbox.get(timeout=1)
            except queue.Empty:
                continue
            if message is None:
                inbox.put(None)
                self._raise_failure()
                raise AssertionError("a process that has failed says why")
            return message
        self._fail(MachineError, f"it has not answered for {limit} s: see nvidia-smi and dmesg")
        self._kill()
        return self._wait(inbox, limit)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            kind, text = self._failure
            raise kind(text)

    def _fail(self, kind: type[Exception], text: str) -> None:
        """Keep the first reason, and wake all who wait."""
        if self._failure is None:
            named = issubclass(kind, MachineError)
            self._failure = kind, f"GPU {self.start.device}: {text}" if named else text
            for inbox in (self._replies, *self._inboxes):
                inbox.put(None)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    # What follows runs in the thread that starts the process, with which the process dies.

    def _attend(self) -> None:
        # Both may reach the whole process group; blocked here, they are blocked there from its start.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        complaints = os.memfd_create("tumorscan-gpu-stderr", os.MFD_CLOEXEC)
        try:
            with self._started(complaints) as process:
                self._channel.send(self.start.encode())
                while (message := self._receive()) is not None:
                    self._hear(*message)
            said = last_line(complaints)
            reason = f"its process {death(process.returncode)}{f' ({said})' if said else ''}"
            self._fail(MachineError, f"{reason}: see dmesg, then run the same command to go on")
        except OSError as error:
            self._kill()
            self._fail(MachineError, f"its process cannot be started: {error}")
        finally:
            os.close(complaints)

    def _started(self, complaints: int) -> subprocess.Popen[bytes]:
        numbers = (os.getpid(), self._theirs.fileno())
        try:
            self._process = start_module(self._module, *numbers, inherits=numbers[1:], complaints=complaints)
        finally:
            self._theirs.close()
        return self._process

    def _receive(self) -> list[Any] | None:
        while True:
            try:
                message = self._channel.recv(MESSAGE_BYTES)
            except ConnectionResetError:
                continue  # it died with messages unread; what it had said can still be heard
            return list(json.loads(message)) if message else None

    def _hear(self, kind: str, *rest: Any) -> None:
        if kind == "failed":
            word, text = rest
            self._fail(KINDS[word], text)
        elif kind in ("copied", "scored"):
            (seat,) = rest
            self._inboxes[seat].put([kind])
        else:
            self._replies.put(list(rest))


@contextmanager
def open_gpus(
    starts: Callable[[int], Sequence[Start]],
    batch: int,
    *,
    smaller: bool,
    say: Callable[[str], None],
    module: str = WORKER,
    over: threading.Event | None = None,
) -> Iterator[list[GpuProcess]]:
    """The processes of all `starts(batch)`, ready; all have the same batch.

    Where one has too little memory and a `smaller` batch is allowed, `say` hears so and all start once more
    with half of it. Raises as `starts` and `GpuProcess.ready` do.
    """
    try:
        processes = _start_all(starts(batch), module, over)
    except GpuMemoryError as error:
        if not smaller or batch == 1:
            raise
        batch //= 2
        say(f"{error}; going on with batches of {batch}")
        processes = _start_all(starts(batch), module, over)
    with ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
        yield processes


def _start_all(starts: Sequence[Start], module: str, over: threading.Event | None) -> list[GpuProcess]:
    with ExitStack() as stack:
        processes = [stack.enter_context(GpuProcess(start, module=module)) for start in starts]
        for process in processes:
            process.ready(over)
        stack.pop_all()
    return processes
