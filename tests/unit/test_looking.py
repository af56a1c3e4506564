"""A process that looks ahead of a walk: the walk is the same, whatever the process does, or becomes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from engine import look_worker
from engine.errors import MachineError
from engine.look_worker import listed, listing_of, told
from engine.sources import looking
from engine.sources.discovery import Discovery, SourceFile, Unlisted
from engine.sources.folders import Listing, list_folder
from engine.sources.looking import Looking
from engine.sources.statuses import NO_FILE, look_at
from engine.sources.stretches import Stretch

NAMES = [b"1.tif", b"\xff.tif", "\u00e9 \n.tif".encode(), b"4.tif"]
TREE = ["a/1.tif", "a/2.tif", "b/1.tif", "b/c/1.tif", "b/c/2.tif", "b/d/1.tif", "b/x_mask.tif", "e/1.png"]


@pytest.fixture(autouse=True)
def two_cores_and_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "MANY", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    path = os.fsencode(tmp_path / "files") + b"/"
    Path(os.fsdecode(path)).mkdir()
    for place, name in enumerate(NAMES):
        Path(os.fsdecode(path + name)).write_bytes(b"x" * place)
        os.utime(path + name, ns=(0, 1_234_567_890_123_456_789 + place))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in TREE:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"x")
    return tmp_path / "tree"


@pytest.fixture
def process() -> Iterator[Looking]:
    with closing(Looking()) as process:
        process.passed(1)
        yield process


def pid(process: Looking) -> int:
    assert process._helper is not None
    return process._helper.pid


def test_it_tells_what_a_look_here_tells(
    process: Looking, folder: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "look_at", lambda *_: pytest.fail("it was looked here"))
    for names in (NAMES, NAMES[:1], [*NAMES[:2], b"gone.tif", *NAMES[2:]], [NAMES[0], b"."], NAMES * 1000):
        assert process.statuses(folder, names)() == look_at(folder, names)
    assert list(process.statuses(folder, NAMES[3:])()) == [3, 1_234_567_890_123_456_792]
    assert list(process.statuses(folder, [b"gone", b"."])()) == [NO_FILE, 0, NO_FILE, 0]


def test_paths_are_below_this_processs_folder(folder: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(os.fsdecode(folder))
    with closing(Looking()) as process:
        process.passed(1)
        assert list(process.statuses(b"", NAMES[:1])()) == [0, 1_234_567_890_123_456_789]


@pytest.mark.parametrize("when", ["before it is asked", "before it answers"])
def test_where_it_dies_files_are_looked_at_here(process: Looking, folder: bytes, when: str) -> None:
    os.kill(pid(process), signal.SIGSTOP)
    asked = process.statuses(folder, NAMES) if when == "before it answers" else None
    os.kill(pid(process), signal.SIGKILL)
    if asked is not None:
        assert asked() == look_at(folder, NAMES)
    for _ in range(3):
        assert process.statuses(folder, NAMES)() == look_at(folder, NAMES)
    assert not process.helps


def test_none_is_started_for_few_files_nor_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "MANY", 3)
    monkeypatch.setattr(looking, "Helper", lambda *_: pytest.fail("one was started"))
    with closing(Looking()) as few:
        few.passed(2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with closing(Looking()) as alone:
        alone.passed(9)
        assert not alone.helps


def test_where_none_can_be_started_the_walk_goes_on(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def no_process(*_: str) -> None:
        tried.append(1)
        raise MachineError("no more processes")

    monkeypatch.setattr(looking, "Helper", no_process)
    assert [path for path, _ in walked(tree, passed=1)] == plainly(tree)
    assert tried == [1]


def test_it_ends_when_it_is_closed(process: Looking, folder: bytes) -> None:
    number = pid(process)
    asked = process.statuses(folder, NAMES)
    process.close()
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    assert asked() == process.statuses(folder, NAMES)() == look_at(folder, NAMES)
    process.passed(9)
    assert not process.helps


def plainly(tree: Path) -> list[bytes]:
    return [entry.path for entry in Discovery([str(tree)], None, None) if isinstance(entry, SourceFile)]


def walked(tree: Path, passed: int) -> Iterator[tuple[bytes, Stretch | None]]:
    """The paths that a walk in stretches comes by, with the stretch that was passed over for it."""
    for entry in Discovery([str(tree)], None, None).in_stretches():
        if isinstance(entry, Stretch):
            rows = entry.as_scored()
            entry.passed = min(passed, len(rows))
            for row in rows[: entry.passed]:
                yield os.fsencode(row[2]), entry
        elif not isinstance(entry, Unlisted):
            yield entry.path, None


def spied(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The folders that a process listed for the walks that follow."""
    ahead: list[bytes] = []
    listing = Looking.listing

    def spy(self: Looking, path: bytes) -> Listing | None:
        found = listing(self, path)
        if found is not None:
            ahead.append(path.rpartition(b"/")[2])
        return found

    monkeypatch.setattr(Looking, "listing", spy)
    return ahead


