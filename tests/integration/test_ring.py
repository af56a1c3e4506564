"""The decode ring with real workers: what it delivers, and what it survives."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import psutil
import pytest

from engine.decode_worker import IS_READ, TICKET
from engine.errors import Failure, MachineError
from engine.ring import DecodedSlice, Ring
from engine.sources.discovery import Discovery, SourceFile
from tests.badfiles import write_bad_files

PATIENCE_S = 120.0
CHECKOUT = Path(__file__).parents[2]


def files_below(folder: Path) -> list[SourceFile]:
    entries = Discovery([str(folder)], None, Path("/nowhere/out"))
    return [entry for entry in entries if isinstance(entry, SourceFile)]


def name_of(file: SourceFile) -> bytes:
    return file.path.rpartition(b"/")[2]


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def run(
    ring: Ring, files: Sequence[SourceFile], block_size: int
) -> Iterator[tuple[DecodedSlice, npt.NDArray[np.uint8]]]:
    """Put all files through the ring; yield each slice with its pixels, block by block as they are done."""
    starts = iter(range(0, len(files), block_size))
    left = len(files)
    while left:
        while (block := ring.acquire(0)) is not None:
            start = next(starts, None)
            if start is None:
                ring.release(block)
                break
            ring.submit(block, files[start : start + block_size])
        done = ring.completed(PATIENCE_S)
        assert done is not None
        for entry, image in zip(done.slices, done.images, strict=False):
            yield entry, image.copy()
        left -= len(done.slices)
        ring.release(done.block)


def workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(
            psutil.ZombieProcess, psutil.NoSuchProcess
        ):  # what another test has left to be waited for
            if "engine.decode_worker" in child.cmdline():
                found.append(child)
    return found


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_until_busy(ring: Ring) -> None:
    wait_until(lambda: bool(ring._mapped().control[:, TICKET].any()))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, npt.NDArray[np.uint8]]:
    """40 files of 256x256 and, by path, their RGB pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for number in range(40):
        noise = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}{('.tif', '.png', '.jpg', '.webp')[number % 4]}"), noise)
    return {os.fsencode(path): cv2.imread(str(path))[:, :, ::-1] for path in folder.iterdir()}


@pytest.fixture(scope="module")
def slow_files(tmp_path_factory: pytest.TempPathFactory) -> list[SourceFile]:
    """24 files that each take long enough to decode to be caught at it."""
    folder = tmp_path_factory.mktemp("slow")
    noise = np.random.default_rng(6).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "0.png"), noise)
    for number in range(1, 24):
        os.link(folder / "0.png", folder / f"{number}.png")
    return files_below(folder)


