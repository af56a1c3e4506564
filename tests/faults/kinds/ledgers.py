"""A ledger that is not what it was: never a wrong row, never a traceback, and --fresh helps."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from tests.faults.kinds import Struck, kind
from tests.faults.kinds.rivals import WRONG_USE
from tests.faults.moments import wait_for_moment
from tests.faults.scene import FINISHED, Scene


@kind()
def ledger_damaged(scene: Scene, chance: random.Random) -> Struck:
    """Bits flipped, blocks lost, cut short, overwritten or gone, after a kill or a whole run."""
    run = scene.start()
    if chance.random() < 0.5:
        wait_for_moment(run, scene, chance, at_work=True)
        run.signal(signal.SIGKILL)
    scene.expect(run, FINISHED, -signal.SIGKILL)
    path = scene.out / "run.sqlite"
    what = chance.choice(_DAMAGES)(path, chance)
    status = scene.expect(scene.start(), FINISHED, WRONG_USE, says="--fresh")
    return Struck(f"{what}: {status}", then=("--fresh",) if status == WRONG_USE else ())


@kind()
def ledger_restored(scene: Scene, chance: random.Random) -> Struck:
    """An older copy put in its place: what came since is scored again."""
    run = scene.start()
    when = wait_for_moment(run, scene, chance, at_work=True)
    run.signal(signal.SIGKILL)
    scene.expect(run, FINISHED, -signal.SIGKILL)
    copy = scene.folder / "copy"
    shutil.copytree(scene.out, copy)
    scene.expect(scene.start(), FINISHED)
    for name in ("run.sqlite", "run.sqlite-journal"):
        (scene.out / name).unlink(missing_ok=True)
        if (copy / name).exists():
            shutil.copy(copy / name, scene.out / name)
    return Struck(f"the ledger as it was {when}")


def _flip(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes())
    bits = chance.choice((1, 1, 1, 8, 64))
    places = [chance.randrange(8 * len(data)) for _ in range(bits)]
    for place in places:
        data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return f"{bits} bits flipped, the first in byte {places[0] // 8} of {len(data)}"


def _lose(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes())
    size = chance.choice((512, 4096, 16384))
    start = chance.randrange(0, len(data), 512)
    data[start : start + size] = bytes(len(data[start : start + size]))
    path.write_bytes(data)
    return f"{size} bytes lost from {start} of {len(data)}"


def _swap(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes())
    one, other = (4096 * chance.randrange(len(data) // 4096) for _ in range(2))
    data[one : one + 4096], data[other : other + 4096] = data[other : other + 4096], data[one : one + 4096]
    path.write_bytes(data)
    return f"blocks {one // 4096} and {other // 4096} swapped"


def _cut(path: Path, chance: random.Random) -> str:
    size = chance.choice((0, 1, 100, 4096, chance.randrange(path.stat().st_size)))
    path.write_bytes(path.read_bytes()[:size])
    return f"cut to {size} bytes"


def _overwrite(path: Path, chance: random.Random) -> str:
    path.write_bytes(chance.randbytes(chance.choice((10, 5000, 100_000))))
    return "overwritten by noise"


def _delete(path: Path, chance: random.Random) -> str:
    path.unlink()
    return "deleted"


def _spoil_journal(path: Path, chance: random.Random) -> str:
    journal = path.with_name(f"{path.name}-journal")
    magic = bytes.fromhex("d9d505f920a163d7") if chance.random() < 0.5 else b""
    journal.write_bytes(magic + chance.randbytes(8192))
    return "a journal of noise beside it"


_DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (
    *(_flip, _flip, _flip, _flip, _lose, _lose, _swap, _swap, _cut, _overwrite, _delete, _spoil_journal),
)
