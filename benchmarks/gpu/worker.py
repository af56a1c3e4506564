"""A GPU's process as `engine.gpu.worker`, with other models than a run's; settings are in the environment."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.gpu import dry
from benchmarks.gpu.models import Kind, open_kind
from benchmarks.gpu.settings import Settings
from engine.child import die_with
from engine.gpu.start import Models, Start
from engine.gpu.worker import serve

VARIABLE: Final = "TUMORSCAN_GPU_CHECK"


def serve_kind(kind: Kind) -> None:
    """Serve the run that started this process with the models of that kind."""
    parent, descriptor = map(int, sys.argv[1:])
    die_with(parent)
    settings = Settings.decode(os.environ[VARIABLE])

    @contextmanager
    def opened(start: Start) -> Iterator[Models]:
        with open_kind(kind, settings, start.batch) as models:
            yield models

    with dry.machine(settings.dry):
        serve(socket.socket(fileno=descriptor), opened)
