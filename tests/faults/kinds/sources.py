"""The input does not hold still: files change before they are read, while they are, or after."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.badfiles import tiff
from tests.faults import shim
from tests.faults.kinds import Struck, kind
from tests.faults.kinds.rivals import WRONG_USE
from tests.faults.moments import wait_for_moment
from tests.faults.scene import FINISHED, Scene
from tests.tinybundle import tiny_slice


@kind(shim.why_not)
def source_changed(scene: Scene, chance: random.Random) -> Struck:
    """Overwritten by another slice of the same size."""
    return _while_it_is_read(scene, chance, lambda path: _overwrite(path, _slice(chance)))


@kind(shim.why_not)
def source_grown(scene: Scene, chance: random.Random) -> Struck:
    """Replaced by a larger one, or added to."""
    larger = tiff(400, 300)

    def grow(path: Path) -> None:
        if chance.random() < 0.5:
            _overwrite(path, larger)
        else:
            path.write_bytes(path.read_bytes() + bytes(100_000))

    return _while_it_is_read(scene, chance, grow)


@kind(shim.why_not)
def source_cut(scene: Scene, chance: random.Random) -> Struck:
    """Cut short, to nothing at times, as a copy begun anew is."""
    return _while_it_is_read(scene, chance, lambda path: os.truncate(path, chance.choice((0, 7, 100_000))))


@kind(shim.why_not)
def source_gone(scene: Scene, chance: random.Random) -> Struck:
    """Deleted, for good or for the rest of this run."""
    returns = chance.random() < 0.5

    def back(path: Path) -> None:
        if returns:
            path.write_bytes(_slice(chance))

    return _while_it_is_read(scene, chance, Path.unlink, afterwards=back)


@kind(shim.why_not)
def source_folder(scene: Scene, chance: random.Random) -> Struck:
    """Turned into a folder, which holds slices."""

    def turn(path: Path) -> None:
        path.unlink()
        path.mkdir()
        (path / "inside.tif").write_bytes(_slice(chance))

    return _while_it_is_read(scene, chance, turn)


@kind()
def scored_source_changed(scene: Scene, chance: random.Random) -> Struck:
    """Another than it was when it was scored: the next call refuses it by name, until it is put back."""
    scene.own("data")
    run = scene.start()
    when = wait_for_moment(run, scene, chance, at_work=True)
    run.signal(signal.SIGKILL)
    scene.expect(run, -signal.SIGKILL, FINISHED)
    path = chance.choice(scene.slices())
    data, status = path.read_bytes(), path.stat()
    path.write_bytes(_slice(chance))
    ended = scene.expect(scene.start("--dry-run"), 0, WRONG_USE)
    if ended == WRONG_USE:
        assert path.name in scene.runs[-1].said, scene.runs[-1].said
        scene.expect(scene.start(), WRONG_USE, says=path.name)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return Struck(f"{path.name} changed after a kill {when}: {ended}")


def _while_it_is_read(
    scene: Scene,
    chance: random.Random,
    change: Callable[[Path], object],
    afterwards: Callable[[Path], object] = str,
) -> Struck:
    """Change a file when its decoder is about to open it, or has opened it and is about to read.

    `afterwards` is done to it once the run has ended.
    """
    scene.own("data")
    path = chance.choice(scene.slices())
    call = chance.choice(("open", "read"))
    place = scene.folder / "meeting"
    name = f"/{path.parent.name}/{path.name}"
    run = scene.start(env=shim.calls(call, name, do=f"meet {place}", mark=scene.folder / "mark"))
    assert run.until(place.with_suffix(".here").exists), run.said
    time.sleep(0.02)  # so that the time of a change can be told from the file's own
    change(path)
    place.with_suffix(".go").touch()
    scene.expect(run, FINISHED)
    afterwards(path)
    return Struck(f"{path.name} was hurt at its {call}", data_changed=True)


def _slice(chance: random.Random) -> bytes:
    number = chance.randint(1000, 9999)
    return tiff(256, 256, pixels=tiny_slice(number, lesion=number % 2 == 0).tobytes())


def _overwrite(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)
