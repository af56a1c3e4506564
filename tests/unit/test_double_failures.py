"""Failures that a test orders of the double, and what they do to the program that meets them."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import MachineError
from tests.double import CODES, Double, Slots, make_models
from tests.double.programs import SIZE, Program, found, pushed
from tests.tinybundle import make_tiny_bundle


def test_the_call_that_was_named_fails_and_no_other() -> None:
    with Double() as double, pushed() as cuda:
        double.fail("mem_alloc", at=1)
        first = cuda.mem_alloc(4)
        with pytest.raises(cuda.MemoryError, match="cuMemAlloc failed: out of memory"):
            cuda.mem_alloc(4)
        cuda.mem_alloc(4).free()
        first.free()
        assert double.faults.fired == ["mem_alloc"]


@pytest.mark.parametrize("error", CODES)
def test_errors_are_of_pycudas_classes(error: str) -> None:
    def body(cuda: Any, double: Double) -> None:
        double.fail("mem_get_info", error=error)
        with pytest.raises(cuda.Error, match=f"cuMemGetInfo failed: {error}") as caught:
            cuda.mem_get_info()
        names = {2: "MemoryError", 719: "LaunchError", 999: "Error"}
        assert type(caught.value) is getattr(cuda, names.get(CODES[error].number, "LogicError"))
        assert not isinstance(caught.value, (MemoryError, RuntimeError))

    assert found(body) == []


def test_a_sticky_error_is_there_for_good_and_memory_can_still_be_given_back() -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(4)
        result = cuda.pagelocked_empty(4, np.uint8)
        event = cuda.Event(flags=3)
        cuda.memcpy_dtoh_async(result, device, stream)
        double.fail("Event.record", error="unknown error")
        for _ in range(2):
            with pytest.raises(cuda.Error, match="unknown error"):
                event.record(stream)
        with pytest.raises(cuda.Error, match="cuStreamSynchronize failed: unknown error"):
            stream.synchronize()
        with pytest.raises(cuda.Error):
            cuda.mem_alloc(4)
        device.free()

    assert found(body) == []


@pytest.mark.parametrize("schedule", ["laziest", "others first"])
def test_an_operation_that_fails_is_heard_of_where_it_is_waited_for(schedule: str) -> None:
    def body(cuda: Any, double: Double) -> None:
        double.fail_later("memset_d8_async", at=1)
        stream, device, event = cuda.Stream(flags=1), cuda.mem_alloc(4), cuda.Event(flags=3)
        cuda.memset_d8_async(device, 0, 4, stream)
        event.record(stream)
        cuda.memset_d8_async(device, 0, 4, stream)
        event.synchronize()
        with pytest.raises(cuda.LogicError, match="cuStreamSynchronize failed: an illegal memory access"):
            stream.synchronize()
        with pytest.raises(cuda.LogicError, match="cuEventQuery failed"):
            event.query()
        device.free()

    assert found(body, schedule) == []


def test_a_failed_wait_is_never_a_passing_one() -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(4)
        cuda.memset_d8_async(device, 0, 4, stream)
        double.fail("Stream.synchronize", error="out of memory")
        for _ in range(2):
            with pytest.raises(cuda.LogicError, match="an illegal memory access"):
                stream.synchronize()
        device.free()

    assert found(body) == []


def test_registration_that_the_driver_refuses_gives_its_number() -> None:
    with Double() as double, pushed():
        slots = Slots(double, 1, 1)
        double.fail("cuMemHostRegister_v2", error="operation not supported")
        register = ctypes.CDLL("libcuda.so.1").cuMemHostRegister_v2
        register.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
        assert register(slots.address, slots.nbytes, 0) == 801


def test_models_fail_as_the_lanes_expect_them_to(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path)

    def body(cuda: Any, double: Double) -> None:
        double.fail("make", at=1)
        double.fail("enqueue", error="unspecified launch failure")
        stream, scratch, images, out = cuda.Stream(flags=1), *(cuda.mem_alloc(1 << 20) for _ in range(3))
        classifier, segmenter = make_models(double, bundle, 1)
        with classifier, segmenter:
            runner = classifier.make(stream.handle, 1, int(scratch))
            with pytest.raises(MachineError, match="out of memory"):
                segmenter.make(stream.handle, 1, int(scratch))
            with pytest.raises(MachineError, match="unspecified launch failure"):
                runner.enqueue({"images": int(images), "tumor_probability": int(out)})
            with pytest.raises(cuda.LaunchError):
                stream.synchronize()
            runner.close()
        for each in (scratch, images, out):
            each.free()

    assert found(body) == []


def test_every_step_of_a_program_can_be_made_to_fail_in_turn() -> None:
    with Double() as double:
        Program(double).run()
    steps = list(double.steps)
    assert len(steps) > 60
    assert {"mem_alloc", "Event.record", "memcpy_dtoh_async", "cuMemHostRegister_v2"} <= set(steps)
    for k, step in enumerate(steps):
        with Double() as double:
            double.fail("*", at=k, error="unknown error")
            assert fails(Program(double))
            assert double.faults.fired == [step]


def fails(program: Program) -> bool:
    try:
        program.run()
    except Exception as error:
        return "unknown error" in str(error) or "999" in str(error)
    return False


def test_poisoned_memory_is_what_a_failed_copy_leaves() -> None:
    def body(cuda: Any, double: Double) -> None:
        double.fail_later("memcpy_dtoh_async")
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(SIZE)
        result = cuda.pagelocked_empty(SIZE, np.uint8)
        cuda.memset_d8_async(device, 3, SIZE, stream)
        cuda.memcpy_dtoh_async(result, device, stream)
        with pytest.raises(cuda.LogicError):
            stream.synchronize()
        assert (result == 0xFF).all()
        device.free()

    assert found(body) == []
