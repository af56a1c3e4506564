"""Names the machine that a benchmark ran on, and what else it was doing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from benchmarks.results import Host
from engine.driver import probe_driver
from engine.errors import MachineError
from engine.outputs.runjson import describe_machine, package_versions
from engine.runners import cpu_flags

CHECKOUT: Final = Path(__file__).parents[1]
_GOVERNOR: Final = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def load() -> float:
    """The load average of the last minute."""
    return os.getloadavg()[0]


def describe(scratch: Path, load_before: float, packages: dict[str, str] | None = None) -> Host:
    """This machine; `packages` are further ones than tumorscan's own, of the peers."""
    machine = describe_machine()
    return Host(
        cpu=machine.cpu,
        logical_cores=machine.logical_cores,
        virtual="hypervisor" in cpu_flags(),
        governor=_GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else "unknown",
        memory_bytes=machine.memory_bytes,
        kernel=machine.kernel,
        python=machine.python,
        gpus=_gpus(),
        scratch_file_system=_file_system(scratch),
        packages={**package_versions(), **(packages or {})},
        load_before=load_before,
        load_after=load(),
    )


def revision() -> str:
    """The commit of this checkout, with a + where files differ from it; "unknown" without git."""
    said = []
    for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "engine", "models")):
        try:
            done = subprocess.run(["git", *words], cwd=CHECKOUT, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        said.append(done.stdout.strip())
    return said[0] + ("+" if said[1] else "")


def _gpus() -> tuple[str, ...]:
    try:
        return tuple(gpu.name for gpu in probe_driver().gpus)
    except MachineError:
        return ()


def _file_system(folder: Path) -> str:
    """The kind of file system that `folder` lies on, as the kernel's table of mounts has it."""
    place = folder.resolve()
    found, longest = "unknown", -1
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        where = point.replace("\\040", " ")
        if place.is_relative_to(where) and len(where) > longest:
            found, longest = kind, len(where)
    return found
