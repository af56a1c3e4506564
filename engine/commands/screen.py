"""What a command says while it works: that nobody hears it any more is no reason to end."""

from __future__ import annotations

import io
import os
import threading
from contextlib import suppress
from typing import Final, TextIO, cast

from engine.watch.events import json_line

_JSON: Final = threading.Event()
"""Set once this process is asked to tell what ends it as JSON (`--log-format json`)."""


def speak_json() -> None:
    """Have `complaint` be JSON from now on."""
    _JSON.set()


def complaint(text: str, status: int) -> str:
    """The one line, its end included, that tells why a command ended with exit status `status`."""
    line = " ".join(text.split())
    if _JSON.is_set():
        return json_line("error", "error", message=line, exit_status=status)
    return f"tumorscan: {line}\n"


def lasting(stream: TextIO) -> TextIO:
    """A text stream over `stream` that goes quiet where that one fails.

    A pager is left, a terminal closed, the disk of a log is full: none of it concerns the work. What `stream`
    still holds goes nowhere then, so that it does not fail once more when Python ends.
    """
    return cast("TextIO", _Lasting(stream))


class _Lasting(io.TextIOBase):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._mute()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._mute()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def _mute(self) -> None:
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
