"""Contexts as pycuda keeps them, and what is given back, in which thread, or never."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.double import Double, DoubleError, Slots
from tests.double.programs import found, pushed, register, unregister


@pytest.mark.parametrize(
    "call",
    [
        lambda cuda: cuda.mem_alloc(4).free(),
        lambda cuda: cuda.pagelocked_empty(4, np.uint8),
        lambda cuda: cuda.Context.synchronize(),
    ],
)
def test_nothing_is_allocated_and_the_device_is_not_waited_for_after_start_up(
    call: Callable[[Any], None],
) -> None:
    def body(cuda: Any, double: Double) -> None:
        call(cuda)
        assert not double.findings.found
        with double.steady():
            call(cuda)

    assert found(body) == ["refusal"]


def test_a_call_before_init_is_refused() -> None:
    with Double():
        import pycuda.driver as cuda

        with pytest.raises(cuda.LogicError, match="initialization error"):
            cuda.Device(0)


def test_a_call_without_a_current_context_is_refused() -> None:
    with Double() as double:
        with pushed() as cuda:
            stream, device = cuda.Stream(flags=1), cuda.mem_alloc(4)
            cuda.Context.pop()
            with pytest.raises(cuda.LogicError, match="invalid device context"):
                cuda.memset_d8_async(device, 0, 4, stream)
            double.hosts.current().contexts.append(device._context)
            device.free()
            del stream
        assert [finding.kind for finding in double.found()] == ["context"]
        with pytest.raises(cuda.LogicError, match="cannot pop non-current context"):
            cuda.Context.pop()


def test_a_thread_that_ends_with_a_context_is_told_of() -> None:
    def body(cuda: Any, double: Double) -> None:
        context = double.hosts.current().contexts[-1]
        thread = threading.Thread(target=context.push, name="forgetful")
        thread.start()
        thread.join()
        assert "thread forgetful ends with a context pushed" in str(next(iter(double.findings.found)))

    assert found(body) == ["context"]


def test_memory_let_go_under_another_context_object_is_lost() -> None:
    def body(cuda: Any, double: Double) -> None:
        device = cuda.mem_alloc(4)

        def other() -> None:
            context = cuda.Device(0).retain_primary_context()
            context.push()
            try:
                device.free()
            finally:
                context.pop()
                context.detach()

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert double.leaks()["device allocations"] == 1
        double.counts["device allocations"] = 0

    assert found(body) == ["context"]


def test_memory_may_be_let_go_in_any_thread_that_pushed_its_context() -> None:
    def body(cuda: Any, double: Double) -> None:
        device = cuda.mem_alloc(4)
        context = double.hosts.current().contexts[-1]

        def other() -> None:
            context.push()
            try:
                device.free()
            finally:
                context.pop()

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    assert found(body) == []


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda cuda: cuda.mem_alloc(4), "device allocations"),
        (lambda cuda: cuda.pagelocked_empty(4, np.uint8), "pagelocked allocations"),
        (lambda cuda: cuda.Stream(flags=1), "streams"),
        (lambda cuda: cuda.Event(flags=3), "events"),
        (lambda cuda: cuda.Device(0).retain_primary_context(), "contexts"),
    ],
)
def test_what_is_left_is_counted_and_what_is_dropped_is_not(make: Callable[[Any], Any], left: str) -> None:
    with pytest.raises(DoubleError, match=f"leak: 1 {left} left"), Double(), pushed() as cuda:
        kept = make(cuda)
    del kept
    with Double() as double, pushed() as cuda:
        before = double.leaks()
        assert make(cuda) is not None
        gc.collect()
        assert double.leaks() == before


def test_what_is_registered_is_counted_and_not_unmapped() -> None:
    def body(cuda: Any, double: Double) -> None:
        slots = Slots(double, 1, 1)
        register(slots.memory)
        assert double.leaks()["registered ranges"] == 1
        slots.close()
        unregister(slots.memory)
        assert "registered ranges" not in double.leaks()

    assert found(body) == ["refusal"]


def test_an_exception_carries_what_was_found() -> None:
    def fail() -> None:
        with Double(), pushed() as cuda:
            cuda.Stream(flags=0)
            raise KeyError("lost")

    with pytest.raises(KeyError) as caught:
        fail()
    assert any("serialises with the null stream" in note for note in caught.value.__notes__)
