"""The command `tumorscan`: from its first line on, Ctrl-C and SIGTERM end it with a line of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType


def main() -> None:
    """Run the command and exit with its status (each command's --help names them)."""
    with _held_back() as asked:
        app = load()
        command = app.whole_app()
    app.run(command, asked)


def load() -> ModuleType:
    """What the command is. It takes half a second, in which a signal would leave a traceback."""
    from engine import app

    return app


@contextmanager
def _held_back() -> Iterator[list[int]]:
    """The signals that ask for an end while this lasts; those that are ignored stay so."""
    asked: list[int] = []

    def take(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    kept = {number: handler for number, handler in kept.items() if handler is not signal.SIG_IGN}
    for number in kept:
        signal.signal(number, take)
    try:
        yield asked
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
