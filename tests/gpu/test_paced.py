"""The paced runner's kernel on a real GPU: it holds as long as it is told, and it holds all of the chip."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="needs the gpu extra")

from benchmarks.gpu.clock import Mark
from benchmarks.gpu.spin import Spin
from engine.gpu.device import open_device
from tests.gpu.test_device_runners import gpu  # noqa: F401 - a fixture

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

TOLERANCE = 0.05
LAUNCH = 100e-6
"""Seconds that a launch may add."""


@pytest.mark.parametrize("seconds", [0.5e-3, 2e-3, 10e-3])
def test_it_holds_its_stream_for_as_long_as_it_is_told(seconds: float) -> None:
    with open_device(0) as device:
        stream, spin = device.stream(), Spin()
        spin.hold(stream.handle, seconds)
        begun = Mark(stream)
        for _ in range(10):
            spin.hold(stream.handle, seconds)
        ended = Mark(stream)
        ended.wait()
        spent = begun.until(ended)
        del begun, ended
        spin.unload()
    assert 10 * seconds <= spent * (1 + TOLERANCE)
    assert spent <= 10 * (seconds * (1 + TOLERANCE) + LAUNCH)


def test_two_streams_take_turns() -> None:
    with open_device(0) as device:
        first, second, spin = device.stream(), device.stream(), Spin()
        spin.hold(first.handle, 1e-3)
        first.wait()
        begun = Mark(first)
        begun.hold_up(second)
        for stream in (first, second):
            for _ in range(5):
                spin.hold(stream.handle, 4e-3)
        ends = [Mark(first), Mark(second)]
        for end in ends:
            end.wait()
        spent = max(begun.until(end) for end in ends)
        del begun, ends, end
        spin.unload()
    assert spent * (1 + TOLERANCE) >= 10 * 4e-3
