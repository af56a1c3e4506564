"""Pagelocked arrays tell the double when the host touches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.double import Double
from tests.double.programs import found


def test_reads_of_pagelocked_arrays_are_seen_however_numpy_makes_them() -> None:
    def reads(look: Callable[[Any], Any]) -> list[str]:
        def body(cuda: Any, double: Double) -> None:
            stream, device = cuda.Stream(flags=1), cuda.mem_alloc(16)
            result = cuda.pagelocked_empty((4, 4), np.uint8)
            cuda.memcpy_dtoh_async(result, device, stream)
            look(result)
            stream.synchronize()
            device.free()

        return found(body)

    looks: list[Callable[[Any], Any]] = [
        lambda array: array[0, 0],
        lambda array: array[[0, 1]],
        lambda array: array[array.shape[0] - 1].tolist(),
        lambda array: array + 1,
        lambda array: array == 3,
        lambda array: np.add(1, array),
        lambda array: array.copy(),
        lambda array: np.array(array),
        lambda array: np.asarray(array[1:]),
        lambda array: np.stack([array[0], array[1]]),
        lambda array: array.astype(np.float32),
        lambda array: np.isfinite(array).all(),
        lambda array: np.unpackbits(array, axis=-1),
        lambda array: np.bitwise_count(array).sum(),
        lambda array: np.concatenate([array, array]),
        lambda array: np.copyto(np.empty((4, 4), np.uint8), array),
        lambda array: float(array[1:2, 1:2].sum()),
        lambda array: [row.sum() for row in array],
        lambda array: array.reshape(16)[3:5].tobytes(),
        lambda array: bool(array[0].any()),
        lambda array: array.__setitem__(0, 1),
        lambda array: array.fill(0),
    ]
    assert [reads(look) for look in looks] == [["race"]] * len(looks)


def test_views_of_pagelocked_arrays_read_nothing() -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(16)
        result = cuda.pagelocked_empty((4, 4), np.uint8)
        cuda.memcpy_dtoh_async(result, device, stream)
        view = result[1:3].reshape(-1).view(np.int8)
        assert (view.shape, len(result), result.nbytes, result.base is None) == ((8,), 4, 16, False)
        assert not double.findings.found
        stream.synchronize()
        assert view.tolist() == [-1] * 8
        device.free()

    assert found(body) == []


def test_freed_memory_is_poisoned_and_a_read_of_it_is_told_of() -> None:
    def body(cuda: Any, double: Double) -> None:
        result = cuda.pagelocked_empty(4, np.uint8)
        plain = result.view(np.ndarray)
        result[:] = 1
        result.base.free()
        assert plain.tolist() == [0xFF] * 4
        assert not double.findings.found
        assert result.max() == 0xFF

    assert found(body) == ["address"]
