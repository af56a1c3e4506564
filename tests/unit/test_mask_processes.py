"""Processes that draw masks: the files and rows of a thread's own, whatever becomes of a process."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from engine import mask_processes
from engine.errors import MachineError
from engine.mask_processes import STRIKES, MaskProcesses
from engine.outputs.drawing import Drawn, DrawnHere, Found


@pytest.fixture
def processes() -> Iterator[MaskProcesses]:
    with MaskProcesses(1) as processes:
        yield processes


def blob(seed: int) -> npt.NDArray[np.uint8]:
    chance = np.random.default_rng(seed)
    mask = np.zeros((256, 256), np.uint8)
    top, left = chance.integers(0, 200, 2)
    mask[top : top + 50, left : left + 50] = chance.random((50, 50)) < 0.7
    return mask


def found(folder: Path, count: int) -> list[Found]:
    sizes = ((256, 256), (512, 512), (300, 200), (1, 40))
    return [
        Found(blob(i), *sizes[i % len(sizes)], os.fsencode(folder / f"v{i % 2}" / f"\udcff{i}_mask.png"))
        for i in range(count)
    ]


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def worker(processes: MaskProcesses) -> int:
    process = processes._idle.get()
    processes._idle.put(process)
    return process.pid


def test_masks_are_those_that_a_thread_draws(processes: MaskProcesses, tmp_path: Path) -> None:
    here = DrawnHere().draw(found(tmp_path / "here", 9))
    there = processes.draw(found(tmp_path / "there", 9))
    assert there == here
    assert files_below(tmp_path / "there") == files_below(tmp_path / "here")
    assert len(files_below(tmp_path / "there")) == 9
    assert processes.draw([]) == []


def test_a_mask_without_a_path_is_told_of_and_not_written(processes: MaskProcesses) -> None:
    (told,) = processes.draw([Found(blob(3), 256, 256, None)])
    assert told == DrawnHere().draw([Found(blob(3), 256, 256, None)])[0]


def test_a_name_that_the_disk_refuses_is_that_masks_alone(processes: MaskProcesses, tmp_path: Path) -> None:
    long = Found(blob(1), 256, 256, os.fsencode(tmp_path / ("n" * 300)))
    one, other = processes.draw([long, *found(tmp_path, 1)])
    assert isinstance(one, OSError)
    assert one.errno == errno.ENAMETOOLONG
    assert isinstance(other, Drawn)


def test_where_nothing_can_be_written_an_error_says_so(processes: MaskProcesses) -> None:
    with pytest.raises(OSError, match="No such file") as error:
        processes.draw([Found(blob(1), 256, 256, b"/proc/self/nothing/mask.png")])
    assert error.value.errno == errno.ENOENT
    assert isinstance(processes.draw([Found(blob(1), 256, 256, None)])[0], Drawn)


def test_what_one_that_dies_had_half_written_is_cleared_away(
    processes: MaskProcesses, tmp_path: Path
) -> None:
    (tmp_path / "v0").mkdir()
    mine, others = (
        tmp_path / "v0" / f".tumorscan-01234567-{pid}-8.tmp" for pid in (worker(processes), os.getpid())
    )
    mine.touch()
    others.touch()
    os.kill(worker(processes), signal.SIGKILL)
    processes.draw(found(tmp_path, 2))
    assert not mine.exists()
    assert others.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_one_that_dies_is_replaced_and_its_masks_drawn(
    processes: MaskProcesses, tmp_path: Path, number: int
) -> None:
    for _ in range(2 * STRIKES):
        os.kill(worker(processes), number)
        masks = found(tmp_path / "there", 4)
        assert processes.draw(masks) == DrawnHere().draw(found(tmp_path / "here", 4))
    assert files_below(tmp_path / "there") == files_below(tmp_path / "here")


def test_one_that_hangs_is_replaced(
    processes: MaskProcesses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    processes.draw(found(tmp_path, 1))  # it has started
    monkeypatch.setattr(mask_processes, "_STUCK_S", 1.0)
    monkeypatch.setattr(mask_processes, "_STUCK_A_MASK_S", 0.0)
    hung = worker(processes)
    os.kill(hung, signal.SIGSTOP)
    assert len(processes.draw(found(tmp_path, 3))) == 3
    assert worker(processes) != hung


def test_those_that_do_not_stay_alive_end_the_run_with_their_complaint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    complaint = "mask workers do not stay alive: one ended with status 1"
    with MaskProcesses(1) as processes, pytest.raises(MachineError, match=complaint):
        processes.draw([Found(blob(1), 256, 256, None)])


def test_one_that_cannot_be_started_is_an_error_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MachineError, match="a mask worker cannot be started"):
        MaskProcesses(2)


def test_they_are_left_alone_by_what_interrupts_a_group_and_end_with_their_owner(tmp_path: Path) -> None:
    with MaskProcesses(2) as processes:
        processes.draw(found(tmp_path, 1))
        pid = worker(processes)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        processes.draw(found(tmp_path, 1))
        assert pid in (worker(processes), worker(processes))
    assert not Path(f"/proc/{pid}").exists()


def test_many_threads_share_them(tmp_path: Path) -> None:
    with MaskProcesses(2) as processes, ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(processes.draw, found(tmp_path / str(i), 5)) for i in range(24)]
        assert all(job.result() == jobs[0].result() for job in jobs)
    assert len(files_below(tmp_path)) == 120
