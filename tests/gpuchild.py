"""A GPU's process whose GPU is a double, as `python -m tests.gpuchild`: see engine.gpu.worker.

Its settings are those of tests.doublesettings; graphs are computed by the double, plans by its TensorRT. What
the double finds goes to the file `findings` beside the settings.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from unittest import mock

from engine.bundle import Bundle
from engine.child import die_with
from engine.gpu import worker
from engine.gpu.device import Device, open_device
from engine.gpu.start import Graphs, Models, Start, open_models
from engine.gpu.worker import START_BYTES, serve
from tests.double import Double, DoubleError, make_models
from tests.doublesettings import settings_of

MODULE = "tests.gpuchild"


def main() -> None:
    parent, descriptor = map(int, sys.argv[1:])
    die_with(parent)
    channel = socket.socket(fileno=descriptor)
    start = Start.decode(channel.recv(START_BYTES, socket.MSG_PEEK))
    beside = start.models.bundle if isinstance(start.models, Graphs) else None
    folder, settings = settings_of(beside, start.device)
    double = Double(settings.get("schedule", "eager"), memory=settings.get("memory", 8 << 30))
    for failure in settings.get("fail", []):
        double.fail(*failure)

    @contextmanager
    def opened(start: Start) -> Iterator[Models]:
        if isinstance(start.models, Graphs):
            classifier, segmenter = make_models(double, Bundle.load(start.models.bundle), start.batch)
            with classifier, segmenter:
                yield classifier, segmenter
        else:
            with open_models(replace(start, device=0)) as models:
                yield models

    try:
        # Each process has a double of its own, which has one GPU.
        with double, mock.patch.object(worker, "open_device", partial(_open_device, open_device)):
            serve(channel, opened)
    except DoubleError as error:
        (folder / "findings").write_text(str(error))


def _open_device(
    opened: Callable[[int], AbstractContextManager[Device]], index: int
) -> AbstractContextManager[Device]:
    del index
    return opened(0)


if __name__ == "__main__":
    main()
