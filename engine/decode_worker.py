"""The decode worker: a process that reads files and decodes them into slots of the ring's shared memory.

It is started as `python -m engine.decode_worker` with two inherited descriptors: the memory, and a socket on
which every message is one JSON array. The ring sends [ticket, slot, [path, ...]], paths as latin-1 text; the
worker answers [ticket, [outcome, ...]], an outcome being [height, width] or the four fields of a Failure, and
then the file's bytes and time (nanoseconds) as it was read, null where it was not. Its first message,
[0, []], says that it is ready. While it works, its row of the control area holds the ticket of the file it is
at (the request's ticket plus the file's place in it), since when, and whether the file has been read, so that
whatever ends the worker can be laid at that file's door.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.child import die_with
from engine.errors import Failure, SliceError
from engine.sources.files import Content, read_content
from engine.sources.geometry import SIDE

SLOT_BYTES = SIDE * SIDE * 3
MESSAGE_BYTES = 64 * 1024
READY = [0, []]
OUT_OF_MEMORY = 77
"""The exit status of a worker that has none: a fresh one may, and this one would fail every further file."""

# The columns of the control area; a row fills a cache line of its own.
TICKET, STARTED_NS, IS_READ, CONTROL_COLUMNS = 0, 1, 2, 8

_LONGEST_MESSAGE = 500

_OPENCV_NO_MEMORY = -4  # cv2.Error.StsNoMem

Outcome = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class RingMemory:
    """The shared memory, mapped while one of these lives: `slots` [n,256,256,3], `control` [workers,8]."""

    slots: npt.NDArray[np.uint8]
    control: npt.NDArray[np.int64]

    @staticmethod
    def size(slots: int, workers: int) -> int:
        """Return the bytes that `slots` slots and `workers` workers need."""
        return slots * SLOT_BYTES + workers * CONTROL_COLUMNS * 8

    @classmethod
    def map(cls, descriptor: int, slots: int, workers: int) -> RingMemory:
        """Map the memory behind `descriptor`, which has `size(slots, workers)` bytes."""
        mapping = mmap.mmap(descriptor, cls.size(slots, workers))
        pixels = np.frombuffer(mapping, np.uint8, slots * SLOT_BYTES).reshape(slots, SIDE, SIDE, 3)
        control = np.frombuffer(mapping, np.int64, offset=slots * SLOT_BYTES)
        return cls(pixels, control.reshape(workers, CONTROL_COLUMNS))


def main() -> None:
    """Serve the ring that started this process until it goes away."""
    parent, memory, slots, workers, number, channel = (int(argument) for argument in sys.argv[1:])
    die_with(parent)
    # cv2 is loaded before the first file, so that no file pays for it or is blamed for its failure.
    import cv2

    from engine.sources.read import decode_slice

    cv2.setNumThreads(1)
    ring = RingMemory.map(memory, slots, workers)
    control = ring.control[number]
    ring_side = socket.socket(fileno=channel)
    ring_side.send(json.dumps(READY).encode())
    _silence_decoders()
    while message := ring_side.recv(MESSAGE_BYTES):
        ticket, slot, paths = json.loads(message)
        outcomes: list[Outcome] = []
        for place, path in enumerate(paths):
            control[STARTED_NS] = time.monotonic_ns()
            control[IS_READ] = 0
            control[TICKET] = ticket + place
            pixels = ring.slots[slot + place]
            content: Content | None = None
            outcome: Outcome
            try:
                content = read_content(path.encode("latin-1"))
                control[IS_READ] = 1
                outcome = decode_slice(content.data, pixels)
            except Exception as error:
                if _is_out_of_memory(error):
                    os._exit(OUT_OF_MEMORY)
                pixels[...] = 0
                outcome = dataclasses.astuple(_failure(error))
            outcomes.append((*outcome, *_stamp(content)))
            content = None  # the next file may need its memory
        control[TICKET] = 0
        ring_side.send(json.dumps([ticket, outcomes]).encode())


def _silence_decoders() -> None:
    """Drop what libtiff, libpng and libjpeg print; failures are told through the socket."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.dup2(null, sys.stderr.fileno())
    os.close(null)


def _stamp(content: Content | None) -> tuple[int | None, int | None]:
    return (None, None) if content is None else (len(content.data), content.mtime_ns)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or getattr(error, "code", None) == _OPENCV_NO_MEMORY


def _failure(error: Exception) -> Failure:
    if isinstance(error, SliceError):
        failure = error.failure
    else:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        failure = Failure("decode", "decoder_error", f"{type(error).__name__} in {where}: {error}")
    return dataclasses.replace(failure, message=" ".join(failure.message.split())[:_LONGEST_MESSAGE])


if __name__ == "__main__":
    main()
