"""A GPU's process and its parent: real processes and real shared memory, the GPU a double."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine.bundle import Bundle
from engine.cascade import OperatingPoint, Scores
from engine.errors import MachineError, TumorscanError, UsageError
from engine.gpu import process as process_module
from engine.gpu.device import GpuMemoryError
from engine.gpu.lane import SEATS, SLICE_BYTES
from engine.gpu.process import GpuProcess, open_gpus
from engine.gpu.start import Graphs, Plans, Start
from engine.plans.cache import CachedPlan
from engine.ring import DecodedBlock
from engine.scorer import GpuScorer, gate_for_gpu
from tests.gpuchild import MODULE
from tests.lanes import Block, cut, host_scores
from tests.runs import CHECKOUT
from tests.tinybundle import make_tiny_bundle, tiny_slices
from tests.unit.test_plan_cache import record_of

BATCH = 4
BLOCKS = 5


def start(bundle: Path, *, lanes: int = 1, batch: int = BATCH, gate: float | None = 0.5) -> Start:
    return Start(0, lanes, batch, gate, Graphs(bundle))


def double(folder: Path, **settings: Any) -> Path:
    """A tiny bundle whose double is as the settings say."""
    make_tiny_bundle(folder)
    (folder / "double.json").write_text(json.dumps(settings))
    return folder


@dataclass(slots=True)
class Memory:
    """What stands for a ring: `blocks` are in it, and what is copied out of it is overwritten."""

    descriptor: int
    slots: npt.NDArray[np.uint8]
    blocks: Sequence[Block]

    def block(self, number: int) -> DecodedBlock:
        return DecodedBlock(number, self.slots[number * BATCH : (number + 1) * BATCH], ())

    def let_go(self, number: int) -> None:
        self.slots[number * BATCH : (number + 1) * BATCH] = 0xFF


@pytest.fixture
def ring() -> Iterator[Memory]:
    descriptor = os.memfd_create("ring")
    os.posix_fallocate(descriptor, 0, BLOCKS * BATCH * SLICE_BYTES)
    mapping = mmap.mmap(descriptor, BLOCKS * BATCH * SLICE_BYTES)
    slots = np.frombuffer(mapping, np.uint8).reshape(-1, 256, 256, 3)
    blocks = cut(tiny_slices(BLOCKS * BATCH - 1), BATCH)
    for number, block in enumerate(blocks):
        slots[number * BATCH :][: len(block.images)] = block.images
    yield Memory(descriptor, slots, blocks)
    os.close(descriptor)


@contextmanager
def opened(ring: Memory, *starts: Start) -> Iterator[list[GpuProcess]]:
    """Processes open on the ring; that the double found nothing is seen to at the end."""
    with open_gpus(lambda batch: starts, BATCH, smaller=False, say=pytest.fail, module=MODULE) as processes:
        for process in processes:
            process.open(ring.descriptor, len(ring.slots))
        yield processes
    for each in starts:
        assert isinstance(each.models, Graphs)
        findings = each.models.bundle / "findings"
        assert not findings.exists(), findings.read_text()


def score_all(scorer: GpuScorer, ring: Memory) -> list[Scores]:
    def score(number: int) -> Scores:
        copied = []
        block = ring.blocks[number]
        scores = scorer.score(
            ring.block(number), block.valid, lambda: (copied.append(number), ring.let_go(number))[0]
        )
        assert copied == [number]
        return scores

    with ThreadPoolExecutor(len(ring.blocks)) as pool:
        return list(pool.map(score, range(len(ring.blocks))))


def point(bundle: Bundle, **changes: Any) -> OperatingPoint:
    return replace(OperatingPoint.of(bundle), **changes)


def assert_same(found: Scores, expected: Scores) -> None:
    for field in ("tumor_probability", "passed", "has_mask", "mask_pixels"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), field)
        assert getattr(found, field).dtype == getattr(expected, field).dtype
    assert found.masks.keys() == expected.masks.keys()
    for position, mask in expected.masks.items():
        np.testing.assert_array_equal(found.masks[position], mask)
        assert found.masks[position].dtype == np.uint8


# A run that goes well


@pytest.mark.parametrize("gpus", [1, 2])
def test_blocks_are_scored_as_on_the_host(gpus: int, tmp_path: Path, ring: Memory) -> None:
    folders = [double(tmp_path / str(gpu), schedule=f"random {gpu}") for gpu in range(gpus)]
    bundle = Bundle.load(folders[0])
    with opened(ring, *(start(folder, lanes=2) for folder in folders)) as processes:
        scorer = GpuScorer(processes, point(bundle))
        assert scorer.seats == gpus * 2 * SEATS
        for found, expected in zip(score_all(scorer, ring), host_scores(bundle, ring.blocks), strict=True):
            assert_same(found, expected)


def test_no_file_stays_open(tmp_path: Path, ring: Memory) -> None:
    folder = double(tmp_path / "b")
    open_files = []
    for _ in range(2):
        with opened(ring, start(folder)) as (process,):
            process.score(0, 0, np.ones(1, np.bool_), lambda: None)
        open_files.append(len(list(Path("/proc/self/fd").iterdir())))
    assert open_files[0] == open_files[1]


def test_what_is_loaded_is_told(tmp_path: Path) -> None:
    with GpuProcess(start(double(tmp_path / "b")), module=MODULE) as process:
        classifier, segmenter = process.ready()
    for model in (classifier, segmenter):
        assert (model.name, model.precision) == ("double", "fp16")
    assert classifier.identity == {"plan_sha256": "0" * 64}


def test_a_refused_registration_is_told_and_worked_around(tmp_path: Path, ring: Memory) -> None:
    folder = double(tmp_path / "b", fail=[["cuMemHostRegister_v2", 0, "operation not supported"]])
    bundle = Bundle.load(folder)
    with GpuProcess(start(folder), module=MODULE) as process:
        process.ready()
        assert process.open(ring.descriptor, len(ring.slots)) == 801
        found = score_all(GpuScorer([process], point(bundle)), ring)
    for each, expected in zip(found, host_scores(bundle, ring.blocks), strict=True):
        assert_same(each, expected)


def test_small_masks_are_none(tmp_path: Path, ring: Memory) -> None:
    bundle = Bundle.load(double(tmp_path / "b"))
    with opened(ring, start(bundle.folder, gate=None)) as processes:
        (first, *_) = score_all(GpuScorer(processes, point(bundle, gated=False, min_pixels=1529)), ring)
    assert first.passed.all()
    assert first.has_mask.tolist() == (first.mask_pixels >= 1529).tolist()
    assert set(first.masks) == set(np.flatnonzero(first.has_mask))
    assert 0 < first.has_mask.sum() < 4


def test_signals_to_the_whole_group_do_not_reach_it(tmp_path: Path, ring: Memory) -> None:
    bundle = Bundle.load(double(tmp_path / "b"))
    with opened(ring, start(bundle.folder)) as processes:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid(processes[0]), number)
        assert len(score_all(GpuScorer(processes, point(bundle)), ring)) == BLOCKS


# What ends it


def pid(process: GpuProcess) -> int:
    assert process._process is not None
    return process._process.pid


def test_a_probability_that_is_no_number_is_an_error(tmp_path: Path, ring: Memory) -> None:
    bundle = make_tiny_bundle(tmp_path / "b", sharpness=float("nan"))
    with (
        opened(ring, start(bundle.folder)) as processes,
        pytest.raises(TumorscanError, match=r"not a number \(GPU 0\): try another --backend"),
    ):
        score_all(GpuScorer(processes, point(bundle)), ring)


@pytest.mark.parametrize("kind", ["unspecified launch failure", "out of memory"])
def test_a_fault_of_one_gpu_is_one_line_and_leaves_the_others_be(
    kind: str, tmp_path: Path, ring: Memory
) -> None:
    bundle = Bundle.load(double(tmp_path / "good"))
    folder = double(tmp_path / "bad", fail=[["memcpy_htod_async", 1, kind]])
    with opened(ring, start(folder), start(bundle.folder)) as (bad, good):
        with pytest.raises(MachineError, match=f"GPU 0: the GPU .*{kind}") as raised:
            score_all(GpuScorer([bad], point(bundle)), replace(ring, blocks=ring.blocks[:4]))
        assert "\n" not in str(raised.value)
        with pytest.raises(MachineError, match=kind):
            bad.score(0, 0, np.ones(1, np.bool_), lambda: None)
        for number, block in enumerate(ring.blocks):
            ring.slots[number * BATCH :][: len(block.images)] = block.images
        for found, expected in zip(
            score_all(GpuScorer([good], point(bundle)), ring), host_scores(bundle, ring.blocks), strict=True
        ):
            assert_same(found, expected)


def test_a_process_that_is_killed_is_told_as_killed(tmp_path: Path, ring: Memory) -> None:
    bundle = Bundle.load(double(tmp_path / "b"))
    with opened(ring, start(bundle.folder)) as processes:
        os.kill(pid(processes[0]), signal.SIGKILL)
        with pytest.raises(MachineError, match=r"GPU 0: its process was killed by SIGKILL: .* to go on"):
            score_all(GpuScorer(processes, point(bundle)), ring)


def test_a_process_that_does_not_answer_is_killed(
    tmp_path: Path, ring: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "ANSWER_LIMIT", 2)
    bundle = Bundle.load(double(tmp_path / "b"))
    with opened(ring, start(bundle.folder)) as processes:
        os.kill(pid(processes[0]), signal.SIGSTOP)
        with pytest.raises(MachineError, match="GPU 0: it has not answered for 2 s"):
            score_all(GpuScorer(processes, point(bundle)), ring)


def test_a_process_that_cannot_begin_says_why(tmp_path: Path) -> None:
    with (
        GpuProcess(start(tmp_path), module="tests.no_such_module") as process,
        pytest.raises(MachineError, match=r"GPU 0: its process ended with status 1 \(.*No module named"),
    ):
        process.ready()


def test_a_bug_comes_with_its_traceback(tmp_path: Path) -> None:
    folder = double(tmp_path / "b", fail=[["no such call", 0, "no such error"]])
    with (
        GpuProcess(start(tmp_path / "nowhere"), module=MODULE) as process,
        pytest.raises(UsageError, match="nowhere"),
    ):
        process.ready()
    with (
        GpuProcess(start(folder), module=MODULE) as process,
        pytest.raises(MachineError, match=r"ended with status 1 \(KeyError"),
    ):
        process.ready()


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    folder = double(tmp_path / "b")
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.integration.test_lanes_process import GpuProcess, MODULE, pid, start\n"
        f"process = GpuProcess(start(Path({str(folder)!r})), module=MODULE)\n"
        "process.ready()\n"
        "print(pid(process), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.1)
    pytest.fail("the GPU's process outlives its parent")


def test_leaving_before_it_is_ready_takes_no_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    with GpuProcess(start(double(tmp_path / "b")), module=MODULE):
        pass
    assert time.monotonic() - begun < process_module._CLOSE_LIMIT / 2


# Too little memory


def room(lanes: int, batch: int) -> int:
    """Bytes for so many lanes of the double's models, and a bit."""
    return lanes * (3 * batch * SLICE_BYTES + (2 << 20))


