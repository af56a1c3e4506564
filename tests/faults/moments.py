"""When a fault strikes: at a seeded point of the run's time, or of its work."""

from __future__ import annotations

import random
import time

from tests.faults.scene import Run, Scene


def wait_for_moment(run: Run, scene: Scene, chance: random.Random, *, at_work: bool = False) -> str:
    """Let `run` go on until the moment that `chance` draws, and say which it was.

    One time in three that is a share of an undisturbed run's time from the start, loading included (never
    with `at_work`), else a number of masks that are there, and a little more time.
    """
    if not at_work and chance.random() < 1 / 3:
        share = chance.uniform(0.0, 1.1)
        time.sleep(share * scene.base.seconds)
        return f"after {share:.2f} of its time"
    wanted = chance.randint(1, len(scene.base.left.files))
    rest = chance.uniform(0, 0.03)
    reached = run.until(lambda: run.masks() >= wanted)
    time.sleep(rest)
    return f"at {wanted} masks" if reached else "after its end"
