"""Times on the GPU by its own events. The lanes' events take no times, so these are others."""

from __future__ import annotations

from typing import Any, Final

from engine.gpu.device import Stream

_BLOCKING_SYNC: Final = 1
"""cuda.h: CU_EVENT_BLOCKING_SYNC; the thread sleeps while it waits, and times are taken."""


class Mark:
    """A moment on a stream. Made and dropped where its GPU's context is current."""

    def __init__(self, stream: Stream) -> None:
        import pycuda.driver as cuda

        self._event: Any = cuda.Event(_BLOCKING_SYNC)
        self._event.record(stream.raw)

    def wait(self) -> None:
        """Wait until all that was on the stream before it is done."""
        self._event.synchronize()

    def hold_up(self, stream: Stream) -> None:
        """What is put on that stream from now on runs after this moment."""
        stream.raw.wait_for_event(self._event)

    def until(self, later: Mark) -> float:
        """Seconds from here to there; both have happened. Not below 0."""
        return max(0.0, float(self._event.time_till(later._event)) / 1e3)
