"""Lanes with one thing left out or done wrong, each in turn: the double, or the results, must tell.

What the lanes ask of CUDA goes through `engine.gpu.device`; here one of these calls is dropped, put on
another stream, or robbed of its memory. Were a mutant not noticed, a fault like it would not be either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from engine.bundle import Bundle
from engine.cascade import Scores
from engine.gpu.device import Device, Event, Stream, _Driver
from tests.double import Double
from tests.double.models import DoubleRunner
from tests.double.transfers import DeviceAllocation, PagelockedHostAllocation
from tests.lanes import Block, Ran, assert_same, cut, host_scores, run_lanes
from tests.tinybundle import make_tiny_bundle, tiny_slices

BATCH = 2
CALLS: dict[str, tuple[type[Any], str]] = {
    "record": (Event, "record"),
    "wait": (Event, "wait"),
    "copy in": (Stream, "copy_in"),
    "copy out": (Stream, "copy_out"),
    "copy within": (Stream, "copy_within"),
    "run": (DoubleRunner, "enqueue"),
}
ON_A_STREAM = [kind for kind in CALLS if kind != "wait"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    return cut(tiny_slices(5 * BATCH - 1), BATCH)


@pytest.fixture(scope="module")
def expected(bundle: Bundle, blocks: list[Block]) -> list[Scores]:
    return host_scores(bundle, blocks)


def is_noticed(
    bundle: Bundle,
    blocks: list[Block],
    expected: list[Scores],
    mutate: Callable[[Device], None],
    *,
    staged: bool = False,
) -> bool:
    """Whether a run that `mutate` has spoilt is found out."""
    ran: Ran | None = None
    with Double() as double:
        if staged:
            double.fail("cuMemHostRegister_v2", error="operation not supported")
        try:
            ran = run_lanes(
                double, bundle, blocks, batch=BATCH, together=True, ring_blocks=len(blocks), begun=mutate
            )
        except Exception:
            ran = None
        if double.found():
            return True
    try:
        if ran is not None:
            assert_same(ran, expected)
    except AssertionError:
        ran = None
    return ran is None


@contextmanager
def counted(kind: str, change: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> Iterator[Any]:
    """Calls of a kind go through what `change` makes of the call and its number, once told to begin."""
    owner, name = CALLS[kind]
    plain = getattr(owner, name)
    state = {"number": -1, "begun": False}

    def call(self: Any, *arguments: Any) -> Any:
        if not state["begun"]:
            return plain(self, *arguments)
        state["number"] += 1
        return change(state["number"], plain)(self, *arguments)

    with mock.patch.object(owner, name, call):
        yield state


@cache
def calls(kind: str, staged: bool = False) -> int:
    """How many calls of a kind a run makes. A run of the same blocks makes the same calls."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, counted(kind, lambda number, plain: plain) as state:
        tiny = make_tiny_bundle(Path(folder))
        blocks = cut(tiny_slices(5 * BATCH - 1), BATCH)
        assert not is_noticed(
            tiny, blocks, host_scores(tiny, blocks), lambda device: begin(state), staged=staged
        )
    return int(state["number"]) + 1


def begin(state: dict[str, Any]) -> None:
    state["begun"] = True


def each(kinds: list[str]) -> list[tuple[str, int]]:
    return [(kind, number) for kind in kinds for number in range(COUNTS[kind])]


COUNTS = {"record": 13, "wait": 13, "copy in": 5, "copy out": 8, "copy within": 6, "run": 8}
"""Of the calls that scoring `blocks` takes: `test_the_counts_are_right` holds them to it."""
LAST_COPY = 10
"""The wait for the last copy out of the staging buffer, which nothing is written to after it."""
ALLOCATIONS = 10
"""A workspace, two inputs, the segmenter's, both models' outputs; pagelocked, two of each output."""


@pytest.mark.parametrize("kind", CALLS)
def test_the_counts_are_right(kind: str) -> None:
    assert calls(kind) == COUNTS[kind]


@pytest.mark.parametrize(("kind", "number"), each(list(CALLS)))
def test_a_call_that_is_left_out_is_noticed(
    kind: str, number: int, bundle: Bundle, blocks: list[Block], expected: list[Scores]
) -> None:
    def change(at: int, plain: Callable[..., Any]) -> Callable[..., Any]:
        return (lambda *arguments: None) if at == number else plain

    with counted(kind, change) as state:
        assert is_noticed(bundle, blocks, expected, lambda device: begin(state))
    assert state["number"] >= number


