"""The tables of slices, written by a process of their own while this one looks at volumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from engine.errors import MachineError
from engine.helper import Helper
from engine.outputs.atomic import clean_after

LEAST_BYTES: Final = 2**24
"""Of a ledger whose tables take longer than a process takes to start: some 50,000 rows."""


@contextmanager
def tables_aside(
    ledger: Path, out: Path, extra: tuple[str, ...], *, parquet: bool
) -> Iterator[Callable[[], bool]]:
    """Have the tables of `ledger` written below `out` meanwhile, where that saves time.

    Gives what waits for them and tells whether they are there; nobody writes them once the block has ended.
    """
    process = None
    if len(os.sched_getaffinity(0)) > 1 and ledger.stat().st_size >= LEAST_BYTES:
        with suppress(MachineError):  # no process can be started: this one writes them
            process = Helper("engine.table_worker", "a table worker")
    if process is None:
        yield lambda: False
        return
    folder = os.fsencode(out)
    try:
        process.send([list(extra), parquet], os.fsencode(ledger) + b"\0" + folder)
        yield lambda: (process.receive() or (False, b""))[0]
    finally:
        process.end()
        clean_after(process.pid, folder)
