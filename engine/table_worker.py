"""The table worker: a process that writes the tables of slices, while volumes are looked at.

It is started as `python -m engine.table_worker` with one inherited descriptor, a stream. Asked [further
columns, whether Parquet is wanted] with the paths of a ledger and of an output folder behind it, a zero byte
between them, it answers whether the tables are there; why they are not is for who writes them instead.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from engine.channel import receive, send
from engine.child import die_with
from engine.errors import TumorscanError
from engine.ledger_readers import stored_rows
from engine.outputs.tables import write_tables


def main() -> None:
    """Serve the process that started this one until it goes away."""
    parent, channel = (int(argument) for argument in sys.argv[1:])
    die_with(parent)
    with socket.socket(fileno=channel) as asker:
        while (message := receive(asker)) is not None:
            (extra, parquet), paths = message
            ledger, out = (Path(os.fsdecode(path)) for path in paths.split(b"\0"))
            send(asker, write_all(ledger, out, tuple(extra), parquet=parquet))


def write_all(ledger: Path, out: Path, extra: tuple[str, ...], *, parquet: bool) -> bool:
    """Write all tables of a ledger's slices, as they were committed; False where it cannot be."""
    try:
        write_tables(stored_rows(ledger), out, extra)
        if parquet:
            from engine.outputs.parquet import write_parquet

            write_parquet(stored_rows(ledger), out, extra)
    except TumorscanError:
        return False
    return True


if __name__ == "__main__":
    main()
