"""pycuda's streams and events. Those that the lanes must not use are refused: see `Stream` and `Event`."""

from __future__ import annotations

from tests.double.contexts import Owned, calling
from tests.double.device import Mark, Queue
from tests.double.double import Double
from tests.double.faults import INVALID, CudaFailure
from tests.double.hosts import Moment, caller

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
BLOCKING_SYNC = 1  # CU_EVENT_BLOCKING_SYNC
DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING


class Stream(Owned):
    """pycuda.driver.Stream: one that waits for the null stream is refused."""

    _word = "streams"
    _double: Double

    def __init__(self, flags: int = 0) -> None:
        with calling(self._double, "Stream", "cuStreamCreate") as host:
            if flags != NON_BLOCKING:
                self._double.add("refusal", f"a stream that serialises with the null stream ({caller()})")
            super().__init__(self._double, host)
            self._queue: Queue = self._double.device.new_queue()

    @property
    def handle(self) -> int:
        return self._queue.handle

    def synchronize(self) -> None:
        with calling(self._double, "Stream.synchronize", "cuStreamSynchronize") as host:
            if self._queue.last is not None:
                self._double.device.finish(self._queue.last)
                host.receive(self._queue.clock)

    def is_done(self) -> bool:
        with calling(self._double, "Stream.is_done", "cuStreamQuery") as host:
            done = self._queue.last is None or self._double.device.poll(self._queue.last)
            if done:
                host.receive(self._queue.clock)
            return done

    def wait_for_event(self, evt: Event, /) -> None:
        with calling(self._double, "Stream.wait_for_event", "cuStreamWaitEvent") as host:
            if evt._mark is not None:
                self._double.device.enqueue(host, self._queue, "Stream.wait_for_event", wait_for=evt._mark)

    def _give_back(self, moment: Moment) -> None:
        self._double.device.drop_queue(self._queue)


class Event(Owned):
    """pycuda.driver.Event: one that spins or takes times is refused. One never recorded is done."""

    _word = "events"
    _double: Double

    def __init__(self, flags: int = 0) -> None:
        with calling(self._double, "Event", "cuEventCreate") as host:
            if not (flags & BLOCKING_SYNC and flags & DISABLE_TIMING):
                self._double.add("refusal", f"an event that spins or takes times, flags {flags} ({caller()})")
            super().__init__(self._double, host)
            self._mark: Mark | None = None

    def record(self, stream: Stream | None = None) -> Event:
        with calling(self._double, "Event.record", "cuEventRecord") as host:
            self._mark = self._double.device.record(host, queue_of(self._double, stream))
        return self

    def synchronize(self) -> Event:
        with calling(self._double, "Event.synchronize", "cuEventSynchronize") as host:
            if self._mark is not None:
                self._double.device.finish(self._mark.op)
                host.receive(self._mark.clock)
        return self

    def query(self) -> bool:
        with calling(self._double, "Event.query", "cuEventQuery") as host:
            done = self._mark is None or self._double.device.poll(self._mark.op)
            if done and self._mark is not None:
                host.receive(self._mark.clock)
            return done


def queue_of(double: Double, stream: Stream | None) -> Queue:
    """The queue of a stream; the null stream is refused."""
    if stream is None:
        double.add("refusal", f"the null stream is used ({caller()})")
        raise CudaFailure(INVALID, "the double has no null stream")
    if not isinstance(stream, Stream):
        raise TypeError(f"No registered converter: {type(stream).__name__} is no pycuda::stream")
    return stream._queue
