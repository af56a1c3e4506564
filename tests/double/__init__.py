"""A double of a GPU that finds races whatever the schedule: pycuda, TensorRT's run time, libcuda, threads.

    from tests.double import SCHEDULES, Double, Slots, make_models

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_lanes_score_a_run(schedule: str, bundle: Bundle) -> None:
        with Double(schedule) as double:
            classifier, segmenter = make_models(double, bundle, batch=4)
            slots = Slots(double, blocks=3, block_size=4)
            ...  # the lanes, unchanged: they import pycuda.driver and load libcuda.so.1

`with Double(...)` puts modules `pycuda`, `pycuda.driver` and `tensorrt` in the place of any real ones,
answers `ctypes.CDLL("libcuda.so.1")`, and watches the `threading` and `queue` objects that are made inside.
At its end it raises `DoubleError` (an AssertionError) with all that it found; an exception that leaves it
carries the findings as notes. What was made in it is dead afterwards. Lanes import these modules inside
functions, and make locks as `threading.Lock()` or `queue.Queue()`, not by names imported from there.

What it finds (`Finding.kind`)
    race      Two operations, or one and a host thread, touch the same bytes, one of them writes, and nothing
              orders them: not their stream, nor an event waited for, nor a synchronise, nor the threads'
              locks, queues, starts and joins. Freeing is a write to all of a buffer; an execution context in
              flight twice, and cuMemHostUnregister before the copies are done, are found alike. Orders are
              settled at the calls, so the schedule does not matter.
    address   Out of bounds, after free, an asynchronous copy with pageable memory. The call fails as well.
    refusal   The null stream; a `Stream` with flags other than 1; an `Event` with flags other than 3 (it
              blocks and does not time); inside `with double.steady():` whatever allocates, frees, registers
              or waits for the whole device; addresses for a runtime that are not multiples of 256; a model
              left with runners open; the ring's memory unmapped while it is registered.
    context   A call without a current context; a context left pushed at a thread's end (pycuda aborts the
              process there); something let go in a thread where another Context object is current than it
              was made under (pycuda leaks it: `retain_primary_context()` gives a new object each time, so
              retain once and push that object in every thread).
    leak      Allocations, pagelocked memory, streams, events, contexts, registered ranges, runners,
              execution contexts, engines that are left. pycuda gives streams, events and pagelocked memory
              back when the last reference goes, so the lanes have to let go of theirs, in a thread where
              their context is current, and the test of its lanes before the block ends.
`double.found()` hands out what was found so far and forgets it: for tests that expect findings.

Host accesses
    `pagelocked_empty` gives arrays that tell by themselves when numpy reads or writes them: indexing,
    ufuncs, functions, methods; not cv2 and memoryview. Ring memory is told of by `Slots`, or by
    `with watch_ring(double, ring):` for a real `engine.ring.Ring`: a block is written until it is completed
    and again from its release on. Else say it: `double.host_read(array)`, `double.host_write(array)`, after
    `double.watch(array, "name")` where nothing has registered that memory yet. Threads that synchronise by
    ways it cannot see (pipes, eventfds): `token = double.publish()` in the one that goes before,
    `double.receive(token)` in the other.

Schedules: "laziest" runs only what a synchronisation forces (an event polled comes true at the third query);
"eager" runs all at once; "others first" holds each stream back as long as any other can go on; "random N"
runs a few operations of any streams at every call and makes threads give way. Data are read and written when
an operation runs, addresses and shapes are taken when it is enqueued; fresh and freed memory is all 0xFF.

Failures
    double.fail("mem_alloc", at=2)                  the third call raises pycuda's MemoryError
    double.fail("*", at=k)                          the k-th call of any kind, counted from 0
    double.fail("Event.record", error="unknown error")
    double.fail("cuMemHostRegister_v2", error="operation not supported")    the status 801
    double.fail_later("enqueue", at=1)              its operation fails when it runs; all later calls raise
`error` is one of `CODES`; sticky ones break the context for good. `double.steps` lists the names of all calls
so far: run once, then once for each k in range(len(steps)). Push, pop and what gives something back never
fail. `double.faults.fired` names what has struck. `Double(memory=BYTES)` is a smaller GPU; `double.leaks()`
counts what is held now.

Models: `make_models(double, bundle, batch)` gives the two as `DeviceModel`s that compute the FP16 graphs by
ONNX Runtime on the CPU (name "double", steps "make" and "enqueue", 1 MiB of workspace that each execution
writes). `plan(bundle_graph(bundle, model), batch)` gives bytes that the double's `tensorrt` deserialises, for
engine.runners.tensorrt (steps "execute_async_v3" and so on).

Files, from the bottom: hosts (threads, clocks), findings, memory (blocks, races), faults, schedules, device
(streams, operations), threads, watched (arrays), double (all of it together); contexts, streams, transfers,
driver (pycuda), libcuda, compute, models, tensorrt, slots; programs (small ones that are right, and the same
with one thing wrong: an example too), bindings (what the real ones look like).
"""

from __future__ import annotations

from tests.double.compute import bundle_graph, plan
from tests.double.double import Double
from tests.double.faults import CODES
from tests.double.findings import DoubleError, Finding
from tests.double.models import DoubleModel, make_models
from tests.double.schedules import SCHEDULES
from tests.double.slots import Slots, watch_ring

__all__ = [
    "CODES",
    "SCHEDULES",
    "Double",
    "DoubleError",
    "DoubleModel",
    "Finding",
    "Slots",
    "bundle_graph",
    "make_models",
    "plan",
    "watch_ring",
]
