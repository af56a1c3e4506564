"""What the command talks to goes away: that is no reason to end."""

from __future__ import annotations

import os
import random

from tests.faults.kinds import Struck, kind
from tests.faults.moments import wait_for_moment
from tests.faults.scene import FINISHED, Scene


@kind()
def screen_gone(scene: Scene, chance: random.Random) -> Struck:
    """A pager that was left, a log that cannot grow, a terminal that was closed."""
    what = chance.choice(("pipe", "full", "terminal"))
    if what == "full":
        end = os.open("/dev/full", os.O_WRONLY)
        scene.expect(scene.start(stderr=end), FINISHED)
        os.close(end)
        return Struck("the log could not be written")
    near, far = os.openpty() if what == "terminal" else os.pipe()
    run = scene.start(stderr=far)
    os.close(far)
    when = wait_for_moment(run, scene, chance)
    missed = run.ended()
    os.close(near)
    scene.expect(run, FINISHED)
    return Struck(f"the reader of its {what} left {when}", missed=missed)
