"""What this process may use of its machine: cores and memory, as a container's limits leave them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_ROOT: Final = Path("/")


def cpu_limit(root: Path = _ROOT) -> float | None:
    """The CPU time that the control groups allow, in cores (`docker run --cpus`); None without a limit.

    `root` is where proc/ and sys/ lie.
    """
    allowed = []
    for folder in _groups(root, "cpu"):
        fields = _read(folder / "cpu.max").split()
        if not fields:  # version 1
            fields = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(fields) == 2 and all(map(str.isdigit, fields)) and int(fields[1]):  # not "max", not -1
            allowed.append(int(fields[0]) / int(fields[1]))
    return min(allowed, default=None)


def memory_limit(root: Path = _ROOT) -> int | None:
    """The memory that the control groups allow, in bytes; None without a limit.

    Version 1 says "no limit" by a number larger than any machine's memory, which is given as it is.
    """
    allowed = []
    for folder in _groups(root, "memory"):
        text = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
        if text.isdigit():  # no "max"
            allowed.append(int(text))
    return min(allowed, default=None)


def memory(root: Path = _ROOT) -> tuple[int, int]:
    """The machine's memory and what of it is free or can be freed, in bytes. Raises OSError, KeyError."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    kibibytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kibibytes["MemTotal"] << 10, kibibytes["MemAvailable"] << 10


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folder of this process's control group and those above it: the tightest of all limits binds.

    A container may see its group's name on the host and yet only its own folder, at the top.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in ("", controller, "unified") if not controllers else (controllers, controller):
            top = root / "sys/fs/cgroup" / mount
            below = PurePosixPath(path.lstrip("/"))
            yield from (top / part for part in (below, *below.parents) if ".." not in part.parts)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
