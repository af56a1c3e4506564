"""A clock that jumps: nothing of a run may hang on the time of day."""

from __future__ import annotations

import random

from tests.faults import shim
from tests.faults.kinds import Struck, kind
from tests.faults.scene import FINISHED, Scene


@kind(shim.why_not)
def clock_jumps(scene: Scene, chance: random.Random) -> Struck:
    """By seconds (a correction), hours (a time zone) or years (a dead battery), again and again."""
    most = chance.choice((5, 7200, 10 * 365 * 86400))
    words = chance.choice(((), ("--max-runtime", "10m")))
    scene.expect(scene.start(*words, env=shim.clock(most)), FINISHED)
    return Struck(f"the clock jumped by up to {most} s with {' '.join(words) or 'no limit'}")
