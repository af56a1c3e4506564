"""The disk of the output is full, or read-only, or closed to this user; so is the input's."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.faults.kinds import Struck, kind
from tests.faults.moments import wait_for_moment
from tests.faults.scene import FINISHED, Scene

LACKS = 3
PLAIN_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Takes from root what lets it read and write everything."""
OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")


@functools.cache
def no_mounts() -> str:
    """Why nothing can be mounted here."""
    with tempfile.TemporaryDirectory() as folder:
        tried = _try(*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", folder)
    return tried and f"needs the right to mount ({tried})"


@functools.cache
def no_plain_user() -> str:
    """Why nobody can be a user without root's rights here."""
    if os.geteuid():
        return ""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0)
        return "" if _try(*PLAIN_USER, "ls", folder).startswith("ls:") else "needs setpriv, as root"


@kind(no_mounts)
def disk_full(scene: Scene, chance: random.Random) -> Struck:
    """ENOSPC at any point of a run, and once there is room the same command goes on."""
    disk = scene.folder / "disk"
    disk.mkdir()
    kibibytes = chance.choice((8, 64, 128, 192, 256, 300, 340, 380, 420))
    _call("mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", disk)
    scene.undo.callback(_call, "umount", "-l", disk)
    scene.out = disk / "out"
    says = "the disk is full"
    status = scene.expect(scene.start(), LACKS, FINISHED, says=says)
    if chance.random() < 0.3:  # no room yet
        scene.expect(scene.start(), LACKS, FINISHED, says=says)
    _call("mount", "-o", "remount,size=64m", disk)
    return Struck(f"a disk of {kibibytes} KiB: {status}", missed=status == FINISHED)


@kind(no_mounts)
def read_only(scene: Scene, chance: random.Random) -> Struck:
    """The output becomes read-only while the run writes there."""
    scene.out.mkdir()
    run = scene.start(prefix=OWN_MOUNTS)
    when = wait_for_moment(run, scene, chance, at_work=True)
    inside = ("nsenter", "-t", str(run.process.pid), "-m")
    missed = run.ended()
    if not missed:
        _try(*inside, "mount", "--bind", scene.out, scene.out)
        _try(*inside, "mount", "-o", "remount,ro,bind", scene.out)
    status = scene.expect(run, LACKS, FINISHED)
    return Struck(f"the output became read-only {when}: {status}", missed=missed)


@kind(no_plain_user)
def no_permission(scene: Scene, chance: random.Random) -> Struck:
    """EACCES for a while: on a file or folder of the input, on the output, on its masks."""
    if not os.geteuid():
        scene.prefix = PLAIN_USER
    data = scene.own("data")
    (scene.out / "masks").mkdir(parents=True)
    file = chance.choice(scene.slices())
    closed = chance.choice((file, data / "p2", scene.out, scene.out / "masks", scene.out / "masks" / "p3"))
    early = chance.random() < 0.5 and closed != scene.out / "masks" / "p3"
    mode = 0 if closed in (file, data / "p2") else 0o555
    before = closed.stat().st_mode if closed.exists() else 0o755
    if early:
        closed.chmod(mode)
    run = scene.start()
    when = "from the start" if early else wait_for_moment(run, scene, chance, at_work=True)
    missed = run.ended()
    if closed.exists():
        closed.chmod(mode)
    status = scene.expect(run, LACKS, FINISHED)
    if closed.exists():
        closed.chmod(before)
    return Struck(f"no permission on {closed.relative_to(scene.folder)} {when}: {status}", missed=missed)


def _call(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _try(*words: str | Path) -> str:
    """Run something that may fail; what it says then."""
    if not shutil.which(words[0]):
        return f"no {words[0]}"
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stderr.strip() or str(done.returncode) if done.returncode else ""
