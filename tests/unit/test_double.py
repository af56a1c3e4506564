"""The double of a GPU, tried on programs that are right and on programs that each have one thing wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.double import SCHEDULES, Double, DoubleError, Slots
from tests.double.programs import (
    BATCHES,
    OMISSIONS,
    SHAPE,
    SIZE,
    SWAPS,
    Program,
    found,
    register,
    unregister,
)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_program_that_waits_for_all_it_must_is_right_and_nothing_is_found(schedule: str) -> None:
    with Double(schedule) as double:
        results = Program(double).run()
    assert [np.unique(result).tolist() for result in results] == [[k] for k in range(BATCHES)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("step", OMISSIONS)
def test_a_step_left_out_is_a_race_under_every_schedule(step: str, schedule: str) -> None:
    with pytest.raises(DoubleError, match="race: "), Double(schedule) as double:
        Program(double, without=step).run()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("step", SWAPS)
def test_a_step_on_the_other_stream_is_a_race_under_every_schedule(step: str, schedule: str) -> None:
    with pytest.raises(DoubleError, match="race: "), Double(schedule) as double:
        Program(double, swapped=step).run()


def test_a_race_says_who_and_where() -> None:
    with pytest.raises(DoubleError) as caught, Double() as double:
        Program(double, without="the result is waited for").run()
    text = str(caught.value)
    assert "pagelocked memory" in text
    assert "memcpy_dtoh_async on stream" in text
    assert "the host in thread MainThread (programs.py:" in text


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_memory_is_read_when_the_copy_runs(schedule: str) -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(4)
        source, result = (cuda.pagelocked_empty(4, np.uint8) for _ in range(2))
        source[:] = 1
        cuda.memcpy_htod_async(device, source, stream)
        cuda.memcpy_dtoh_async(result, device, stream)
        source[:] = 2
        stream.synchronize()
        got.append(result[0])
        device.free()

    got: list[int] = []
    assert found(body, schedule) == ["race"]
    assert got == [1 if schedule == "eager" else 2] or schedule.startswith("random")


def test_laziest_runs_only_what_a_synchronisation_forces() -> None:
    def body(cuda: Any, double: Double) -> None:
        streams = [cuda.Stream(flags=1) for _ in range(3)]
        event, device = cuda.Event(flags=3), cuda.mem_alloc(3)
        for place, stream in enumerate(streams):
            cuda.memset_d8_async(int(device) + place, place, 1, stream)
        event.record(streams[0])
        cuda.memset_d8_async(int(device), 9, 1, streams[0])
        streams[1].wait_for_event(event)
        assert double.device.ran == 0
        streams[1].synchronize()
        assert double.device.ran == 4
        streams[0].synchronize()
        streams[2].synchronize()
        assert double.device.ran == 6
        device.free()

    assert found(body) == []


def test_others_first_holds_a_stream_back_until_the_others_can_do_no_more() -> None:
    def body(cuda: Any, double: Double) -> None:
        first, second = (cuda.Stream(flags=1) for _ in range(2))
        device = cuda.mem_alloc(2)
        cuda.memset_d8_async(device, 1, 1, first)
        assert double.device.ran == 0
        cuda.memset_d8_async(int(device) + 1, 1, 1, second)
        assert double.device.ran == 1
        first.synchronize()
        assert double.device.ran == 2
        second.synchronize()
        device.free()

    assert found(body, "others first") == []


def test_a_seed_repeats_itself() -> None:
    def ran(seed: int) -> list[int]:
        def body(cuda: Any, double: Double) -> None:
            streams = [cuda.Stream(flags=1) for _ in range(3)]
            device = cuda.mem_alloc(30)
            for place in range(30):
                cuda.memset_d8_async(int(device) + place, 1, 1, streams[place % 3])
                counts.append(double.device.ran)
            for stream in streams:
                stream.synchronize()
            device.free()

        counts: list[int] = []
        assert found(body, f"random {seed}") == []
        return counts

    assert ran(3) == ran(3)
    assert ran(3) != ran(4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("asked", ["event", "stream"])
def test_what_is_polled_comes_true_and_orders_what_follows(asked: str, schedule: str) -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, event, device = cuda.Stream(flags=1), cuda.Event(flags=3), cuda.mem_alloc(4)
        assert event.query()
        assert stream.is_done()
        cuda.memset_d8_async(device, 1, 4, stream)
        event.record(stream)
        assert any(event.query() if asked == "event" else stream.is_done() for _ in range(100))
        device.free()

    assert found(body, schedule) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_event_says_nothing_of_what_came_behind_it(schedule: str) -> None:
    def body(cuda: Any, double: Double) -> None:
        first, second, event = cuda.Stream(flags=1), cuda.Stream(flags=1), cuda.Event(flags=3)
        device = cuda.mem_alloc(8)
        cuda.memset_d8_async(device, 1, 4, first)
        event.record(first)
        cuda.memset_d8_async(int(device) + 4, 1, 4, first)
        second.wait_for_event(event)
        cuda.memset_d8_async(device, 2, 4, second)
        assert not double.findings.found
        cuda.memset_d8_async(int(device) + 4, 2, 4, second)
        first.synchronize()
        second.synchronize()
        device.free()

    assert found(body, schedule) == ["race"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_wait_is_for_what_the_event_was_recorded_as_by_then(schedule: str) -> None:
    def body(cuda: Any, double: Double) -> None:
        first, second = (cuda.Stream(flags=1) for _ in range(2))
        event, device = cuda.Event(flags=3), cuda.mem_alloc(4)
        second.wait_for_event(event)  # records nothing yet
        cuda.memset_d8_async(device, 1, 4, first)
        event.record(first)
        cuda.memset_d8_async(device, 2, 4, second)
        first.synchronize()
        second.synchronize()
        device.free()

    assert found(body, schedule) == ["race"]


def test_neighbouring_bytes_do_not_race() -> None:
    def body(cuda: Any, double: Double) -> None:
        first, second = (cuda.Stream(flags=1) for _ in range(2))
        device = cuda.mem_alloc(100)
        cuda.memset_d8_async(device, 1, 50, first)
        cuda.memset_d8_async(int(device) + 50, 2, 50, second)
        first.synchronize()
        second.synchronize()
        device.free()

    assert found(body) == []


def test_an_old_access_is_still_known_where_later_ones_covered_parts_of_it() -> None:
    def body(cuda: Any, double: Double) -> None:
        first, second = (cuda.Stream(flags=1) for _ in range(2))
        device, event = cuda.mem_alloc(100), cuda.Event(flags=3)
        cuda.memset_d8_async(device, 1, 100, first)
        event.record(first)
        third = cuda.Stream(flags=1)
        third.wait_for_event(event)
        cuda.memset_d8_async(int(device) + 20, 2, 60, third)
        cuda.memset_d8_async(int(device) + 90, 3, 10, second)
        for stream in (first, second, third):
            stream.synchronize()
        device.free()

    assert found(body) == ["race"]


def test_reading_twice_at_once_is_no_race_but_writing_beside_it_is() -> None:
    def body(cuda: Any, double: Double) -> None:
        streams = [cuda.Stream(flags=1) for _ in range(3)]
        device, one, two = (cuda.mem_alloc(4) for _ in range(3))
        cuda.memset_d8_async(device, 1, 4, streams[0])
        streams[0].synchronize()
        cuda.memcpy_dtod_async(one, device, 4, streams[0])
        cuda.memcpy_dtod_async(two, device, 4, streams[1])
        assert not double.findings.found
        cuda.memset_d8_async(device, 2, 4, streams[2])
        assert len(double.findings.found) == 2
        for stream in streams:
            stream.synchronize()
        for each in (device, one, two):
            each.free()

    assert found(body) == ["race"]


def test_a_copy_that_overlaps_itself_is_a_race() -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(100)
        cuda.memcpy_dtod_async(int(device) + 10, device, 20, stream)
        stream.synchronize()
        device.free()

    assert found(body) == ["race"]


def test_a_long_program_is_quick_and_keeps_little() -> None:
    def body(cuda: Any, double: Double) -> None:
        streams = [cuda.Stream(flags=1) for _ in range(2)]
        event, device = cuda.Event(flags=3), cuda.mem_alloc(1 << 20)
        started = time.perf_counter()
        for k in range(1000):
            stream = streams[k % 2]
            stream.wait_for_event(event)
            cuda.memset_d8_async(int(device) + 1000 * (k % 100), k % 256, 2000, stream)
            event.record(stream)
        event.synchronize()
        assert time.perf_counter() - started < 20
        (block,) = double.memory.live("device")
        assert len(block.accesses) < 300
        streams[0].synchronize()
        device.free()

    assert found(body) == []


@dataclass
class Parts:
    """A copy in and a copy out are on their way."""

    double: Double
    stream: Any
    device: Any
    source: Any
    result: Any
    slots: Slots


def _free_the_buffer(parts: Parts) -> None:
    parts.device.free()


def _free_the_result(parts: Parts) -> None:
    parts.result.base.free()


def _drop_the_source(parts: Parts) -> None:
    parts.source = None


def _unregister_the_ring(parts: Parts) -> None:
    unregister(parts.slots.memory)


def _release_the_slot(parts: Parts) -> None:
    parts.slots.release(0)


def _read_the_result(parts: Parts) -> None:
    assert parts.result.sum() >= 0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    "end",
    [
        _free_the_buffer,
        _free_the_result,
        _drop_the_source,
        _unregister_the_ring,
        _release_the_slot,
        _read_the_result,
    ],
)
def test_what_the_host_does_before_the_stream_is_done_is_a_race(
    end: Callable[[Parts], None], early: bool, schedule: str
) -> None:
    def body(cuda: Any, double: Double) -> None:
        slots = Slots(double, 1, 1)
        register(slots.memory)
        parts = Parts(
            double,
            cuda.Stream(flags=1),
            cuda.mem_alloc(SIZE),
            cuda.pagelocked_empty(3, np.uint8),
            cuda.pagelocked_empty(3, np.uint8),
            slots,
        )
        cuda.memcpy_htod_async(parts.device, slots.fill(0, np.zeros(SHAPE, np.uint8)), parts.stream)
        cuda.memcpy_htod_async(parts.device, parts.source, parts.stream)
        cuda.memcpy_dtoh_async(parts.result, parts.device, parts.stream)
        if not early:
            parts.stream.synchronize()
        end(parts)
        with suppress(cuda.LogicError):  # an operation that ran on freed memory has broken the context
            parts.stream.synchronize()
        if end is not _free_the_buffer:
            parts.device.free()
        if end is not _unregister_the_ring:
            unregister(slots.memory)

    kinds = found(body, schedule)
    assert ("race" in kinds) == early
    assert early or not kinds
