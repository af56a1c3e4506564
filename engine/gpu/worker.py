"""A GPU's process: it has the CUDA context, which a fault of the GPU ends, and the lanes.

It is started as `python -m engine.gpu.worker` with one inherited descriptor, a socket. The parent's first
message is a `Start`; after it every message either way is a JSON array.

    to the process                          from it
                                            ["ready", [{name, version, precision, identity}, ...]]
    ["ring", slots, seats], and the         ["ring", error number of the registration, 0 for none]
    descriptors of ring and results
    ["score", seat, first slot, slices]     ["copied", seat]   the slots may be filled again
                                            ["scored", seat]   the seat's results are there
                                            ["failed", kind, text]   and nothing after it

The slices of a score that are to be scored stand in its seat's `valid`. When the parent's end is closed, what
is under way is done, and the process ends.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.child import die_with
from engine.errors import MachineError, UsageError
from engine.gpu.device import GpuMemoryError, open_device
from engine.gpu.lane import SLICE_BYTES, Work
from engine.gpu.lanes import Lanes, open_lanes
from engine.gpu.results import Results
from engine.gpu.start import Models, Start, open_models
from engine.runners.base import SIDE

MESSAGE_BYTES: Final = 64 << 10
START_BYTES: Final = 1 << 20
"""The longest message, and the longest start."""
_TEXT: Final = 5000
"""Characters that are told of a failure."""

KINDS: Final[dict[str, type[Exception]]] = {
    "memory": GpuMemoryError,
    "machine": MachineError,
    "usage": UsageError,
    "bug": RuntimeError,
}
"""What kind of failure the parent raises for which word; the first that fits."""


def main() -> None:
    """Serve the run that started this process until it goes away."""
    parent, descriptor = map(int, sys.argv[1:])
    die_with(parent)
    serve(socket.socket(fileno=descriptor), open_models)


def serve(channel: socket.socket, opened: Callable[[Start], AbstractContextManager[Models]]) -> None:
    """Talk with the parent, from its `Start` until it closes its end."""
    message = channel.recv(START_BYTES)
    if not message:
        return
    try:
        start = Start.decode(message)
        failed = partial(_fail, channel)
        with (
            open_device(start.device) as device,
            opened(start) as models,
            open_lanes(
                device, models, count=start.lanes, batch=start.batch, gate=start.gate, failed=failed
            ) as lanes,
        ):
            _send(channel, "ready", [_described(model) for model in models])
            _score(channel, lanes, start.batch)
    except Exception as error:
        _fail(channel, error)


def _score(channel: socket.socket, lanes: Lanes, batch: int) -> None:
    message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 2)
    if not message:
        return
    _, slots, seats = json.loads(message)
    ring, results = descriptors
    images = _map_slots(ring, slots)
    places = Results.map(results, seats, batch)
    for descriptor in descriptors:
        os.close(descriptor)
    _send(channel, "ring", lanes.begin(images))
    while message := channel.recv(MESSAGE_BYTES):
        _, seat, first, count = json.loads(message)
        lanes.submit(
            Work(
                images[first : first + count],
                places.seat(seat, count),
                copied=partial(_send, channel, "copied", seat),
                scored=partial(_send, channel, "scored", seat),
            )
        )


def _map_slots(descriptor: int, slots: int) -> npt.NDArray[np.uint8]:
    """The ring's slots, uint8 [slots,256,256,3], which stand at the beginning of its memory."""
    mapping = mmap.mmap(descriptor, slots * SLICE_BYTES)
    return np.frombuffer(mapping, np.uint8).reshape(slots, SIDE, SIDE, 3)


def _described(model: Any) -> dict[str, Any]:
    names = ("name", "version", "precision")
    return {**{name: getattr(model, name) for name in names}, "identity": dict(model.identity)}


def described(error: BaseException) -> tuple[str, str]:
    """A failure as it is told to the parent: its kind and its text."""
    kind = next((word for word, raised in KINDS.items() if isinstance(error, raised)), "bug")
    text = str(error) if kind != "bug" else "".join(traceback.format_exception(error))
    return kind, text[-_TEXT:]


def _fail(channel: socket.socket, error: BaseException) -> None:
    _send(channel, "failed", *described(error))


def _send(channel: socket.socket, *message: object) -> None:
    """Tell the parent; one that is gone needs no answers."""
    with suppress(BrokenPipeError, ConnectionResetError):
        channel.send(json.dumps(message).encode())


if __name__ == "__main__":
    main()
