"""What the double refuses: addresses, sizes, kinds of memory, the null stream."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from tests.double import SCHEDULES, Double, Slots, make_models
from tests.double.programs import found, pushed, register, unregister
from tests.tinybundle import make_tiny_bundle


def test_a_copy_beyond_an_allocation_is_refused() -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(100)
        source = cuda.pagelocked_empty(101, np.uint8)
        with pytest.raises(cuda.LogicError, match="cuMemcpyHtoDAsync failed: invalid argument"):
            cuda.memcpy_htod_async(device, source, stream)
        with pytest.raises(cuda.LogicError):
            cuda.memset_d8_async(int(device) - 1, 0, 1, stream)
        with pytest.raises(cuda.LogicError):
            cuda.memset_d8_async(int(device) + 100, 0, 1, stream)
        device.free()

    assert found(body) == ["address"]


def test_two_allocations_never_touch_and_addresses_do_not_come_back() -> None:
    def body(cuda: Any, double: Double) -> None:
        addresses = []
        for _ in range(3):
            first, second = cuda.mem_alloc(1000), cuda.mem_alloc(1000)
            addresses += [int(first), int(second)]
            first.free()
            second.free()
        assert len(set(addresses)) == 6
        assert np.diff(sorted(addresses)).min() > 1 << 20
        assert all(address % 256 == 0 for address in addresses)

    assert found(body) == []


def test_use_after_free_is_refused() -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(100)
        address = int(device)
        device.free()
        with pytest.raises(cuda.LogicError):
            cuda.memset_d8_async(address, 0, 1, stream)
        with pytest.raises(cuda.LogicError, match="invalid resource handle"):
            device.free()

    assert found(body) == ["address"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fresh_memory_is_poisoned(schedule: str) -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(8)
        result = cuda.pagelocked_empty(2, np.float32)
        assert np.isnan(result).all()
        result.fill(0)
        cuda.memcpy_dtoh_async(result, device, stream)
        stream.synchronize()
        assert np.isnan(result).all()
        device.free()

    assert found(body, schedule) == []


def test_a_copy_with_pageable_memory_is_refused() -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(100)
        with pytest.raises(cuda.LogicError):
            cuda.memcpy_htod_async(device, np.zeros(100, np.uint8), stream)
        slots = Slots(double, 1, 1)
        with pytest.raises(cuda.LogicError):
            cuda.memcpy_htod_async(device, slots.memory[0, 0, 0, :30], stream)
        register(slots.memory)
        cuda.memcpy_htod_async(device, slots.memory[0, 0, 0, :30], stream)
        stream.synchronize()
        unregister(slots.memory)
        with pytest.raises(cuda.LogicError):
            cuda.memcpy_dtoh_async(slots.memory[0, 0, 0, :30], device, stream)
        device.free()

    assert found(body) == ["address"]


def test_arrays_must_be_contiguous_and_writable_and_numbers_plain() -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(100)
        array = cuda.pagelocked_empty((10, 10), np.uint8)
        with pytest.raises(ValueError, match="not contiguous"):
            cuda.memcpy_htod_async(device, array[:, :5], stream)
        locked = array.view()
        locked.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            cuda.memcpy_dtoh_async(locked, device, stream)
        for wrong in (np.int64(int(device)), float(int(device)), None):
            with pytest.raises(TypeError, match="ArgumentError"):
                cuda.memcpy_htod_async(wrong, array, stream)
        with pytest.raises(TypeError, match="ArgumentError"):
            cuda.memcpy_dtod_async(device, int(device) + 50, np.int64(3), stream)
        with pytest.raises(TypeError, match="no pycuda::stream"):
            cuda.memset_d8_async(device, 0, 1, stream.handle)
        with pytest.raises(OverflowError):
            cuda.memset_d8_async(device, 256, 1, stream)
        with pytest.raises(TypeError, match="ArgumentError"):
            cuda.pagelocked_empty((np.int64(3), 2), np.uint8)
        device.free()

    assert found(body) == []


def test_the_null_stream_and_streams_and_events_of_the_wrong_kind_are_refused() -> None:
    def body(cuda: Any, double: Double) -> None:
        device = cuda.mem_alloc(4)
        with pytest.raises(cuda.LogicError):
            cuda.memset_d8_async(device, 0, 4)
        with pytest.raises(cuda.LogicError):
            cuda.Event(flags=3).record()
        device.free()
        seen = [finding.text for finding in double.found()]
        assert [text.startswith("the null stream is used") for text in seen] == [True, True]
        cuda.Stream()
        cuda.Event()
        cuda.Event(flags=1)

    assert found(body) == ["refusal"]


def test_memory_is_as_large_as_told() -> None:
    with Double(memory=1000), pushed() as cuda:
        first = cuda.mem_alloc(600)
        assert cuda.mem_get_info() == (400, 1000)
        with pytest.raises(cuda.MemoryError, match="cuMemAlloc failed: out of memory"):
            cuda.mem_alloc(401)
        first.free()
        cuda.mem_alloc(1000).free()
        with pytest.raises(cuda.LogicError):
            cuda.mem_alloc(0)


def test_libcuda_answers_in_its_own_numbers() -> None:
    with Double() as double, pushed():
        library = ctypes.CDLL("libcuda.so.1")
        slots = Slots(double, 1, 1)
        at, size, flags = (
            ctypes.c_void_p(slots.address),
            ctypes.c_size_t(slots.nbytes),
            ctypes.c_uint(0),
        )
        assert library.cuMemHostUnregister(at) == 713
        assert library.cuMemHostRegister_v2(at, ctypes.c_size_t(0), flags) == 1
        assert library.cuMemHostRegister_v2(at, size, flags) == 0
        assert library.cuMemHostRegister_v2(at, size, flags) == 712
        assert library.cuMemHostUnregister(ctypes.c_void_p(slots.address + 1)) == 713
        # Without argtypes an address that is a plain int is cut to 32 bits on its way.
        assert library.cuMemHostUnregister(slots.address) == 713
        library.cuMemHostUnregister.argtypes = [ctypes.c_void_p]
        assert library.cuMemHostUnregister(slots.address) == 0


def test_the_double_is_what_the_driver_probe_finds() -> None:
    from engine.driver import probe_driver

    with Double(memory=5 << 30):
        driver = probe_driver()
    assert (driver.cuda, driver.gpus[0].compute_capability, driver.gpus[0].memory) == (
        (13, 0),
        (9, 0),
        5 << 30,
    )


def test_a_model_refuses_another_batch_and_is_not_left_with_runners_open(tmp_path: Any) -> None:
    from engine.errors import UsageError

    bundle = make_tiny_bundle(tmp_path)

    def body(cuda: Any, double: Double) -> None:
        stream, scratch = cuda.Stream(flags=1), cuda.mem_alloc(1 << 20)
        classifier, _ = make_models(double, bundle, 2)
        with classifier:
            with pytest.raises(UsageError):
                classifier.make(stream.handle, 3, int(scratch))
            runner = classifier.make(stream.handle, 2, int(scratch))
        runner.close()
        scratch.free()

    assert found(body) == ["refusal"]
