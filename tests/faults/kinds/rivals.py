"""A second run on the same output: it is refused, and the first one does not notice."""

from __future__ import annotations

import random

from tests.faults.kinds import Struck, kind
from tests.faults.moments import wait_for_moment
from tests.faults.scene import FINISHED, Scene

WRONG_USE = 2


@kind()
def second_run(scene: Scene, chance: random.Random) -> Struck:
    """At any moment of the first; only where they start together may the second be the one that goes on."""
    first = scene.start()
    together = chance.random() < 0.3
    when = "at the same time" if together else wait_for_moment(first, scene, chance, at_work=True)
    missed = first.ended()
    words = chance.choice(((), ("--fresh",), ("--dry-run",), ("--no-gate",)))
    if together and words in (("--fresh",), ("--no-gate",)):
        words = ()
    second = scene.start(*words)
    statuses = [
        scene.expect(run, 0 if "--dry-run" in run.words else FINISHED, WRONG_USE) for run in (second, first)
    ]
    said = second.said
    assert statuses[0] != WRONG_USE or "another run" in said or "other options" in said, said
    assert FINISHED in statuses, f"neither run went on: {statuses}"
    assert together or statuses[1] == FINISHED, first.said
    return Struck(
        f"a second run with {' '.join(words) or 'the same options'} {when}: {statuses[0]}", missed=missed
    )
