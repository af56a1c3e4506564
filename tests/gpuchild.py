"""A GPU's process whose GPU is a double, as `python -m tests.gpuchild`: see engine.gpu.worker.

It scores with the bundle that its start names. Beside that may lie double.json, {"schedule", "memory" in
bytes, "fail": [[name, at, error], ...]}; what the double finds goes there too, to the file `findings`.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.bundle import Bundle
from engine.child import die_with
from engine.gpu.start import Graphs, Models, Start
from engine.gpu.worker import START_BYTES, serve
from tests.double import Double, DoubleError, make_models

MODULE = "tests.gpuchild"


def main() -> None:
    parent, descriptor = map(int, sys.argv[1:])
    die_with(parent)
    channel = socket.socket(fileno=descriptor)
    start = Start.decode(channel.recv(START_BYTES, socket.MSG_PEEK))
    assert isinstance(start.models, Graphs)
    folder = start.models.bundle
    settings = json.loads((folder / "double.json").read_text()) if (folder / "double.json").exists() else {}
    double = Double(settings.get("schedule", "eager"), memory=settings.get("memory", 8 << 30))
    for failure in settings.get("fail", []):
        double.fail(*failure)

    @contextmanager
    def opened(start: Start) -> Iterator[Models]:
        classifier, segmenter = make_models(double, Bundle.load(folder), start.batch)
        with classifier, segmenter:
            yield classifier, segmenter

    try:
        with double:
            serve(channel, opened)
    except DoubleError as error:
        Path(folder, "findings").write_text(str(error))


if __name__ == "__main__":
    main()
