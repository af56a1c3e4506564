"""The decode worker: a process that reads files and decodes them into slots of the ring's shared memory.

It is started as `python -m engine.decode_worker` with two inherited descriptors: the memory, and a socket on
which every message is one JSON array. The ring sends [ticket, slot, [path, ...]], paths as latin-1 text, or,
of slices of one volume, [ticket, slot, [path, ...], [slice, ...], recipe]; a message that is too long for the
socket comes as a descriptor. The worker answers [ticket, [outcome, ...]], an outcome being [height, width],
the four fields of a Failure, or [pages] of a picture that has several, and then the file's bytes and time
(nanoseconds) as it was read, null where it was not. Its first message, [0, []], says that it is ready. While
it works, its row of the control area holds the ticket of the file it is at (the request's ticket plus the
file's place in it), since when, whether the file has been read, and whether a whole volume is being opened,
so that whatever ends the worker can be laid at that file's door.
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
from engine.sources.files import Content, open_file
from engine.sources.geometry import SIDE

SLOT_BYTES = SIDE * SIDE * 3
MESSAGE_BYTES = 64 * 1024
READY = [0, []]
OUT_OF_MEMORY = 77
"""The exit status of a worker that has none: a fresh one may, and this one would fail every further file."""

# The columns of the control area; a row fills a cache line of its own.
TICKET, STARTED_NS, IS_READ, IS_OPENING, CONTROL_COLUMNS = 0, 1, 2, 3, 8

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
    # These are loaded before the first file, so that no file pays for it or is blamed for their failure.
    import cv2

    cv2.setNumThreads(1)
    ring = RingMemory.map(memory, slots, workers)
    control = ring.control[number]
    ring_side = socket.socket(fileno=channel)
    pictures = _Pictures(control)
    ring_side.send(json.dumps(READY).encode())
    _silence_decoders()
    volumes: _Volumes | None = None
    while message := _receive(ring_side):
        ticket, slot, paths, *of_volume = json.loads(message)
        outcomes: list[Outcome] = []
        for place, path in enumerate(paths):
            control[STARTED_NS] = time.monotonic_ns()
            control[IS_READ] = 0
            control[TICKET] = ticket + place
            pixels = ring.slots[slot + place]
            if of_volume:
                numbers, recipe = of_volume
                volumes = volumes or _Volumes(control)
                outcomes.append(volumes.read(recipe, path.encode("latin-1"), numbers[place], pixels))
            else:
                outcomes.append(pictures.read(path.encode("latin-1"), pixels))
        control[TICKET] = 0
        ring_side.send(json.dumps([ticket, outcomes]).encode())


class _Pictures:
    """Files of one picture; what is being read of one is told in the control area."""

    def __init__(self, control: npt.NDArray[np.int64]) -> None:
        from engine.sources.plain_tiff import PlainTiffs
        from engine.sources.read import decode_slice

        self._control = control
        self._plain = PlainTiffs()
        self._decode = decode_slice

    def read(self, path: bytes, pixels: npt.NDArray[np.uint8]) -> Outcome:
        """Decode a file into `pixels` [256,256,3]."""
        content: Content | None = None
        outcome: Outcome
        try:
            with open_file(path) as file:
                if self._plain.read(file, pixels):
                    return (*pixels.shape[:2], file.size, file.mtime_ns)
                content = file.content()
            self._control[IS_READ] = 1
            outcome = self._decode(content.data, pixels)
            self._plain.learn(content.data)
        except Exception as error:
            outcome = _pages(error, content) or _told(error)
            pixels[...] = 0
        return (*outcome, *_stamp(content))


class _Volumes:
    """Slices of volumes; what is being read of one is told in the control area."""

    def __init__(self, control: npt.NDArray[np.int64]) -> None:
        from engine.sources.reader import VolumeReader

        self._control = control
        self._reader = VolumeReader(self)

    def read(self, recipe: str, path: bytes, number: int, pixels: npt.NDArray[np.uint8]) -> Outcome:
        """Decode one slice into `pixels` [256,256,3]."""
        try:
            piece = self._reader.read(recipe, path, number)
            self._control[IS_OPENING] = 0
            outcome: Outcome = piece.put(pixels)
        except Exception as error:
            self._control[IS_OPENING] = 0
            outcome = _told(error)
            pixels[...] = 0
            return (*outcome, None, None)
        return (*outcome, piece.size, piece.mtime_ns)

    def opens(self) -> None:
        """See `Watch`. Each file of a volume has the time that a file may take."""
        self._control[STARTED_NS] = time.monotonic_ns()
        self._control[IS_OPENING] = 1

    def reads(self) -> None:
        """See `Watch`."""
        self._control[STARTED_NS] = time.monotonic_ns()
        self._control[IS_OPENING] = 0

    def decodes(self) -> None:
        """See `Watch`."""
        self._control[IS_READ] = 1


def _receive(ring_side: socket.socket) -> bytes:
    message, descriptors, _, _ = socket.recv_fds(ring_side, MESSAGE_BYTES, 1)
    if not descriptors:
        return message
    with open(descriptors[0], "rb") as file:
        return file.read()


def _pages(error: Exception, content: Content | None) -> Outcome:
    """How many pages a TIFF has that was refused for having several; () of every other failure."""
    if content is None or not isinstance(error, SliceError) or error.failure.code != "multi_page":
        return ()
    from engine.sources.tiff import TIFF_SIGNATURES, page_directories

    if not content.data.startswith(TIFF_SIGNATURES):
        return ()
    try:
        return (len(page_directories(content.data)),)
    except SliceError as damage:
        return dataclasses.astuple(damage.failure)


def _silence_decoders() -> None:
    """Drop what libtiff, libpng and libjpeg print; failures are told through the socket."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.dup2(null, sys.stderr.fileno())
    os.close(null)


def _stamp(content: Content | None) -> tuple[int | None, int | None]:
    return (None, None) if content is None else (len(content.data), content.mtime_ns)


def _told(error: Exception) -> Outcome:
    """The fields of the failure that `error` is. A want of memory ends the process."""
    if _is_out_of_memory(error):
        os._exit(OUT_OF_MEMORY)
    return dataclasses.astuple(_failure(error))


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