@pytest.mark.parametrize(("kind", "number"), each(ON_A_STREAM))
def test_a_call_on_another_stream_is_noticed(
    kind: str, number: int, bundle: Bundle, blocks: list[Block], expected: list[Scores]
) -> None:
    others: list[Stream] = []

    def change(at: int, plain: Callable[..., Any]) -> Callable[..., Any]:
        if at != number:
            return plain
        if kind == "record":
            return lambda event, stream: plain(event, others[0])
        if kind == "run":
            return elsewhere
        return lambda stream, *arguments: plain(others[0], *arguments)

    def elsewhere(runner: DoubleRunner, pointers: Any) -> None:
        with mock.patch.object(runner, "_stream", others[0].handle):
            run(runner, pointers)

    run = DoubleRunner.enqueue

    def mutate(device: Device) -> None:
        others.append(device.stream())
        begin(state)

    with counted(kind, change) as state:
        assert is_noticed(bundle, blocks, expected, mutate)
    others.clear()


@pytest.mark.parametrize("number", range(ALLOCATIONS))
def test_memory_that_is_freed_early_is_noticed(
    number: int, bundle: Bundle, blocks: list[Block], expected: list[Scores]
) -> None:
    made: list[Any] = []
    begun: list[Device] = []
    call, wait = _Driver.call, Event.wait

    def kept(driver: _Driver, function: Callable[..., Any], *arguments: Any) -> Any:
        allocates = function in (driver.cuda.mem_alloc, driver.cuda.pagelocked_empty)
        try:
            got = call(driver, function, *arguments)
        finally:
            del function, arguments  # as in the plain call
        if allocates:
            made.append(got.base if isinstance(got, np.ndarray) else got)
        return got

    def freeing(event: Event) -> None:
        if begun:
            begun.clear()
            double = made[number]._double
            with mock.patch.object(double, "in_steady_state", False):  # that it is too early is not all
                made[number].free()
        wait(event)

    with (
        mock.patch.object(_Driver, "call", kept),
        mock.patch.object(Event, "wait", freeing),
        freed_once(DeviceAllocation),
        freed_once(PagelockedHostAllocation),
    ):
        assert is_noticed(bundle, blocks, expected, begun.append)
    assert len(made) == ALLOCATIONS


@contextmanager
def freed_once(kind: type[Any]) -> Iterator[None]:
    """What is freed already is not freed again at the end: that would be noticed by itself."""
    free = kind.free

    def free_once(allocation: Any) -> None:
        if allocation._context is not None:
            free(allocation)

    with mock.patch.object(kind, "free", free_once):
        yield


@pytest.mark.parametrize("number", range(COUNTS["wait"]))
def test_with_staging_every_wait_but_the_last_for_its_buffer_is_needed(
    number: int, bundle: Bundle, blocks: list[Block], expected: list[Scores]
) -> None:
    def change(at: int, plain: Callable[..., Any]) -> Callable[..., Any]:
        return (lambda event: None) if at == number else plain

    with counted("wait", change) as state:
        noticed = is_noticed(bundle, blocks, expected, lambda device: begin(state), staged=True)
    assert noticed is (number != LAST_COPY)


def test_memory_that_is_freed_before_the_streams_are_empty_is_noticed(
    bundle: Bundle, blocks: list[Block]
) -> None:
    for waits in (True, False):
        with Double() as double, nullcontext() if waits else mock.patch.object(Stream, "wait"):

            def spoil(device: Device, double: Double = double) -> None:
                double.fail("Event.record", at=double.steps.count("Event.record") + 1)

            ran = run_lanes(double, bundle, blocks, batch=BATCH, begun=spoil)
            assert ran.error is not None
            assert bool(double.found()) is not waits


def test_a_thread_without_the_context_is_noticed(
    bundle: Bundle, blocks: list[Block], expected: list[Scores]
) -> None:
    with mock.patch.object(Device, "current", return_value=nullcontext()):
        assert is_noticed(bundle, blocks, expected, lambda device: None)
