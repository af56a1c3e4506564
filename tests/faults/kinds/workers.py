"""Decode workers that die, hang or starve. The run goes on, and each costs one file at most."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Callable
from dataclasses import replace

from tests.faults.kinds import Struck, kind
from tests.faults.kinds.signals import run_signal
from tests.faults.moments import wait_for_moment
from tests.faults.scene import FINISHED, Scene


@kind()
def worker_killed(scene: Scene, chance: random.Random) -> Struck:
    """SIGKILL, as of the kernel when memory is short: what it was at is tried again by the next call."""
    return _at_workers(scene, chance, "killed", lambda pid: run_signal(pid, signal.SIGKILL))


@kind()
def worker_crashed(scene: Scene, chance: random.Random) -> Struck:
    """SIGSEGV, as of a decoder's own fault: what it was at is tried again when asked."""
    struck = _at_workers(scene, chance, "crashed", lambda pid: run_signal(pid, signal.SIGSEGV))
    return replace(struck, then=("--retry",))


@kind()
def worker_hung(scene: Scene, chance: random.Random) -> Struck:
    """Stopped for good: a file has a time limit (here two seconds instead of sixty)."""
    struck = _at_workers(
        scene, chance, "stopped", lambda pid: run_signal(pid, signal.SIGSTOP), module="tests.faults.impatient"
    )
    return replace(struck, then=("--retry",))


@kind()
def worker_out_of_memory(scene: Scene, chance: random.Random) -> Struck:
    """No memory for another image from some moment on."""

    def starve(pid: int) -> None:
        try:
            resource.prlimit(pid, resource.RLIMIT_AS, (2**20, 2**20))
        except ProcessLookupError:
            return

    return _at_workers(scene, chance, "starved", starve)


def _at_workers(
    scene: Scene, chance: random.Random, verb: str, hurt: Callable[[int], None], module: str = "engine.cli"
) -> Struck:
    """Hurt one to three decode workers of a run, one after the other."""
    run = scene.start(module=module)
    told = []
    for _ in range(chance.randint(1, 3)):
        when = wait_for_moment(run, scene, chance)
        workers = run.workers()
        if workers and not run.ended():
            hurt(chance.choice(workers))
            told.append(when)
    scene.expect(run, FINISHED)
    lost = [line for line in (scene.out / "errors.csv").read_text().splitlines() if "s_" in line]
    assert len(lost) <= len(told), f"{len(lost)} files for {len(told)} workers: {lost[:3]}"
    return Struck(f"a decoder {verb} {' and '.join(told) or 'never'}", missed=not told)
