"""Lanes on a real GPU: the bits of a serial run, whatever the number of lanes and whatever is late."""

# The fixtures are those of the other file.
# ruff: noqa: F811

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the gpu extra")

from engine.bundle import Bundle
from engine.cascade import OperatingPoint, Scores
from engine.gpu.device import Event, Stream, open_device
from engine.gpu.lanes import open_lanes
from engine.gpu.process import open_gpus
from engine.gpu.start import Graphs, Start, open_models
from engine.gpu.start import Plans as LoadPlans
from engine.ring import DecodedBlock
from engine.runners.base import Images
from engine.scorer import GpuScorer, gate_for_gpu
from tests.gpu.test_device_runners import (  # noqa: F401 - fixtures
    BATCH,
    Plans,
    Provider,
    bundle,
    gpu,
    images,
    runtime,
)
from tests.lanes import Feeder, PlainSlots, Ran, assert_same, cut

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(3600)]

LATE = r"""
.version 6.4
.target sm_52
.address_size 64
.visible .entry late(.param .u64 nanoseconds)
{
    .reg .u64 %begun, %now, %past, %limit;
    .reg .pred %waits;
    ld.param.u64 %limit, [nanoseconds];
    mov.u64 %begun, %globaltimer;
again:
    mov.u64 %now, %globaltimer;
    sub.u64 %past, %now, %begun;
    setp.lt.u64 %waits, %past, %limit;
    @%waits bra again;
    ret;
}
"""
"""A kernel that holds its stream up; the driver compiles it, so that no nvcc is needed."""


Runtime = Provider | Plans


def told(runtime: Runtime, folder: Path, point: OperatingPoint, lanes: int) -> Start:
    """What a process is told to open the runtime's models."""
    if isinstance(runtime, Plans):
        plans = runtime.plans
        return Start(
            0,
            lanes,
            BATCH,
            gate_for_gpu(point),
            LoadPlans(runtime.cache.folder, plans["classifier"], plans["segmenter"]),
        )
    if runtime._prefer_nhwc:
        pytest.skip("the lanes' provider has its channels first")
    return Start(0, lanes, BATCH, gate_for_gpu(point), Graphs(folder))


def serial(runtime: Runtime, point: OperatingPoint, images: Images) -> list[Scores]:
    """What the same models say, one batch after the other."""
    with runtime.cascade(point) as cascade:
        return [cascade.score(block.images, block.valid) for block in cut(images, BATCH)]


def in_lanes(
    start: Start, images: Images, late: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Ran:
    """What lanes in this process say."""
    slots = PlainSlots(4, BATCH)
    feeder = Feeder(slots, cut(images, BATCH))
    with (
        open_device(0) as device,
        open_models(start) as models,
        open_lanes(
            device, models, count=start.lanes, batch=BATCH, gate=start.gate, failed=feeder.events.put
        ) as lanes,
    ):
        feeder.ran.refused = lanes.begin(slots.memory.reshape(-1, 256, 256, 3))
        with late():
            feeder.feed(lanes)
    return feeder.ran


@contextmanager
def late(seed: int) -> Iterator[None]:
    """Some of what is put on a stream stands behind a kernel that takes up to 3 ms."""
    import pycuda.driver as cuda

    kernel = cuda.module_from_buffer(LATE.encode()).get_function("late")
    kernel.prepare("Q")
    chance = random.Random(seed)

    def behind(stream: Stream) -> None:
        if chance.random() < 0.3:
            kernel.prepared_async_call((1, 1), (1, 1, 1), stream.raw, chance.randrange(3_000_000))

    with ExitStack() as stack:
        for name in ("copy_in", "copy_out", "copy_within"):
            stack.enter_context(mock.patch.object(Stream, name, _after(behind, getattr(Stream, name), 0)))
        stack.enter_context(mock.patch.object(Event, "record", _after(behind, Event.record, 1)))
        yield


def _after(first: Callable[[Stream], None], plain: Callable[..., None], which: int) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        first(arguments[which])
        plain(*arguments)

    return call


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("gated", [True, False])
def test_lanes_give_the_bits_of_a_serial_run(
    lanes: int, gated: bool, runtime: Runtime, bundle: Bundle, images: Images
) -> None:
    point = OperatingPoint.of(bundle, gated=gated)
    few = np.concatenate([images, images[:-3]])
    ran = in_lanes(told(runtime, bundle.folder, point, lanes), few)
    assert_same(ran, serial(runtime, point, few))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_late_the_bits_stay(seed: int, runtime: Runtime, bundle: Bundle, images: Images) -> None:
    point = OperatingPoint.of(bundle)
    many = np.concatenate([images] * 4)
    ran = in_lanes(told(runtime, bundle.folder, point, 2), many, partial(late, seed))
    assert_same(ran, serial(runtime, point, many))


def test_a_process_of_its_own_gives_the_same(runtime: Runtime, bundle: Bundle, images: Images) -> None:
    point = OperatingPoint.of(bundle)
    start = told(runtime, bundle.folder, point, 2)
    descriptor = os.memfd_create("ring")
    os.posix_fallocate(descriptor, 0, images.nbytes)
    slots = np.frombuffer(mmap.mmap(descriptor, images.nbytes), np.uint8).reshape(images.shape)
    slots[:] = images
    blocks = cut(images, BATCH)

    def score(number: int) -> Scores:
        block = DecodedBlock(number, slots[number * BATCH : (number + 1) * BATCH], ())
        return scorer.score(block, blocks[number].valid, lambda: None)

    with open_gpus(lambda batch: [start], BATCH, smaller=False, say=pytest.fail) as processes:
        refused = processes[0].open(descriptor, len(slots))
        scorer = GpuScorer(processes, point)
        with ThreadPoolExecutor(len(blocks)) as pool:
            found = list(pool.map(score, range(len(blocks))))
    os.close(descriptor)
    print("the ring's memory is", f"refused by the driver, error {refused}" if refused else "registered")
    for each, due in zip(found, serial(runtime, point, images), strict=True):
        np.testing.assert_array_equal(each.tumor_probability, due.tumor_probability)
        np.testing.assert_array_equal(each.mask_pixels, due.mask_pixels)
        assert each.masks.keys() == due.masks.keys()
        for position, mask in due.masks.items():
            np.testing.assert_array_equal(each.masks[position], mask)
