"""The device: streams as queues, operations that run when the schedule lets them, events, and what is broken.

An operation's clock is settled when it is enqueued (all that its thread, its stream and the events it waits
for knew), so a race is seen whether or not the schedule makes it happen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.double.faults import ILLEGAL_ADDRESS, Code, CudaFailure, Faults
from tests.double.findings import Findings
from tests.double.hosts import Clock, Host, join, new_actor
from tests.double.memory import Memory, Reach
from tests.double.schedules import Schedule


@dataclass(slots=True, eq=False)
class Op:
    """One operation on a stream. `needs` are those of other streams that it waits for."""

    name: str
    queue: Queue
    work: Callable[[], None] | None
    reaches: Sequence[Reach] = ()
    needs: tuple[Op, ...] = ()
    fails: Code | None = None
    done: bool = False
    polls: int = 0


@dataclass(slots=True, eq=False)
class Queue:
    """One stream."""

    handle: int
    actor: int = field(default_factory=new_actor)
    clock: Clock = field(default_factory=dict)
    pending: deque[Op] = field(default_factory=deque)
    last: Op | None = None

    def __str__(self) -> str:
        return f"stream {self.handle:#x}"


@dataclass(slots=True, eq=False)
class Mark:
    """What an event was last recorded as."""

    op: Op
    clock: Clock


class Device:
    """All streams, and the error that the context is in once an operation has failed."""

    def __init__(self, memory: Memory, findings: Findings, faults: Faults, schedule: Schedule) -> None:
        self.queues: dict[int, Queue] = {}
        self.broken: Code | None = None
        self.ran = 0
        self._memory = memory
        self._findings = findings
        self._faults = faults
        self._schedule = schedule
        self._next_handle = 0x5700_0000_0010

    def new_queue(self) -> Queue:
        """A stream with a handle that was never used before."""
        queue = self.queues[self._next_handle] = Queue(self._next_handle)
        self._next_handle += 0x10
        return queue

    def drop_queue(self, queue: Queue) -> None:
        """Destroy a stream. As in CUDA, what is on it still comes to its end."""
        if queue.last is not None and not self.broken:
            self._advance(queue.last)
        del self.queues[queue.handle]

    def enqueue(
        self,
        host: Host,
        queue: Queue,
        name: str,
        reaches: Sequence[Reach] = (),
        work: Callable[[], None] | None = None,
        wait_for: Mark | None = None,
    ) -> Op:
        """Put an operation on a stream; what it touches is compared with all before it at once."""
        join(queue.clock, host.clock)
        if wait_for is not None:
            join(queue.clock, wait_for.clock)
        queue.clock[queue.actor] = queue.clock.get(queue.actor, 0) + 1
        needs = () if wait_for is None or wait_for.op.queue is queue else (wait_for.op,)
        op = Op(name, queue, work, reaches, needs, self._faults.enqueue(name))
        for reach in reaches:
            self._memory.touch(reach, queue.clock, queue.actor, op, f"{name} on {queue}")
        host.clock[host.actor] += 1
        queue.pending.append(op)
        queue.last = op
        self._schedule.enqueued(self, op)
        return op

    def record(self, host: Host, queue: Queue) -> Mark:
        """An event's state as of now on that stream."""
        op = self.enqueue(host, queue, "Event.record")
        return Mark(op, dict(queue.clock))

    def finish(self, op: Op) -> None:
        """Wait for an operation as a host thread does; raises what the device is in by then."""
        self._schedule.forcing(self, op)
        self.force(op)
        self.check()

    def poll(self, op: Op) -> bool:
        """Whether an operation is done."""
        if not op.done and not self.broken:
            self._schedule.polled(self, op)
        self.check()
        return op.done

    def check(self) -> None:
        """Raise the sticky error: from an operation's failure on every call gives it."""
        if self.broken is not None:
            raise CudaFailure(self.broken)

    def force(self, op: Op) -> None:
        """Run what it takes to have this operation done, and nothing else."""
        if not self.broken:
            self._advance(op)

    def run_one(self, queue: Queue) -> bool:
        """Run a stream's next operation if nothing holds it up."""
        if self.broken or not queue.pending or not all(need.done for need in queue.pending[0].needs):
            return False
        self._run(queue.pending.popleft())
        return True

    def _advance(self, op: Op) -> None:
        wanted = [op]
        while wanted and not self.broken:
            queue = wanted[-1].queue
            if wanted[-1].done:
                wanted.pop()
            elif missing := [need for need in queue.pending[0].needs if not need.done]:
                wanted.append(missing[0])
            else:
                self._run(queue.pending.popleft())

    def _run(self, op: Op) -> None:
        op.done = True
        self.ran += 1
        if op.fails is not None:
            self.broken = op.fails
            return
        freed = [reach.block for reach in op.reaches if reach.block.freed]
        if freed:
            text = f"{op.name} on {op.queue} ran on {freed[0].name}, by then {freed[0].freed}"
            self._findings.add("address", text)
            self.broken = ILLEGAL_ADDRESS
        elif op.work is not None:
            op.work()
