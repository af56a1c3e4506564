"""Killed or refused at an exact system call: moments that no timer meets."""

from __future__ import annotations

import errno
import random
import signal

from tests.faults import shim
from tests.faults.kinds import Struck, kind
from tests.faults.scene import FINISHED, Run, Scene

LACKS = 3
WRITES = ("open", "write", "sync", "rename", "unlink")


@kind(shim.why_not)
def killed_at_call(scene: Scene, chance: random.Random) -> Struck:
    """SIGKILL at the nth call of a kind on the output: between a mask and its row, within a commit."""
    call = chance.choice(WRITES)
    first = chance.randint(1, 4) if chance.random() < 0.4 else chance.randint(5, _most(call))
    run = _start(scene, call, str(scene.out), "kill", first, 1)
    status = scene.expect(run, -signal.SIGKILL, FINISHED)
    return _struck(scene, f"killed at {call} {first} of the output: {status}")


@kind(shim.why_not)
def output_error(scene: Scene, chance: random.Random) -> Struck:
    """EIO from the disk that the output lies on, once or from then on."""
    call = chance.choice((*WRITES, "read"))
    first, count = chance.randint(1, _most(call)), chance.choice((1, 1, 3, 0))
    run = _start(scene, call, str(scene.out), f"errno {errno.EIO}", first, count)
    status = scene.expect(run, LACKS, FINISHED)
    return _struck(scene, f"EIO at {call} {first} of the output, {count or 'all'} times: {status}")


@kind(shim.why_not)
def input_error(scene: Scene, chance: random.Random) -> Struck:
    """EIO from the disk that the input lies on."""
    call = chance.choice(("open", "read"))
    folder = chance.choice(("data/p1/", "data/p2/s_", "data/p"))
    first, count = chance.randint(1, 12), chance.choice((1, 5, 0))
    run = _start(scene, call, folder, f"errno {errno.EIO}", first, count)
    status = scene.expect(run, FINISHED)
    return _struck(scene, f"EIO at {call} {first} of {folder}, {count or 'all'} times: {status}")


@kind(shim.why_not)
def ledger_slow(scene: Scene, chance: random.Random) -> Struck:
    """A ledger on a network disk that takes its time."""
    call, wait = chance.choice(("sync", "write", "open")), chance.choice((20, 80, 250))
    scene.expect(_start(scene, call, "run.sqlite", f"sleep {wait}", 1, 40), FINISHED)
    return _struck(scene, f"each {call} of the ledger took {wait} ms more")


@kind(shim.why_not)
def ledger_flaky(scene: Scene, chance: random.Random) -> Struck:
    """A ledger on a network disk that fails now and then: the run itself survives that."""
    call, most = chance.choice((("sync", 12), ("write", 25), ("unlink", 3)))
    code = chance.choice((errno.EIO, errno.ESTALE, errno.ETIMEDOUT))
    first, count = chance.randint(1, most), chance.choice((1, 2))
    scene.expect(_start(scene, call, "run.sqlite", f"errno {code}", first, count), FINISHED)
    return _struck(scene, f"{errno.errorcode[code]} at {call} {first} of the ledger, {count} times")


def _most(call: str) -> int:
    """About how many of these calls a whole run makes on its output."""
    return {"open": 100, "write": 130, "sync": 15, "rename": 75, "unlink": 6, "read": 40}[call]


def _start(scene: Scene, call: str, path: str, do: str, first: int, count: int) -> Run:
    mark = scene.folder / "mark"
    return scene.start(env=shim.calls(call, path, do=do, mark=mark, first=first, count=count))


def _struck(scene: Scene, what: str) -> Struck:
    return Struck(what, missed=not (scene.folder / "mark").exists())
