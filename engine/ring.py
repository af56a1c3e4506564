"""The decode ring: blocks of 256x256 RGB slots in shared memory, filled by worker processes.

A block goes round: acquire -> submit -> (workers decode) -> completed -> release. Blocks are completed in the
order in which they are done, so a file that hangs holds up its own block only.
The memory is a memfd: a container's /dev/shm is too small for it, and a killed run leaves nothing behind.
"""

from __future__ import annotations

import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.decode_process import WorkerProcess
from engine.decode_worker import IS_OPENING, IS_READ, OUT_OF_MEMORY, STARTED_NS, TICKET, RingMemory
from engine.errors import Failure, MachineError
from engine.sources.discovery import SourceFile
from engine.sources.volumes import Volume

# Files handed out at a time: enough that a message costs little, few enough to share a block evenly; more
# where blocks are larger, as slices go faster there.
CHUNK_FILES = 8
MOST_CHUNK_FILES = 32
CHUNK_PATH_BYTES = 8 * 1024
# Chunks a worker has before it: the one it is at, and one so that it need not wait for this process.
CHUNKS_AHEAD = 2
STARTUP_LIMIT_S = 120.0
# Workers that may die in a row without one file being decoded, or blamed.
STRIKES = 3
REMEMBERED_VOLUMES = 64
"""Volumes that a worker ended at. All slices of one are submitted before those of so many others."""
_LONGEST_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class DecodedSlice:
    """What became of one file: the source's size in pixels (0 when failed), or why it failed.

    `file` has the bytes and the time that it had when it was read, which may not be those of its discovery.
    A picture that has `pages` is no slice and has failed: those of `pages_of` are to be decoded instead.
    """

    file: SourceFile
    index: int
    height: int
    width: int
    failure: Failure | None
    pages: int = 0


@dataclass(frozen=True, slots=True)
class DecodedBlock:
    """A block whose files are all decoded or failed.

    `images` [block_size,256,256,3] uint8 RGB is a view on the ring, valid until the block is released; slot i
    belongs to `slices[i]` and is zero where that failed; slots behind the last slice hold anything.
    """

    block: int
    images: npt.NDArray[np.uint8]
    slices: tuple[DecodedSlice, ...]


@dataclass(slots=True)
class _Block:
    files: tuple[SourceFile, ...]
    slices: list[DecodedSlice | None]
    left: int


@dataclass(slots=True)
class _Chunk:
    """Files first..first+count of a block, all of one volume or of none (None).

    `ticket` numbers the first of them while a worker has it.
    """

    block: int
    first: int
    count: int
    source: Volume | None
    ticket: int = 0


@dataclass(slots=True)
class _Worker:
    """A worker and the chunks it has; `since` is when it got its first or answered last (monotonic).

    `source` is the volume that it got last, and has open.
    """

    number: int
    process: WorkerProcess
    since: float
    ready: bool = False
    source: Volume | None = None
    chunks: deque[_Chunk] = field(default_factory=deque)