def test_a_gpu_that_is_too_small_takes_half_the_batch_once_and_says_so(tmp_path: Path) -> None:
    small, large = double(tmp_path / "small", memory=room(1, 4)), double(tmp_path / "large")
    said: list[str] = []
    with open_gpus(
        lambda batch: [start(large, batch=batch), start(small, batch=batch)],
        8,
        smaller=True,
        say=said.append,
        module=MODULE,
    ) as processes:
        assert [process.start.batch for process in processes] == [4, 4]
    (line,) = said
    assert line.startswith("GPU 0: the GPU has no room for 1 lane at batches of 8 slices")
    assert line.endswith("going on with batches of 4")


@pytest.mark.parametrize("smaller", [True, False])
def test_a_gpu_that_is_too_small_for_that_too_ends_the_run(smaller: bool, tmp_path: Path) -> None:
    folder = double(tmp_path / "b", memory=room(1, 2))
    said: list[str] = []
    with (
        pytest.raises(GpuMemoryError, match=f"batches of {4 if smaller else 8} slices .*smaller --batch"),
        open_gpus(
            lambda batch: [start(folder, batch=batch)], 8, smaller=smaller, say=said.append, module=MODULE
        ),
    ):
        pass
    assert len(said) == smaller


# What it is told


def test_another_mask_threshold_is_refused_with_what_to_do(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path)
    assert gate_for_gpu(OperatingPoint.of(bundle, gate_threshold=0.25)) == 0.25
    assert gate_for_gpu(OperatingPoint.of(bundle, gated=False)) is None
    with pytest.raises(UsageError, match=r"--mask-threshold 0.3: .*leave it out, or use --backend openvino"):
        gate_for_gpu(OperatingPoint.of(bundle, mask_threshold=0.3))


def test_a_start_is_told_whole() -> None:
    graphs = Start(1, 3, 64, 0.1 + 0.2, Graphs(Path(os.fsdecode(b"/a b/\xff.d"))))
    assert Start.decode(graphs.encode()) == graphs
    cached = [CachedPlan(Path(f"/cache/{batch}/segmenter.plan"), record_of(batch=batch)) for batch in (8, 9)]
    plans = Start(0, 1, 8, None, Plans(Path("/cache"), *cached))
    assert Start.decode(plans.encode()) == plans
