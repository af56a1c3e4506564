"""The table worker: a process that writes the tables of slices, while volumes are looked at.

It is started as `python -m engine.table_worker` with one inherited descriptor, a stream. Asked [further
columns, whether Parquet is wanted] with the paths of a ledger and of an output folder behind it, a zero byte
between them, it answers whether the tables are there; why they are not is for who writes them instead.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from engine.channel import receive, send
from engine.child import die_with
from engine.errors import TumorscanError
from engine.ledger_readers import stored_rows
from engine.ledger_rows import SliceRow
from engine.outputs.parquet import write_parquet
from engine.outputs.tables import write_tables


def main() -> None:
    """Serve the process that started this one until it goes away."""
    parent, channel = (int(argument) for argument in sys.argv[1:])
    die_with(parent)
    with socket.socket(fileno=channel) as asker:
        while (message := receive(asker)) is not None:
            (extra, parquet), paths = message
            ledger, out = (Path(os.fsdecode(path)) for path in paths.split(b"\0"))
            try:
                write_all(partial(stored_rows, ledger), out, tuple(extra), parquet=parquet)
            except TumorscanError:
                send(asker, False)
            else:
                send(asker, True)


def write_all(
    rows: Callable[[], Iterable[SliceRow]], out: Path, extra: tuple[str, ...], *, parquet: bool
) -> None:
    """Write all tables of slices below `out`, each of what `rows` gives. Raises as `write_tables` does."""
    write_tables(rows(), out, extra)
    if parquet:
        write_parquet(rows(), out, extra)


if __name__ == "__main__":
    main()
