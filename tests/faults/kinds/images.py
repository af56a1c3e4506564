"""The output on a file system of its own (ext4 in a file): one that breaks, one whose machine loses power."""

from __future__ import annotations

import fcntl
import functools
import os
import random
import signal
import struct
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.faults.kinds import Struck, kind
from tests.faults.kinds.disks import LACKS
from tests.faults.moments import wait_for_moment
from tests.faults.scene import FINISHED, Scene

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
_WITHOUT_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: what was not flushed is lost
_MEBIBYTES = 24


@functools.cache
def no_images() -> str:
    """Why no ext4 in a file can be mounted here."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _mount(_make(Path(folder)))
        except (OSError, subprocess.CalledProcessError) as error:
            return f"needs ext4 on a loop device ({str(getattr(error, 'stderr', '') or error).strip()[:80]})"
        _unmount(Path(folder) / "disk")
    return ""


@kind(no_images)
def power_cut(scene: Scene, chance: random.Random) -> Struck:
    """The machine stops: what was written and not flushed is gone, whatever was renamed over it."""
    image = _on_image(scene)
    run = scene.start()
    when = wait_for_moment(run, scene, chance, at_work=chance.random() < 0.8)
    _shut_down(image.with_name("disk"))
    run.signal(signal.SIGKILL)
    status = run.wait()
    _unmount(image.with_name("disk"))
    _mount(image)
    return Struck(f"power cut {when}: {status}", missed=status == FINISHED)


@kind(no_images)
def file_system_error(scene: Scene, chance: random.Random) -> Struck:
    """The kernel finds the file system damaged and makes it read-only beneath the run."""
    image = _on_image(scene)
    disk = image.with_name("disk")
    run = scene.start()
    when = wait_for_moment(run, scene, chance, at_work=chance.random() < 0.8)
    source = subprocess.run(["findmnt", "-no", "SOURCE", disk], capture_output=True, text=True, check=True)
    Path("/sys/fs/ext4", Path(source.stdout.strip()).name, "trigger_fs_error").write_text("1")
    status = scene.expect(run, LACKS, FINISHED)
    _unmount(disk)
    _mount(image)
    return Struck(f"the file system broke {when}: {status}", missed=status == FINISHED)


def _on_image(scene: Scene) -> Path:
    image = _make(scene.folder)
    _mount(image)
    disk = image.with_name("disk")
    scene.undo.callback(_unmount, disk)
    scene.out = disk / "out"
    return image


def _make(folder: Path) -> Path:
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(_MEBIBYTES << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True, text=True)
    (folder / "disk").mkdir()
    return image


def _mount(image: Path) -> None:
    line = ["mount", "-o", "loop,errors=remount-ro", image, image.with_name("disk")]
    subprocess.run(line, check=True, capture_output=True, text=True)


def _unmount(disk: Path) -> None:
    subprocess.run(["umount", disk], check=False, capture_output=True)


def _shut_down(disk: Path) -> None:
    descriptor = os.open(disk, os.O_RDONLY)
    with suppress(OSError):
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
    os.close(descriptor)
