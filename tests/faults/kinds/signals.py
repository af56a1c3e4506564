"""Signals to the command itself, and the clock that ends it."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

from tests.faults import shim
from tests.faults.kinds import Struck, kind
from tests.faults.moments import wait_for_moment
from tests.faults.scene import FINISHED, Run, Scene

GRACE_S = 20.0
"""What a container's scheduler waits between SIGTERM and SIGKILL, at least."""
INTERRUPTED, TERMINATED, OUT_OF_TIME = 130, 143, 75


@kind()
def sigkill(scene: Scene, chance: random.Random) -> Struck:
    """Killed, up to three times in a row."""
    told = []
    killed = 0
    for _ in range(chance.randint(1, 3)):
        run = scene.start()
        told.append(wait_for_moment(run, scene, chance))
        run.signal(signal.SIGKILL)
        killed += scene.expect(run, -signal.SIGKILL, FINISHED) != FINISHED
    return Struck(f"killed {' and '.join(told)}", missed=not killed)


@kind()
def sigterm(scene: Scene, chance: random.Random) -> Struck:
    """Asked to end, by itself or with its whole group as a container's stop does."""
    run = scene.start()
    when = wait_for_moment(run, scene, chance)
    group = chance.random() < 0.5
    status = _stop(scene, run, signal.SIGTERM, TERMINATED, group=group)
    return Struck(
        f"SIGTERM to the {'group' if group else 'process'} {when}: {status}", missed=status == FINISHED
    )


@kind()
def sigterm_hung(scene: Scene, chance: random.Random) -> Struck:
    """Asked to end while a file hangs its decoder: that file is not waited for."""
    run = scene.start()
    run.until(run.at_work)
    if not run.ended() and (workers := run.workers()):
        for worker in workers:
            run_signal(worker, signal.SIGSTOP)
    pause = chance.uniform(0, 1)
    time.sleep(pause)
    status = _stop(scene, run, signal.SIGTERM, TERMINATED)
    return Struck(f"SIGTERM {pause:.1f} s after the decoders stopped: {status}", missed=status == FINISHED)


@kind()
def ctrl_c(scene: Scene, chance: random.Random) -> Struck:
    """Ctrl-C, which a terminal sends to the whole group."""
    run = scene.start()
    when = wait_for_moment(run, scene, chance)
    status = _stop(scene, run, signal.SIGINT, INTERRUPTED, group=True)
    return Struck(f"Ctrl-C {when}: {status}", missed=status == FINISHED)


@kind()
def ctrl_c_twice(scene: Scene, chance: random.Random) -> Struck:
    """Ctrl-C by an impatient user."""
    run = scene.start()
    when = wait_for_moment(run, scene, chance)
    run.signal(signal.SIGINT, group=True)
    time.sleep(chance.uniform(0, 0.05))
    begun = time.monotonic()
    status = _stop(scene, run, signal.SIGINT, INTERRUPTED, group=True)
    return Struck(
        f"Ctrl-C twice {when}: {status} after {time.monotonic() - begun:.1f} s", missed=status == FINISHED
    )


@kind(shim.why_not)
def max_runtime(scene: Scene, chance: random.Random) -> Struck:
    """Stopped by its own clock as often as need be, as a scheduler requeues it; the input's disk is slow."""
    slow = shim.calls("read", "data/p", do="sleep 25", count=0, mark=scene.folder / "mark")
    seconds = chance.uniform(0.05, 1.5)
    for _ in range(40):
        run = scene.start("--max-runtime", f"{seconds:.3f}", env=slow)
        if scene.expect(run, OUT_OF_TIME, FINISHED) == FINISHED:
            break
        assert run.seconds < GRACE_S + scene.base.seconds
    calls = len(scene.runs)
    return Struck(f"--max-runtime of {seconds:.2f} s, {calls} calls", missed=calls == 1)


def _stop(scene: Scene, run: Run, number: int, status: int, *, group: bool = False) -> int:
    """Send the signal; the run ends in order and in time. One that is not yet up dies of it."""
    starting = not (scene.out / "run.sqlite").exists()
    begun = time.monotonic()
    run.signal(number, group=group)
    allowed = (status, FINISHED, -number) if starting else (status, FINISHED)
    ended = scene.expect(run, *allowed)
    took = time.monotonic() - begun
    assert took < GRACE_S, f"took {took:.0f} s to end"
    return ended


def run_signal(pid: int, number: int) -> None:
    """Signal a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
