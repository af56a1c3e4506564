"""Lists of slices: a file, or what another program writes, one path a line or NUL-separated."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from engine.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN_TICK = 0.2
"""Seconds after which a wait for standard input looks whether the run is over."""
_SNIFFED_BYTES = 64 * 1024
_LONGEST_LINE = 64 * 1024
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def open_list(source: str, stop: threading.Event) -> Iterator[bytes]:
    """Yield the paths that the file `source` lists, or standard input where it is "-" (until `stop` is set).

    Raises UsageError where the file cannot be read, and while iterating what `read_list` does.
    """
    if source == "-":
        return read_list(io.BufferedReader(_StandardInput(stop)))
    try:
        file = open(source, "rb")  # noqa: SIM115 - open for as long as the walk goes on
    except OSError as error:
        raise UsageError(f"--files-from {source}: cannot be read ({error.strerror})") from error
    return _lines(file)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    with file:
        yield from read_list(file)


def read_list(source: BinaryIO) -> Iterator[bytes]:
    """Yield the paths of a list, one a line or NUL-separated, as they are read.

    A NUL in the first 64 KiB tells which. A carriage return at a line's end, empty lines and the mark that
    some editors begin UTF-8 with are dropped. Raises UsageError for what is no list of paths: UTF-16, a line
    longer than 64 KiB.
    """
    block = source.read(_SNIFFED_BYTES).removeprefix(codecs.BOM_UTF8)
    if block.startswith(_UTF_16) and b"\0" in block[2:4]:
        raise UsageError("--files-from: the list is UTF-16: save it as UTF-8")
    separator = b"\0" if b"\0" in block else b"\n"
    rest = b""
    while block:
        *lines, rest = (rest + block).split(separator)
        if len(rest) > _LONGEST_LINE:
            raise UsageError("--files-from: not a list of paths (a line is longer than 64 KiB)")
        yield from (path for line in lines if (path := _line(line, separator)))
        block = source.read(_SNIFFED_BYTES)
    if path := _line(rest, separator):
        yield path


class _StandardInput(io.RawIOBase):
    """Standard input that ends when `stop` is set, though whoever writes it keeps it open and is silent."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._stop.is_set():
            if select.select([sys.stdin.fileno()], [], [], STDIN_TICK)[0]:
                return os.readv(sys.stdin.fileno(), [buffer])
        return 0


def _line(line: bytes, separator: bytes) -> bytes:
    return line.removesuffix(b"\r") if separator == b"\n" else line
