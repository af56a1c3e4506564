"""The memory of a process and all its descendants, shared pages counted once."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_INTERVAL_S = 0.25


class PeakMemory:
    """Watches the processes below `root` while it is entered; `bytes` is the most that they had together.

    That is the sum of proportional set sizes: of a page that n processes map, each is charged an nth, so the
    ring counts once. Peaks shorter than the interval are missed.
    """

    def __init__(self, root: int) -> None:
        self.bytes = 0
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL_S):
            self.bytes = max(self.bytes, sum(map(_pss, family(self._root))))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


def family(root: int) -> list[int]:
    """The processes that descend from `root`, itself first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def _pss(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in text.splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "Pss:"), 0)
