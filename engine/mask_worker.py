"""The mask worker: a process that draws masks, so that a fast GPU's host has its interpreter for the rest.

It is started as `python -m engine.mask_worker` with one inherited descriptor, a stream. It is asked
[[path, height, width], ...], paths as latin-1 text or null, with the masks' bits behind it, 8 KB each, row by
row; it answers [[run lengths, pixels, x, y, width, height] or [errno], ...], or one errno where nothing can
be written.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.channel import receive, send
from engine.child import die_with
from engine.outputs.drawing import Drawn, DrawnHere, Found
from engine.sources.geometry import SIDE


def main() -> None:
    """Serve the process that started this one until it goes away."""
    parent, channel = (int(argument) for argument in sys.argv[1:])
    die_with(parent)
    import cv2

    cv2.setNumThreads(1)
    drawer = DrawnHere()
    with socket.socket(fileno=channel) as asker:
        while (message := receive(asker)) is not None:
            try:
                answer: Any = [_told(each) for each in drawer.draw(_masks(*message))]
            except OSError as error:
                answer = error.errno
            send(asker, answer)


def request_of(masks: Sequence[Found]) -> tuple[list[Any], bytes]:
    """What a worker is asked, to have `masks` drawn."""
    asked = [
        [None if each.path is None else each.path.decode("latin-1"), each.height, each.width]
        for each in masks
    ]
    return asked, b"".join(np.packbits(each.mask, axis=-1).tobytes() for each in masks)


def answer_of(message: Any) -> list[Drawn | OSError]:
    """What a worker answered. Raises OSError where it could not write."""
    if isinstance(message, int):
        raise OSError(message, os.strerror(message))
    return [
        OSError(each[0], os.strerror(each[0])) if len(each) == 1 else Drawn(each[0], each[1], tuple(each[2:]))
        for each in message
    ]


def _masks(asked: list[list[Any]], bits: bytes) -> list[Found]:
    packed = np.frombuffer(bits, np.uint8).reshape(len(asked), SIDE, SIDE // 8)
    return [
        Found(mask, height, width, None if path is None else path.encode("latin-1"))
        for mask, (path, height, width) in zip(np.unpackbits(packed, axis=-1), asked, strict=True)
    ]


def _told(answer: Drawn | OSError) -> list[Any]:
    return [answer.errno] if isinstance(answer, OSError) else [answer.rle, answer.pixels, *answer.box]


if __name__ == "__main__":
    main()
