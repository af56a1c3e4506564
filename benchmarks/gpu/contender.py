"""A runtime in a process of its own, loaded and idle until it is its turn: runtimes cannot share a process.

It is started as `python -m benchmarks.gpu.contender KIND SETTINGS ...` with a socket; the parent asks by JSON
arrays on it, and is answered by ["ok", slices, seconds] or ["failed", text].
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.gpu import dry
from benchmarks.gpu.alone import Rate, cascade_rate, model_rate, open_seats
from benchmarks.gpu.data import first_batch
from benchmarks.gpu.models import RUNTIMES, Kind, open_kind
from benchmarks.gpu.settings import GPU, Settings
from benchmarks.gpu.told import Told, reason
from benchmarks.machine import CHECKOUT
from engine.bundle import Model
from engine.child import child_environment, death, die_with, last_line
from engine.errors import MachineError
from engine.gpu.device import open_device

START_LIMIT: Final = 900.0
"""Seconds in which a runtime loads both models: torch.compile and TensorRT-RTX compile kernels then."""
ANSWER_LIMIT: Final = 120.0
_MESSAGE: Final = 64 << 10


class Contender:
    """The process of one runtime. Entered, it loads in the background; `ready` waits for it."""

    def __init__(self, kind: Kind, settings: Settings, *, batch: int, lanes: int) -> None:
        self.kind = kind
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._complaints = os.memfd_create("gpu-check-complaints", os.MFD_CLOEXEC)
        words = [kind, settings.encode(), str(batch), str(lanes), str(os.getpid()), str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.contender", *words],
                cwd=CHECKOUT,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                pass_fds=(theirs.fileno(),),
            )
        finally:
            theirs.close()

    def ready(self) -> None:
        """Wait until both models have run once. Raises MachineError with its own reason."""
        self._answer(START_LIMIT)

    def model(self, model: Model, seconds: float) -> Rate:
        """One model on one stream."""
        return self._ask("model", model, seconds)

    def cascade(self, passing: float, seconds: float) -> Rate:
        """Both models on all streams, the share `passing` segmented."""
        return self._ask("cascade", passing, seconds)

    def _ask(self, *words: object) -> Rate:
        try:
            self._channel.send(json.dumps(words).encode())
        except OSError as error:
            raise MachineError(f"its process has ended: {last_line(self._complaints)}") from error
        slices, seconds = self._answer(ANSWER_LIMIT + 10)
        return Rate(int(slices), seconds)

    def _answer(self, limit: float) -> list[float]:
        self._channel.settimeout(limit)
        try:
            message = self._channel.recv(_MESSAGE)
        except TimeoutError:
            self._process.kill()
            raise MachineError(f"its process does not answer within {limit:g} seconds") from None
        if not message:
            said = last_line(self._complaints)
            ended = death(self._process.wait())
            raise MachineError(f"its process {ended}{f' ({said})' if said else ''}")
        kind, *rest = json.loads(message)
        if kind == "failed":
            raise MachineError(rest[0])
        return list(rest)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._complaints)


@contextmanager
def contenders(
    kinds: tuple[Kind, ...], settings: Settings, told: Told, *, batch: int, lanes: int
) -> Iterator[list[Contender]]:
    """Those of the runtimes that are here, loaded one beside the other; the others are named."""
    with ExitStack() as stack:
        started = [stack.enter_context(Contender(kind, settings, batch=batch, lanes=lanes)) for kind in kinds]
        ready = []
        for contender in started:
            with told.left_out(RUNTIMES[contender.kind].title):
                contender.ready()
                ready.append(contender)
        yield ready


Answers = Callable[[str, list[Any]], Rate]


def main() -> None:
    kind, settings, batch, lanes, parent, descriptor = sys.argv[1:]
    die_with(int(parent))
    channel = socket.socket(fileno=int(descriptor))
    told = Settings.decode(settings)
    opened = _open_torch if kind in ("torch", "compiled") else _open_lanes
    try:
        with dry.machine(told.dry), opened(kind, told, int(batch), int(lanes)) as answer:  # type: ignore[arg-type]
            _send(channel, "ok")
            while message := channel.recv(_MESSAGE):
                word, *rest = json.loads(message)
                rate = answer(word, rest)
                _send(channel, "ok", rate.slices, rate.seconds)
    except Exception as error:  # told to the parent, which names it
        _send(channel, "failed", reason(error))
        raise


@contextmanager
def _open_lanes(kind: Kind, settings: Settings, batch: int, lanes: int) -> Iterator[Answers]:
    images = first_batch(Path(settings.data), batch)
    with (
        open_device(GPU) as device,
        open_kind(kind, settings, batch) as models,
        open_seats(device, models, lanes, images) as seats,
    ):

        def answer(word: str, rest: list[Any]) -> Rate:
            if word == "model":
                return model_rate(device, seats[0], _named(rest[0]), batch, float(rest[1]))
            return cascade_rate(device, seats, batch, float(rest[0]), float(rest[1]))

        yield answer


@contextmanager
def _open_torch(kind: Kind, settings: Settings, batch: int, lanes: int) -> Iterator[Answers]:
    from benchmarks.gpu.torch_rates import TorchModels

    images = first_batch(Path(settings.data), batch)
    models = TorchModels(settings, images, lanes, compiled=kind == "compiled")

    def answer(word: str, rest: list[Any]) -> Rate:
        rate = (
            models.model_rate(_named(rest[0]), float(rest[1]))
            if word == "model"
            else models.cascade_rate(float(rest[0]), float(rest[1]))
        )
        return Rate(*rate)

    yield answer


def _named(model: str) -> Model:
    return "classifier" if model == "classifier" else "segmenter"


def _send(channel: socket.socket, *message: object) -> None:
    channel.send(json.dumps(message).encode())


if __name__ == "__main__":
    main()