@pytest.mark.parametrize("passed", [0, 1, 2])
def test_a_walk_comes_by_the_same_files(tree: Path, monkeypatch: pytest.MonkeyPatch, passed: int) -> None:
    ahead = spied(monkeypatch)
    monkeypatch.setattr(looking, "_FRESH_S", 60.0)
    assert [path for path, _ in walked(tree, passed)] == plainly(tree)
    assert ahead == ([b"c", b"d", b"e"] if passed else [])


def test_a_folder_that_changed_since_it_was_looked_at_is_looked_at_again(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is while slices of the folder before it are scored; within the second it may be either."""
    ahead = spied(monkeypatch)
    monkeypatch.setattr(looking, "_FRESH_S", 0.05)
    come_by = []
    for path, _ in walked(tree, passed=9):
        come_by.append(path)
        if path.endswith(b"b/c/2.tif"):
            time.sleep(0.1)
            (tree / "b/d/2.tif").write_bytes(b"x")
    assert come_by == plainly(tree)
    assert b"d" not in ahead


def test_a_folder_that_went_is_told_by_the_walk(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_FRESH_S", 0.0)
    found = []
    for entry in Discovery([str(tree)], None, None).in_stretches():
        if isinstance(entry, Stretch):
            entry.passed = len(entry.as_scored())
            if entry.folder.path.endswith(b"c"):
                shutil.rmtree(tree / "b/d")
        elif isinstance(entry, Unlisted):
            found.append((Path(entry.image_path).name, entry.failure.code))
    assert found == [("d", "not_found")]


def test_a_link_to_a_folder_around_it_does_no_harm(tree: Path) -> None:
    (tree / "b/c/0").symlink_to(tree, target_is_directory=True)
    (tree / "b/c/9").symlink_to(tree / "nothing")
    assert [path for path, _ in walked(tree, passed=9)] == plainly(tree)


def test_a_shards_folders_are_not_listed_by_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Looking(lists=False)) as process:
        process.passed(1)
        process.enter(b"%b" % os.fsencode(tree), list_folder(os.fsencode(tree)))
        assert process.listing(os.fsencode(tree / "a")) is None


def test_a_listing_is_the_walks_own_with_statuses(
    tree: Path, folder: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "b/c/.hidden").write_bytes(b"")
    (tree / "b/c/7").write_bytes(b"no DICOM file")
    for name in ("IM12", "IM3", "x\udcff.dcm"):
        (tree / "b/c" / name).write_bytes(bytes(128) + b"DICM")
    (tree / "b/c/3.nii").symlink_to("nowhere")
    for path in (folder, os.fsencode(tree), os.fsencode(tree / "b"), os.fsencode(tree / "b/c")):
        here, found = list_folder(path), listed(path)
        assert found is not None
        there = listing_of(told(found))
        assert there is not None
        assert list(there.names) == list(here.names)
        assert (there.odd, list(there.dicoms), there.masks, there.others) == (
            here.odd,
            list(here.dicoms),
            here.masks,
            here.others,
        )
        usual = [b"gone" if name in here.odd else name for _, name in here.names]
        assert there.statuses == look_at(path.rstrip(b"/") + b"/", usual)
    assert listed(os.fsencode(tree / "nothing")) is None
    assert listed(os.fsencode(tree / "a/1.tif")) is None
    monkeypatch.setattr(look_worker, "LARGEST", 1)
    assert listed(os.fsencode(tree / "a")) is None
    assert listed(os.fsencode(tree / "e")) is not None
