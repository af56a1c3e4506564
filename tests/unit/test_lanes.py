"""Lanes on the double of a GPU: what they score, how they fill it, what they hold and let go."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest

from engine.bundle import Bundle
from engine.errors import MachineError, UsageError
from engine.gpu.device import GpuMemoryError, open_device
from engine.gpu.lane import PATIENCE, SLICE_BYTES, Work
from engine.gpu.lanes import open_lanes
from engine.gpu.start import Plans, Start, open_models
from engine.plans.cache import PlanCache
from tests.double import SCHEDULES, Double, Slots, make_models
from tests.double.compute import Computer
from tests.lanes import Block, assert_same, cut, empty_results, host_scores, run_lanes
from tests.tinybundle import make_tiny_bundle, tiny_slice, tiny_slices
from tests.unit.test_device_runners import BATCH, placed


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny"))


def lesions(count: int) -> npt.NDArray[np.uint8]:
    """Slices that all pass the gate."""
    return np.stack([tiny_slice(seed, lesion=True) for seed in range(count)])


def since_start_up(double: Double) -> Counter[str]:
    """How often what was called since the lanes began."""
    return Counter(double.steps[double.steps.index("cuMemHostRegister_v2") :])


# What is scored


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes_say_what_the_host_says_to_the_bit(schedule: str, lanes: int, bundle: Bundle) -> None:
    blocks = cut(tiny_slices(5 * BATCH + 2), BATCH)
    with Double(schedule) as double:
        ran = run_lanes(double, bundle, blocks, batch=BATCH, lanes=lanes)
    assert_same(ran, host_scores(bundle, blocks))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("gate", [None, 0.0, 1.0])
def test_all_slices_may_pass_and_none(gate: float | None, schedule: str, bundle: Bundle) -> None:
    blocks = cut(tiny_slices(2 * BATCH + 3), BATCH)
    with Double(schedule) as double:
        ran = run_lanes(double, bundle, blocks, batch=BATCH, gate=gate)
    assert_same(ran, host_scores(bundle, blocks, gate))
    passed = sum(int(results.passed.sum()) for results in ran.results.values())
    assert passed == {None: 11, 0.0: 11, 1.0: 0}[gate]
    if gate == 1.0:
        assert since_start_up(double)["enqueue"] == len(blocks)  # the segmenter has nothing to do


@pytest.mark.parametrize("seed", range(6))
def test_a_result_depends_on_no_neighbour_position_or_padding(seed: int, bundle: Bundle) -> None:
    rng = np.random.default_rng(seed)
    images = tiny_slices(12)
    alone = host_scores(bundle, cut(images, 1))
    blocks, places = [], []
    for _ in range(8):
        chosen = rng.integers(0, len(images), rng.integers(1, BATCH + 1))
        valid = rng.random(len(chosen)) < 0.8
        blocks.append(Block(np.where(valid[:, None, None, None], images[chosen], 0), valid))
        places.append(chosen)
    with Double(f"random {seed}") as double:
        ran = run_lanes(double, bundle, blocks, batch=BATCH, lanes=2, ring_blocks=3)
    assert_same(ran, host_scores(bundle, blocks))
    for number, (block, chosen) in enumerate(zip(blocks, places, strict=True)):
        for position, which in enumerate(chosen):
            if block.valid[position]:
                assert ran.results[number].probability[position] == alone[which].tumor_probability[0]
                assert ran.results[number].pixels[position] == alone[which].mask_pixels[0]


def test_a_block_whose_slices_all_failed_comes_back(bundle: Bundle) -> None:
    failed = Block(np.zeros((3, 256, 256, 3), np.uint8), np.zeros(3, np.bool_))
    blocks = [failed, *cut(lesions(2), BATCH), failed]
    for gate in (0.5, None):
        with Double() as double:
            ran = run_lanes(double, bundle, blocks, batch=BATCH, gate=gate)
        assert_same(ran, host_scores(bundle, blocks, gate))
        assert np.isnan(ran.results[0].probability).all()


def test_the_gate_compares_in_float32_as_the_host_does(bundle: Bundle) -> None:
    blocks = cut(tiny_slices(BATCH), BATCH)
    (scores,) = host_scores(bundle, blocks)
    least = float(scores.tumor_probability[scores.passed].min())
    for gate in (least, least + 1e-12, float(np.nextafter(np.float32(least), np.float32(1)))):
        with Double() as double:
            ran = run_lanes(double, bundle, blocks, batch=BATCH, gate=gate)
        assert_same(ran, host_scores(bundle, blocks, gate))
        assert ran.results[0].passed.sum() == scores.passed.sum() - (gate > least + 1e-10)


@pytest.mark.parametrize("gate", [0.5, None])
def test_a_probability_that_is_no_number_is_told_slice_by_slice(gate: float | None, tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, sharpness=float("nan"))
    blocks = cut(tiny_slices(BATCH + 1), BATCH)
    with Double() as double:
        ran = run_lanes(double, bundle, blocks, batch=BATCH, gate=gate)
    assert sorted(ran.scored) == [0, 1]
    for results in ran.results.values():
        assert np.isnan(results.probability).all()
        assert (results.passed == (gate is None)).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_registration_slices_go_through_memory_of_the_lanes(schedule: str, bundle: Bundle) -> None:
    blocks = cut(tiny_slices(4 * BATCH + 1), BATCH)
    with Double(schedule) as double:
        double.fail("cuMemHostRegister_v2", error="operation not supported")
        ran = run_lanes(double, bundle, blocks, batch=BATCH, lanes=2, ring_blocks=2)
    assert ran.refused == 801
    assert_same(ran, host_scores(bundle, blocks))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_plans_run_by_tensorrt_are_driven_just_so(schedule: str, bundle: Bundle, tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans")
    plans = [placed(cache, bundle, model) for model in ("classifier", "segmenter")]
    start = Start(0, 2, BATCH, 0.5, Plans(cache.folder, *plans))
    blocks = cut(tiny_slices(4 * BATCH + 1), BATCH)
    with Double(schedule) as double:
        ran = run_lanes(double, bundle, blocks, batch=BATCH, lanes=2, models=lambda: open_models(start))
    assert_same(ran, host_scores(bundle, blocks))
    assert since_start_up(double)["execute_async_v3"] > len(blocks)


def test_plans_that_give_more_than_is_asked_for_are_run_too(bundle: Bundle) -> None:
    blocks = cut(tiny_slices(BATCH), BATCH)
    with Double() as double, mock.patch("tests.lanes.make_models", wraps=make_models) as made:
        made.side_effect = lambda *arguments: make_models(*arguments, probabilities=True)
        ran = run_lanes(double, bundle, blocks, batch=BATCH)
    assert_same(ran, host_scores(bundle, blocks))


# How the GPU is filled


def test_neighbours_are_gathered_in_one_copy(bundle: Bundle) -> None:
    passes = [True, True, False, True, False, True]
    images = np.stack([tiny_slice(seed, lesion=lesion) for seed, lesion in enumerate(passes)])
    with Double() as double:
        ran = run_lanes(double, bundle, cut(images, 8), batch=8)
    assert ran.results[0].passed.tolist() == passes
    assert since_start_up(double)["memcpy_dtod_async"] == 3


def test_the_segmenter_fills_its_batches_across_the_classifiers(bundle: Bundle) -> None:
    blocks = cut(tiny_slices(6 * BATCH), BATCH)
    with Double() as double:
        ran = run_lanes(double, bundle, blocks, batch=BATCH, together=True, ring_blocks=6)
    passed = sum(int(results.passed.sum()) for results in ran.results.values())
    assert passed == 16
    assert since_start_up(double)["enqueue"] == 6 + passed // BATCH


def test_a_slice_waits_for_so_many_batches_and_no_longer(bundle: Bundle) -> None:
    blocks = cut(lesions(PATIENCE + 4), 1)
    with Double() as double:
        ran = run_lanes(double, bundle, blocks, batch=32, together=True, ring_blocks=len(blocks))
    assert_same(ran, host_scores(bundle, blocks))
    assert since_start_up(double)["enqueue"] == len(blocks) + 2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_slice_that_nothing_follows_is_scored_at_once(schedule: str, bundle: Bundle) -> None:
    blocks = cut(tiny_slices(3), 1)
    with Double(schedule) as double:  # a ring of one block: the next one comes when this one is copied
        ran = run_lanes(double, bundle, blocks, batch=BATCH, lanes=2, ring_blocks=1)
    assert_same(ran, host_scores(bundle, blocks))


def test_while_the_gate_is_decided_the_next_batch_is_on_the_stream(bundle: Bundle) -> None:
    with Double() as double:
        run_lanes(double, bundle, cut(lesions(2 * BATCH), BATCH), batch=BATCH, together=True)
    steps = double.steps[double.steps.index("cuMemHostRegister_v2") :]
    assert steps[: steps.index("memcpy_dtod_async")].count("memcpy_htod_async") == 2


def test_what_is_read_is_never_what_memory_happens_to_hold(bundle: Bundle) -> None:
    seen: list[npt.NDArray[np.uint8]] = []
    run = Computer.run

    def watched(computer: Computer, images: npt.NDArray[np.uint8]) -> Any:
        seen.append(images.copy())
        return run(computer, images)

    with Double("eager") as double, mock.patch.object(Computer, "run", watched):
        run_lanes(double, bundle, cut(tiny_slices(1), BATCH), batch=BATCH)
    assert not seen[0].any()
    assert not seen[1].any()  # both models at start-up
    assert len(seen) == 4
    assert not any(images[1:].any() for images in seen)


# What is held


def test_the_ring_stays_mapped_while_it_is_registered() -> None:
    with Double(), open_device(0) as device:
        memory = np.zeros((2, 256, 256, 3), np.uint8)
        watched = weakref.ref(memory)
        assert device.register(memory) == 0
        del memory
        gc.collect()
        assert watched() is not None
        device.free()
        gc.collect()
        assert watched() is None


def test_a_gpu_that_is_too_small_says_so_and_keeps_nothing(bundle: Bundle) -> None:
    for memory in range(0, 12 * BATCH * SLICE_BYTES, BATCH * SLICE_BYTES // 2):
        with Double(memory=memory) as double:
            try:
                run_lanes(double, bundle, cut(tiny_slices(1), BATCH), batch=BATCH, lanes=2)
            except GpuMemoryError as error:
                assert "no room for 2 lanes at batches of 4 slices" in str(error)  # noqa: PT017
                assert "choose a smaller --batch or fewer --lanes" in str(error)  # noqa: PT017
            else:
                break
    assert memory > 0


def test_models_of_another_batch_are_refused_in_their_own_words(bundle: Bundle) -> None:
    with (
        Double() as double,
        pytest.raises(UsageError, match="for batches of 4 slices, not of 8"),
        open_device(0) as device,
        make_models(double, bundle, 4)[0] as classifier,
        make_models(double, bundle, 4)[1] as segmenter,
        open_lanes(device, (classifier, segmenter), count=1, batch=8, gate=0.5, failed=lambda error: None),
    ):
        pass


def test_without_pycuda_there_is_one_line() -> None:
    with (
        Double(),
        mock.patch.dict(sys.modules, {"pycuda.driver": None}),
        pytest.raises(MachineError, match=r"pycuda cannot be loaded .*pip install 'tumorscan\[gpu\]'"),
        open_device(0),
    ):
        pass


def test_a_gpu_that_is_not_there_is_named() -> None:
    with Double(), pytest.raises(MachineError, match="there is no GPU 3"), open_device(3):
        pass


def test_leaving_lanes_has_them_do_what_they_have_before_them(bundle: Bundle) -> None:
    blocks = cut(tiny_slices(3 * BATCH), BATCH)
    scored: list[int] = []
    with Double() as double:
        classifier, segmenter = make_models(double, bundle, BATCH)
        slots = Slots(double, 3, BATCH)
        with (
            open_device(0) as device,
            classifier,
            segmenter,
            open_lanes(
                device, (classifier, segmenter), count=2, batch=BATCH, gate=0.5, failed=pytest.fail
            ) as lanes,
        ):
            lanes.begin(slots.memory.reshape(-1, 256, 256, 3))
            for place, block in enumerate(blocks):
                images = slots.fill(place, block.images)
                done = partial(scored.append, place)
                lanes.submit(Work(images, empty_results(block), copied=lambda: None, scored=done))
    assert sorted(scored) == [0, 1, 2]
