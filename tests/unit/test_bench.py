"""The three rates: what stands in for the ring, what each counts, what is said of what is lacking."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.backend import Device
from engine.bench import (
    RamRing,
    Request,
    disk_to_disk,
    from_ram,
    load_slices,
    measure,
    open_scorer,
    runner_only,
)
from engine.commands.bench import gpus_as_json
from engine.errors import UsageError
from engine.run import GpuUse, Options, Plan
from engine.scoring import survey
from tests.badfiles import tiff
from tests.runs import files_below, write_slices
from tests.tinybundle import make_tiny_bundle, tiny_slice

SLICES = 21
LESIONS = 14  # every slice but numbers 1, 4, 7, 10, 13, 16, 19
BATCH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    make_tiny_bundle(folder / "bundle")
    write_slices(folder / "data", SLICES)
    return folder


@pytest.fixture
def options(folder: Path, tmp_path: Path) -> Options:
    return Options(
        (str(folder / "data"),),
        tmp_path / "out",
        folder / "bundle",
        backend="onnxruntime",
        precision="fp32",
        batch=BATCH,
    )


@pytest.fixture
def plan(options: Options) -> Plan:
    return survey(options).plan


def test_slices_are_loaded_in_the_order_of_a_run(options: Options) -> None:
    slices = load_slices(options, 7)
    assert len(slices) == 7
    assert [file.image_path.rpartition("/")[2] for file in slices.files[:3]] == [
        "s_0.tif",
        "s_4.tif",
        "s_8.tif",
    ]
    assert slices.sizes == ((256, 256),) * 7
    np.testing.assert_array_equal(slices.images[1], tiny_slice(4, lesion=False))
    assert slices.bytes_on_disk == sum(file.size for file in slices.files)


def test_a_file_that_cannot_be_read_is_left_out(tmp_path: Path, options: Options) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.tif").write_bytes(b"II*\0 nothing more")
    (tmp_path / "mixed" / "b.tif").write_bytes(tiff(256, 256, pixels=tiny_slice(0, lesion=True).tobytes()))
    slices = load_slices(replace(options, inputs=(str(tmp_path / "mixed"),)), 8)
    assert [file.path.rpartition(b"/")[2] for file in slices.files] == [b"b.tif"]
    np.testing.assert_array_equal(slices.images[0], tiny_slice(0, lesion=True))


def test_a_folder_without_slices_is_refused(tmp_path: Path, options: Options) -> None:
    with pytest.raises(UsageError, match="no slices in"):
        load_slices(replace(options, inputs=(str(tmp_path),)), 8)


def test_all_three_rates_have_the_same_gate_outcome_and_masks(
    options: Options, plan: Plan, tmp_path: Path
) -> None:
    slices = load_slices(options, SLICES)
    with open_scorer(plan, slices, lambda _: None) as (scorer, batch):
        assert batch == BATCH
        alone = runner_only(scorer, slices, batch)
        ram = from_ram(scorer, slices, tmp_path / "ram", batch, plan.operating)
    disk = disk_to_disk(options)
    for timed in (alone, ram, disk):
        assert (timed.slices, timed.passed, timed.has_mask) == (SLICES, LESIONS, LESIONS)
        assert timed.seconds > 0
        assert timed.per_second == pytest.approx(SLICES / timed.seconds)
    assert files_below(tmp_path / "ram") == files_below(options.out)


def test_the_ring_of_ram_gives_views_and_waits_for_blocks_to_come_back(options: Options) -> None:
    slices = load_slices(options, 10)
    ring = RamRing(slices, blocks=2, block_size=BATCH)
    first, second = ring.acquire(0), ring.acquire(0)
    assert {first, second} == {0, 1}
    assert ring.acquire(0.01) is None
    assert ring.completed(0.01) is None
    assert first == 0
    ring.submit(first, slices.files[:BATCH])
    block = ring.completed(0)
    assert block is not None
    assert np.shares_memory(block.images, slices.images)
    assert [piece.file for piece in block.slices] == list(slices.files[:BATCH])
    waiting = threading.Timer(0.05, ring.release, (block.block,))
    waiting.start()
    assert ring.acquire(5) == 2
    waiting.join()


def test_the_last_block_may_be_short(options: Options) -> None:
    slices = load_slices(options, BATCH + 1)
    ring = RamRing(slices, blocks=2, block_size=BATCH)
    ring.submit(0, slices.files[:BATCH])
    ring.submit(1, slices.files[BATCH:])
    ring.completed(0)
    last = ring.completed(0)
    assert last is not None
    assert (len(last.slices), len(last.images)) == (1, 1)
    np.testing.assert_array_equal(last.images[0], slices.images[BATCH])


def test_precisions_that_the_machine_lacks_are_left_out_with_the_reason(
    options: Options, tmp_path: Path
) -> None:
    measured = measure(Request(options, seconds=0.1, scratch=tmp_path))
    assert [rates.asked for rates in measured.rates] == ["fp32"]
    assert "ONNX Runtime computes in fp32 only" in measured.left_out["bf16"]
    assert 2 * BATCH <= measured.slices <= SLICES
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_cannot_be_had_is_refused_when_it_is_all_that_was_asked_for(
    options: Options,
) -> None:
    with pytest.raises(UsageError, match="ONNX Runtime computes in fp32 only"):
        measure(Request(options, precisions=("bf16",)))


def test_a_limit_holds(options: Options) -> None:
    measured = measure(Request(replace(options, limit=9), ("fp32",), seconds=0.1))
    assert measured.slices == 9
    assert measured.rates[0].disk_to_disk.slices == 9


def test_the_gpus_of_a_measurement_are_named() -> None:
    devices = (Device(0, "NVIDIA H100", 1), Device(2, "NVIDIA H100", 1))
    use = GpuUse("tensorrt", "NVIDIA H100", devices, lanes=2, batch=64, plan_cache=None)
    assert gpus_as_json(use) == {"model": "NVIDIA H100", "indexes": [0, 2], "lanes": 2}
    assert gpus_as_json(None) is None