class Ring:
    """`blocks` blocks of `block_size` slots, decoded into by `workers` processes.

    A file that takes longer than `timeout_s` seconds, or at which its worker ends, fails alone (`timeout`,
    `memory`, `worker_crashed`, `worker_killed`; stage `read` or `decode`); the worker is replaced and its
    other files are decoded again. What need not be the file's fault is transient: a disk that hangs, a kill
    from outside, a lack of memory. Slices of a volume go to one worker, which opens it once; where it ends at
    that, all of the volume's slices fail.
    Methods may be called from any thread. Raises MachineError where memory or workers cannot be had: here, or
    from acquire, submit and completed when that is found out later.
    """

    def __init__(self, blocks: int, block_size: int, workers: int, timeout_s: float) -> None:
        if min(blocks, block_size, workers) < 1 or timeout_s <= 0:
            raise ValueError("blocks, block_size, workers and timeout_s are all above zero")
        self._block_size = block_size
        self._slot_count = blocks * block_size
        self._worker_count = workers
        self._timeout_s = timeout_s
        self._poll_s = min(_LONGEST_POLL_S, timeout_s / 4)
        self._descriptor = _allocate(RingMemory.size(self._slot_count, workers))
        self._memory: RingMemory | None = RingMemory.map(self._descriptor, self._slot_count, workers)
        self._free = deque(range(blocks))
        self._held: set[int] = set()
        self._submitted: dict[int, _Block] = {}
        self._done: deque[int] = deque()
        self._pending: deque[_Chunk] = deque()
        self._workers: list[_Worker] = []
        self._dying: list[WorkerProcess] = []
        self._next_ticket = 1
        self._strikes = 0
        self._busy_s = 0.0
        self._spoilt: deque[tuple[Volume, Failure]] = deque(maxlen=REMEMBERED_VOLUMES)
        self._polled_at = self._awake_since = time.monotonic()
        self._error: Exception | None = None
        self._closing = False
        self._state = threading.Condition()
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._collector = threading.Thread(target=self._collect, name="tumorscan-ring", daemon=True)
        self._collector.start()

    def __enter__(self) -> Ring:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def descriptor(self) -> int:
        """The memory's, for processes that read it: it begins with the slots of block 0, then of block 1."""
        return self._descriptor

    @property
    def slots(self) -> int:
        """How many slots of 256x256x3 bytes there are."""
        return self._slot_count

    @property
    def workers(self) -> int:
        """How many processes decode."""
        return self._worker_count

    @property
    def busy_seconds(self) -> float:
        """How long they were at work, all together."""
        return self._busy_s

    def acquire(self, timeout: float) -> int | None:
        """Return the number of a free block, None if none came free within `timeout` seconds."""
        with self._state:
            self._state.wait_for(lambda: self._free or self._is_over(), timeout)
            self._raise_if_over()
            if not self._free:
                return None
            block = self._free.popleft()
            self._held.add(block)
            return block

    def submit(self, block: int, files: Sequence[SourceFile]) -> None:
        """Have `files` (1 to block_size) decoded into the acquired `block`, file i into slot i."""
        if not 1 <= len(files) <= self._block_size:
            raise ValueError(f"{len(files)} files for a block of {self._block_size}")
        with self._state:
            self._raise_if_over()
            self._let_go(block)
            self._submitted[block] = _Block(tuple(files), [None] * len(files), len(files))
            chunks = _chunks(block, files, chunk_files(self._block_size))
            self._pending.extend(self._sound(chunks) if self._spoilt else chunks)
            self._dispatch()

    def completed(self, timeout: float) -> DecodedBlock | None:
        """Return the next block that is done, None if none was done within `timeout` seconds."""
        with self._state:
            self._state.wait_for(lambda: self._done or self._is_over(), timeout)
            self._raise_if_over()
            if not self._done:
                return None
            block = self._done.popleft()
            self._held.add(block)
            slices = tuple(entry for entry in self._submitted.pop(block).slices if entry is not None)
            return DecodedBlock(block, self._images(block), slices)

    def release(self, block: int) -> None:
        """Give a block back, after its images are used or instead of submitting it."""
        with self._state:
            self._let_go(block)
            self._free.append(block)
            self._state.notify_all()

    def close(self) -> None:
        """End the workers and free the memory. Views on it that still live keep it mapped until they go."""
        with self._state:
            if self._closing:
                return
            self._closing = True
            self._state.notify_all()
        os.eventfd_write(self._wake, 1)
        self._collector.join()
        self._selector.close()
        os.close(self._wake)
        os.close(self._descriptor)
        self._memory = None

    # All that follows runs with the lock held.

    def _is_over(self) -> bool:
        return self._closing or self._error is not None

    def _raise_if_over(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise RuntimeError("the ring is closed")

    def _let_go(self, block: int) -> None:
        if block not in self._held:
            raise ValueError(f"block {block} is not held: acquire it first")
        self._held.remove(block)

    def _mapped(self) -> RingMemory:
        assert self._memory is not None
        return self._memory

    def _images(self, block: int) -> npt.NDArray[np.uint8]:
        first = block * self._block_size
        return self._mapped().slots[first : first + self._block_size]

    def _dispatch(self) -> None:
        ready = [worker for worker in self._workers if worker.ready]
        kept: list[_Chunk] = []
        while self._pending and ready:
            least = min(ready, key=lambda each: len(each.chunks))
            if len(least.chunks) >= CHUNKS_AHEAD:
                break
            chunk = self._pending.popleft()
            worker = least if chunk.source is None else _holder(chunk.source, ready) or least
            if len(worker.chunks) >= CHUNKS_AHEAD:
                kept.append(chunk)  # another worker would have to open the volume too
            elif not self._hand_out(chunk, worker):
                # The collector is about to see that it is dead, and to hand out again what it had.
                ready.remove(worker)
        self._pending.extendleft(reversed(kept))

    def _hand_out(self, chunk: _Chunk, worker: _Worker) -> bool:
        """Give a chunk to a worker; False when that is dead."""
        chunk.ticket = self._next_ticket
        self._next_ticket += chunk.count
        if not worker.chunks:
            worker.since = time.monotonic()
        worker.chunks.append(chunk)
        files = self._submitted[chunk.block].files[chunk.first : chunk.first + chunk.count]
        paths = [file.path.decode("latin-1") for file in files]
        slot = chunk.block * self._block_size + chunk.first
        if chunk.source is None:
            return worker.process.send([chunk.ticket, slot, paths])
        worker.source = chunk.source
        numbers = [file.slice for file in files]
        return worker.process.send([chunk.ticket, slot, paths, numbers, chunk.source.recipe])

    # What follows runs in the collector's thread only (whose end would be the workers' end).

    def _collect(self) -> None:
        # Both may reach the whole process group; blocked here, they are blocked in the workers from their
        # start, which end with the ring and are not blamed on the files they were at.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            with self._state:
                for number in range(self._worker_count):
                    self._start(number)
            while not self._closing:
                events = self._selector.select(self._poll_s)
                with self._state:
                    for worker in (key.data for key, _ in events if key.data):
                        self._hear(worker)
                    self._end_overdue_workers()
        except Exception as error:
            with self._state:
                self._error = error
        finally:
            with self._state:
                for worker in list(self._workers):
                    self._end(worker)
                    worker.process.close()
                self._state.notify_all()

    def _start(self, number: int) -> None:
        self._mapped().control[number] = 0
        process = WorkerProcess(self._descriptor, self._slot_count, self._worker_count, number)
        worker = _Worker(number, process, since=time.monotonic())
        self._workers.append(worker)
        self._selector.register(process, selectors.EVENT_READ, worker)

    def _hear(self, worker: _Worker) -> None:
        message = worker.process.receive()
        if message is None:
            self._bury(worker)
        else:
            self._take(worker, message)

    def _take(self, worker: _Worker, message: list[Any]) -> None:
        if worker.ready:
            self._busy_s += time.monotonic() - worker.since
            ticket, outcomes = message
            chunk = worker.chunks.popleft()
            assert chunk.ticket == ticket
            for place, outcome in enumerate(outcomes, chunk.first):
                self._settle(chunk.block, place, outcome)
            self._strikes = 0
        worker.ready = True
        worker.since = time.monotonic()
        self._dispatch()

    def _settle(self, number: int, place: int, outcome: list[Any]) -> None:
        """Enter a file's outcome: [height, width], [pages] or a Failure's fields; then its size and time."""
        block = self._submitted[number]
        *told, size, mtime_ns = outcome
        file = block.files[place]
        if size is not None and (size, mtime_ns) != (file.size, file.mtime_ns):
            file = replace(file, size=size, mtime_ns=mtime_ns)
        if len(told) == 2:
            decoded = DecodedSlice(file, file.slice, told[0], told[1], None)
        elif len(told) == 1:
            several = Failure("decode", "multi_page", f"it has {told[0]} pages")
            decoded = DecodedSlice(file, file.slice, 0, 0, several, told[0])
        else:
            decoded = DecodedSlice(file, file.slice, 0, 0, Failure(*told))
        block.slices[place] = decoded
        block.left -= 1
        if block.left == 0:
            self._done.append(number)
            self._state.notify_all()

    def _end_overdue_workers(self) -> None:
        now = time.monotonic()
        if now - self._polled_at < self._poll_s / 2:
            return
        # A process group that was stopped (Ctrl-Z) wakes to clocks that ran on without it.
        if now - self._polled_at > self._poll_s + self._timeout_s / 2:
            self._awake_since = now
        self._polled_at = now
        self._dying = [process for process in self._dying if not process.reaped()]
        for worker in list(self._workers):
            if worker.ready and not worker.chunks:
                continue
            since = worker.since
            if self._current(worker):
                since = int(self._mapped().control[worker.number, STARTED_NS]) / 1e9
            limit = self._timeout_s if worker.ready else STARTUP_LIMIT_S
            if now - max(since, self._awake_since) > limit:
                self._bury(worker, overdue_s=limit)

    def _current(self, worker: _Worker) -> tuple[_Chunk, int] | None:
        """The file that `worker` is at: its chunk and place in the block."""
        ticket = int(self._mapped().control[worker.number, TICKET])
        for chunk in worker.chunks:
            if chunk.ticket <= ticket < chunk.ticket + chunk.count:
                return chunk, chunk.first + ticket - chunk.ticket
        return None

    def _bury(self, worker: _Worker, overdue_s: float | None = None) -> None:
        """End a worker that died or is overdue, blame the file it was at, hand out its others again."""
        self._end(worker)
        while (message := worker.process.receive()) is not None:
            self._take(worker, message)
        complaint = worker.process.close()
        failure = self._blame(worker, overdue_s)
        blamed, place = self._current(worker) or (None, 0)
        unfinished: list[_Chunk] = []
        for chunk in worker.chunks:
            if chunk is not blamed:
                unfinished.append(chunk)
                continue
            end = chunk.first + chunk.count
            unfinished.append(_Chunk(chunk.block, chunk.first, place - chunk.first, chunk.source))
            unfinished.append(_Chunk(chunk.block, place + 1, end - place - 1, chunk.source))
            self._fail(chunk.block, place, failure)
        self._pending.extendleft(chunk for chunk in reversed(unfinished) if chunk.count)
        if blamed and blamed.source and self._mapped().control[worker.number, IS_OPENING]:
            self._spoilt.append((blamed.source, failure))
            self._pending = deque(self._sound(self._pending))
        self._strikes = 0 if blamed else self._strikes + 1
        if self._strikes >= STRIKES:
            raise MachineError(f"decode workers do not stay alive: {complaint or failure.message}")
        self._start(worker.number)
        self._dispatch()

    def _fail(self, block: int, place: int, failure: Failure) -> None:
        self._images(block)[place] = 0
        self._settle(block, place, [*astuple(failure), None, None])

    def _sound(self, chunks: Iterable[_Chunk]) -> list[_Chunk]:
        """Those chunks that are not of a volume which a worker ended at; the others fail."""
        sound = []
        for chunk in chunks:
            failure = next((why for spoilt, why in self._spoilt if spoilt is chunk.source), None)
            if failure is None:
                sound.append(chunk)
                continue
            for place in range(chunk.first, chunk.first + chunk.count):
                self._fail(chunk.block, place, failure)
        return sound

    def _blame(self, worker: _Worker, overdue_s: float | None) -> Failure:
        """Why the file failed at which `worker` ended, or was ended after `overdue_s` seconds."""
        is_read = bool(self._mapped().control[worker.number, IS_READ])
        stage = "decode" if is_read else "read"
        if overdue_s is not None:
            doing = "decoding" if is_read else "reading"
            return Failure(stage, "timeout", f"{doing} it took longer than {overdue_s:g} s", not is_read)
        if worker.process.status == OUT_OF_MEMORY:
            return Failure(stage, "memory", "not enough memory for it", transient=True)
        reason = f"the decoder {worker.process.death()}"
        if worker.process.status == -signal.SIGKILL:
            return Failure(stage, "worker_killed", f"{reason}, most often for want of memory", transient=True)
        return Failure(stage, "worker_crashed", reason)

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.process)
        worker.process.kill()
        if not worker.process.reaped():
            self._dying.append(worker.process)


