"""The machine: CPU, memory, files, disk."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from pathlib import Path
from typing import Final

from engine import host
from engine.checks.finding import Facts, Finding, Group, gib
from engine.probes import Answer
from engine.text import shown

LOW_MEMORY: Final = 1 << 30
"""Bytes; a run of the shipped models takes 0.4 GiB and the system its share."""
LOW_DISK: Final = 1_000_000_000
LOW_DESCRIPTORS: Final = 256
_INSTRUCTIONS: Final = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2")


def look_at_system() -> list[Finding]:
    """The operating system and the interpreter."""
    facts: Facts = {
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }
    value = f"{facts['system']} {facts['kernel']} on {facts['architecture']}, Python {facts['python']}"
    return [Finding(group="machine", name="system", status="ok", value=value, facts=facts)]


def look_at_cpu(decoding: Answer) -> list[Finding]:
    """The CPU's name, and of its instructions those that decide a speed."""
    if not decoding.ok:  # NumPy is about to be imported, and may be what crashes
        return [
            Finding(group="machine", name="cpu", status="missing", value="not asked: NumPy does not load")
        ]
    from engine.outputs.runjson import describe_machine
    from engine.runners import BF16_FLAGS, cpu_flags

    flags = cpu_flags()
    known = [name for name in _INSTRUCTIONS if name in flags]
    name = describe_machine().cpu
    bf16 = bool(flags & BF16_FLAGS)
    return [
        Finding(
            group="machine",
            name="cpu",
            status="ok",
            value=f"{name}; {', '.join(known) or 'no vector instructions known'}"
            + ("" if bf16 else "; no bfloat16: fp32 is computed"),
            facts={"name": name, "instructions": list(known), "bf16": bf16},
        )
    ]


def look_at_cores() -> list[Finding]:
    """The cores that this process may run on, and the CPU time that a container leaves it."""
    usable, limit = len(os.sched_getaffinity(0)), host.cpu_limit()
    there = os.cpu_count() or usable
    value = f"{usable}" if usable == there else f"{usable} of {there}"
    short = limit is not None and limit < usable - 0.5
    return [
        Finding(
            group="machine",
            name="cores",
            status="warn" if short else "ok",
            value=value if limit is None else f"{value}, CPU time of {limit:g} allowed",
            advice="more threads than CPU time wait for each other: bind the container to cores "
            "(docker run --cpuset-cpus) instead of limiting its time (--cpus)"
            if short
            else "",
            facts={"usable": usable, "there": there, "limit": limit},
        )
    ]


def look_at_memory() -> list[Finding]:
    """The machine's memory, or what a container may use of it."""
    total, available = host.memory()
    limit = host.memory_limit()
    binds = limit is not None and limit < total
    usable = min(total, limit) if limit is not None else total
    low = min(usable, available) < LOW_MEMORY
    advice = f"a run needs about {gib(LOW_MEMORY)}: free some, or raise the container's limit"
    return [
        Finding(
            group="machine",
            name="memory",
            status="warn" if low else "ok",
            value=f"{gib(usable)}{f' allowed of {gib(total)}' if binds else ''}, {gib(available)} available",
            advice=advice if low else "",
            facts={"total": total, "available": available, "limit": limit if binds else None},
        )
    ]


def look_at_descriptors() -> list[Finding]:
    """How many files this process may hold open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 0 <= soft < LOW_DESCRIPTORS
    return [
        Finding(
            group="machine",
            name="descriptors",
            status="warn" if low else "ok",
            value="unlimited open files" if soft < 0 else f"{soft:,} open files",
            advice=f"raise it: ulimit -n {LOW_DESCRIPTORS}" if low else "",
            facts={"soft": soft, "hard": hard},
        )
    ]


def look_at_disk(group: Group, name: str, folder: Path) -> list[Finding]:
    """Free space where `folder` is, or would be made."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
    advice = "" if free >= LOW_DISK else "make room there"
    if not writable:
        advice = "choose another folder"
    return [
        Finding(
            group=group,
            name=name,
            status="warn" if advice else "ok",
            value=f"{free / 1e9:,.1f} GB free in {shown(folder)}{'' if writable else ', not writable'}",
            advice=advice,
            facts={"folder": shown(folder), "free": free, "writable": writable},
        )
    ]