def test_500_files_go_through_a_ring_of_4_blocks_pixel_by_pixel(
    pictures: dict[bytes, npt.NDArray[np.uint8]],
) -> None:
    paths = [path for _ in range(13) for path in sorted(pictures)][:500]
    files = [entry for entry in Discovery([], iter(paths), Path("/nowhere")) if isinstance(entry, SourceFile)]
    seen = []
    with Ring(blocks=4, block_size=24, workers=2, timeout_s=60) as ring:
        for entry, image in run(ring, files, 24):
            assert entry.failure is None
            assert (entry.height, entry.width, entry.index) == (256, 256, 0)
            assert np.array_equal(image, pictures[entry.file.path])
            seen.append(entry.file.order)
    assert sorted(seen) == [file.order for file in files]
    places = {file.order: place for place, file in enumerate(files)}
    blocks = [[*orders] for _, orders in groupby(seen, lambda order: places[order] // 24)]
    assert len(blocks) == 21  # they come back in any order, and each whole
    assert all(block == sorted(block) for block in blocks)


def test_every_bad_file_costs_itself_only(tmp_path: Path) -> None:
    codes = {case.name: case.code for case in write_bad_files(tmp_path / "bad")}
    files = files_below(tmp_path / "bad")
    with Ring(blocks=2, block_size=16, workers=2, timeout_s=60) as ring:
        for entry, image in run(ring, files, 16):
            name = name_of(entry.file)
            assert (entry.failure.code if entry.failure else None) == codes[name], name
            if entry.failure:
                assert not image.any()
                assert (entry.height, entry.width) == (0, 0)
            else:
                assert min(entry.height, entry.width) >= 1


def test_a_file_that_became_a_pipe_or_vanished_does_not_hang_a_worker(tmp_path: Path) -> None:
    write_bad_files(tmp_path / "bad")
    by_name = {name_of(file): file for file in files_below(tmp_path / "bad")}
    chosen = [by_name[name] for name in (b"good.tif", b"grey.png", b"rgba.png", b"one_pixel.png")]
    Path(os.fsdecode(chosen[1].path)).unlink()
    os.mkfifo(chosen[1].path)
    Path(os.fsdecode(chosen[2].path)).unlink()
    with Ring(blocks=1, block_size=8, workers=1, timeout_s=60) as ring:
        failures = [entry.failure for entry, _ in run(ring, chosen, 8)]
    codes = [failure and (failure.stage, failure.code, failure.transient) for failure in failures]
    assert codes == [None, ("read", "not_a_file", False), ("read", "not_found", True), None]


def test_a_killed_worker_costs_one_file(slow_files: list[SourceFile]) -> None:
    with Ring(blocks=1, block_size=24, workers=1, timeout_s=60) as ring:
        block = ring.acquire(PATIENCE_S)
        assert block is not None
        ring.submit(block, slow_files)
        wait_until_busy(ring)
        workers()[0].kill()
        done = ring.completed(PATIENCE_S)
        assert done is not None
        failures = [entry.failure for entry in done.slices if entry.failure]
        assert [(failure.stage, failure.code) for failure in failures] in (
            [("decode", "worker_killed")],
            [("read", "worker_killed")],
        )
        assert failures[0].transient
        assert "SIGKILL" in failures[0].message
        assert [entry.file for entry in done.slices] == slow_files
        filled = [bool(image.any()) for image in done.images]
        assert filled == [entry.failure is None for entry in done.slices]


def test_a_worker_that_crashes_is_laid_at_the_files_door(slow_files: list[SourceFile]) -> None:
    with Ring(blocks=1, block_size=24, workers=1, timeout_s=60) as ring:
        block = ring.acquire(PATIENCE_S)
        assert block is not None
        ring.submit(block, slow_files)
        wait_until_busy(ring)
        workers()[0].send_signal(signal.SIGSEGV)
        done = ring.completed(PATIENCE_S)
        assert done is not None
        (failure,) = [entry.failure for entry in done.slices if entry.failure]
        assert failure.code == "worker_crashed"
        assert not failure.transient
        assert "SIGSEGV" in failure.message


def test_a_worker_without_memory_costs_one_file_and_not_all_that_follow(slow_files: list[SourceFile]) -> None:
    with Ring(blocks=1, block_size=24, workers=1, timeout_s=60) as ring:
        block = ring.acquire(PATIENCE_S)
        assert block is not None
        ring.submit(block, slow_files)
        wait_until_busy(ring)
        resource.prlimit(workers()[0].pid, resource.RLIMIT_AS, (2**20, 2**20))
        done = ring.completed(PATIENCE_S)
        assert done is not None
        (failure,) = [entry.failure for entry in done.slices if entry.failure]
        assert (failure.code, failure.transient) == ("memory", True)


def test_a_file_that_cannot_be_read_for_long_may_be_tried_again(tmp_path: Path) -> None:
    """A worker that hangs before it has read the file blames the disk, not the file."""
    with Ring(blocks=1, block_size=1, workers=1, timeout_s=60) as ring:
        wait_until(lambda: any(worker.ready for worker in ring._workers))
        worker = ring._workers[0]
        for is_read, failure in (
            (0, Failure("read", "timeout", "reading it took longer than 4 s", transient=True)),
            (1, Failure("decode", "timeout", "decoding it took longer than 4 s")),
        ):
            ring._mapped().control[0, IS_READ] = is_read
            assert ring._blame(worker, 4.0) == failure


def test_a_file_has_the_time_and_size_that_it_was_read_with(slow_files: list[SourceFile]) -> None:
    stale = [replace(file, size=1, mtime_ns=2) for file in slow_files[:3]]
    gone = replace(slow_files[3], path=b"/nowhere.png", size=1, mtime_ns=2)
    with Ring(blocks=1, block_size=4, workers=1, timeout_s=60) as ring:
        done = [entry for entry, _ in run(ring, [*stale, gone], 4)]
    assert [entry.file for entry in done] == [*slow_files[:3], gone]


def test_a_hanging_worker_costs_one_file(slow_files: list[SourceFile]) -> None:
    with Ring(blocks=2, block_size=24, workers=2, timeout_s=4) as ring:
        block = ring.acquire(PATIENCE_S)
        assert block is not None
        ring.submit(block, slow_files)
        wait_until_busy(ring)
        number = int(np.flatnonzero(ring._mapped().control[:, TICKET])[0])
        worker = next(each for each in ring._workers if each.number == number)
        os.kill(worker.process.pid, signal.SIGSTOP)
        done = ring.completed(PATIENCE_S)
        assert done is not None
        assert [entry.failure.code for entry in done.slices if entry.failure] == ["timeout"]


def test_workers_that_die_between_files_cost_none(slow_files: list[SourceFile]) -> None:
    with Ring(blocks=1, block_size=24, workers=2, timeout_s=60) as ring:
        for _ in range(2):
            assert all(entry.failure is None for entry, _ in run(ring, slow_files[:3], 24))
            for worker in workers():
                worker.kill()
        assert all(entry.failure is None for entry, _ in run(ring, slow_files[:3], 24))


def test_workers_ignore_the_interrupt_that_is_for_their_parent(slow_files: list[SourceFile]) -> None:
    with Ring(blocks=1, block_size=24, workers=1, timeout_s=60) as ring:
        wait_until(lambda: len(workers()) == 1)
        before = workers()
        before[0].send_signal(signal.SIGINT)
        assert all(entry.failure is None for entry, _ in run(ring, slow_files[:4], 24))
        assert workers() == before


def test_workers_that_cannot_start_are_reported_with_their_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Ring(blocks=1, block_size=4, workers=2, timeout_s=60) as ring:
        with pytest.raises(MachineError, match=r"libGL\.so\.1"):
            ring.completed(PATIENCE_S)
        with pytest.raises(MachineError, match=r"libGL\.so\.1"):
            ring.acquire(PATIENCE_S)
    assert workers() == []


def test_more_memory_than_there_is_is_refused() -> None:
    with pytest.raises(MachineError, match="smaller --batch"):
        Ring(blocks=1_000, block_size=1_000_000, workers=1, timeout_s=60)


def test_blocks_are_used_in_turn_only(slow_files: list[SourceFile]) -> None:
    with Ring(blocks=1, block_size=2, workers=1, timeout_s=60) as ring:
        block = ring.acquire(PATIENCE_S)
        assert block is not None
        assert ring.acquire(0.01) is None
        assert ring.completed(0.01) is None
        for wrong in ([], slow_files[:3]):
            with pytest.raises(ValueError, match="files for a block of 2"):
                ring.submit(block, wrong)
        ring.release(block)
        for misuse in (lambda: ring.release(block), lambda: ring.submit(block, slow_files[:1])):
            with pytest.raises(ValueError, match="not held"):
                misuse()
    with pytest.raises(ValueError, match="above zero"):
        Ring(blocks=1, block_size=1, workers=0, timeout_s=1)


def test_closing_leaves_nothing_behind(slow_files: list[SourceFile]) -> None:
    gc.collect()
    before = descriptors()
    ring = Ring(blocks=2, block_size=12, workers=2, timeout_s=60)
    block = ring.acquire(PATIENCE_S)
    assert block is not None
    ring.submit(block, slow_files[:12])
    wait_until_busy(ring)
    started = workers()
    ring.close()
    ring.close()
    assert started
    assert not any(worker.is_running() for worker in started)
    assert descriptors() == before
    assert "tumorscan-ring" not in Path("/proc/self/maps").read_text()
    for call in (lambda: ring.acquire(0), lambda: ring.completed(0)):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_closing_leaves_nothing_behind_after_workers_crashed(slow_files: list[SourceFile]) -> None:
    gc.collect()
    before, children = descriptors(), psutil.Process().children()
    with Ring(blocks=1, block_size=24, workers=2, timeout_s=60) as ring:
        block = ring.acquire(PATIENCE_S)
        assert block is not None
        ring.submit(block, slow_files)
        wait_until_busy(ring)
        for worker in workers():
            worker.kill()
        assert ring.completed(PATIENCE_S) is not None
    assert descriptors() == before
    assert psutil.Process().children() == children


def test_images_outlive_the_ring_while_someone_looks_at_them(slow_files: list[SourceFile]) -> None:
    with Ring(blocks=1, block_size=1, workers=1, timeout_s=60) as ring:
        block = ring.acquire(PATIENCE_S)
        assert block is not None
        ring.submit(block, slow_files[:1])
        done = ring.completed(PATIENCE_S)
        assert done is not None
        before = done.images.copy()
    assert np.array_equal(done.images, before)


SCRIPT = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from engine.ring import Ring
from engine.sources.discovery import Discovery

files = list(Discovery([sys.argv[2]], None, Path("/nowhere/out")))
with Ring(blocks=2, block_size=len(files), workers=2, timeout_s=4) as ring:
    for turn in range(int(sys.argv[3])):
        block = ring.acquire(60)
        ring.submit(block, files)
        print("busy", flush=True)
        done = ring.completed(60)
        print(*(entry.failure.code for entry in done.slices if entry.failure), "done", flush=True)
        ring.release(done.block)
"""


@pytest.fixture
def scoring_script(
    slow_files: list[SourceFile], tmp_path: Path
) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts a script without a main guard, read from stdin, in a folder that has no package."""
    folder = slow_files[0].volume
    with contextlib.ExitStack() as stack:

        def start(turns: int) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-", str(CHECKOUT), folder, str(turns)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=tmp_path,
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdin is not None
            process.stdin.write(textwrap.dedent(SCRIPT))
            process.stdin.close()
            process.stdin = None
            return process

        yield start


def test_a_script_without_a_main_module_can_decode(
    scoring_script: Callable[[int], subprocess.Popen[str]],
) -> None:
    output, _ = scoring_script(1).communicate(timeout=PATIENCE_S)
    assert output.split() == ["busy", "done"]


def test_workers_die_with_a_killed_parent(scoring_script: Callable[[int], subprocess.Popen[str]]) -> None:
    script = scoring_script(1000)
    assert script.stdout is not None
    assert script.stdout.readline() == "busy\n"
    children = psutil.Process(script.pid).children()
    assert len(children) == 2
    script.kill()
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert alive == []


def test_a_stopped_and_continued_run_blames_no_file(
    scoring_script: Callable[[int], subprocess.Popen[str]],
) -> None:
    script = scoring_script(2)
    assert script.stdout is not None
    assert script.stdout.readline() == "busy\n"
    assert script.stdout.readline() == "done\n"
    assert script.stdout.readline() == "busy\n"
    os.killpg(script.pid, signal.SIGSTOP)
    time.sleep(7)
    os.killpg(script.pid, signal.SIGCONT)
    output, _ = script.communicate(timeout=PATIENCE_S)
    assert output.split() == ["done"]