def _holder(source: Volume, workers: Iterable[_Worker]) -> _Worker | None:
    """The worker that has a volume open."""
    return next((worker for worker in workers if worker.source is source), None)


def _allocate(size: int) -> int:
    refusal = f"no {size / 2**20:,.0f} MiB of memory to decode into: choose a smaller --batch"
    # Asking the kernel for more than there is would wake its OOM killer, not raise.
    if size > _memory_bytes():
        raise MachineError(refusal)
    descriptor = os.memfd_create("tumorscan-ring", os.MFD_CLOEXEC)
    try:
        # Said now, too little memory is an error; said by the first touch, it is a SIGBUS.
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.close(descriptor)
        raise MachineError(refusal) from error
    return descriptor


def _memory_bytes() -> int:
    """Memory that can be had without swapping, or the container's limit where that is less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(kib * 1024, int(text)) if text != "max" else kib * 1024


def chunk_files(block_size: int) -> int:
    """How many files of a block are handed to a worker at a time, at most."""
    return min(MOST_CHUNK_FILES, max(CHUNK_FILES, block_size // 2))


def _chunks(block: int, files: Sequence[SourceFile], most: int) -> list[_Chunk]:
    """Cut files into chunks of `most`, fewer where paths are very long and where a volume ends."""
    chunks: list[_Chunk] = []
    room = 0
    for place, file in enumerate(files):
        if (
            not chunks
            or chunks[-1].count == most
            or room < len(file.path)
            or chunks[-1].source is not file.source
        ):
            chunks.append(_Chunk(block, place, 0, file.source))
            room = CHUNK_PATH_BYTES
        chunks[-1].count += 1
        room -= len(file.path)
    return chunks
