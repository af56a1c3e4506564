"""The double sees how Python's threads wait for each other, and that they do not."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.double import Double, DoubleError, Slots
from tests.double.programs import found, pushed

Handover = tuple[Callable[[], object], Callable[[], object]]


def by_queue() -> Handover:
    items: queue.Queue[int] = queue.Queue()
    return lambda: items.put(1), items.get


def by_simple_queue() -> Handover:
    items: queue.SimpleQueue[int] = queue.SimpleQueue()
    return lambda: items.put(1), items.get


def by_event() -> Handover:
    event = threading.Event()
    return event.set, event.wait


def by_polled_event() -> Handover:
    event = threading.Event()

    def wait() -> None:
        while not event.is_set():
            pass

    return event.set, wait


def by_condition() -> Handover:
    condition, ready = threading.Condition(), []

    def give() -> None:
        with condition:
            ready.append(1)
            condition.notify_all()

    def take() -> None:
        with condition:
            condition.wait_for(lambda: ready)

    return give, take


def by_waiting_for_a_condition() -> Handover:
    condition, waiting = threading.Condition(), []

    def give() -> None:
        with condition:
            waiting.append(1)
            condition.wait(0.2)  # which is what lets the lock go

    def take() -> None:
        while not waiting:
            pass
        with condition:
            pass

    return give, take


def by_condition_over_a_lock() -> Handover:
    condition, ready = threading.Condition(threading.Lock()), []

    def give() -> None:
        with condition:
            ready.append(1)
            condition.notify()

    def take() -> None:
        with condition:
            while not ready:
                condition.wait(1)

    return give, take


def by_lock() -> Handover:
    lock = threading.Lock()
    lock.acquire()
    return lock.release, lock.acquire


def by_semaphore() -> Handover:
    semaphore = threading.Semaphore(0)
    return semaphore.release, semaphore.acquire


def by_barrier() -> Handover:
    barrier = threading.Barrier(2)
    return barrier.wait, barrier.wait


def by_token() -> Handover:
    untracked: list[Any] = []

    def give() -> None:
        untracked.append(CURRENT[-1].publish())

    def take() -> None:
        while not untracked:
            pass
        CURRENT[-1].receive(untracked[0])

    return give, take


def by_nothing() -> Handover:
    """Ordered in time, as by a flag that is polled, but by nothing that would order it on another day."""
    done: list[int] = []

    def wait() -> None:
        while not done:
            pass

    return lambda: done.append(1), wait


CURRENT: list[Double] = []


def hand_over(how: Callable[[], Handover]) -> None:
    """One thread writes a slot, another reads it after the handover."""
    with Double() as double:
        CURRENT[:] = [double]
        slots = Slots(double, 1, 1)
        give, take = how()

        def writer() -> None:
            slots.fill(0, np.zeros((1, 256, 256, 3), np.uint8))
            give()

        def reader() -> None:
            take()
            double.host_read(slots.memory[0])

        threads = [threading.Thread(target=writer), threading.Thread(target=reader)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "how",
    [
        by_queue,
        by_simple_queue,
        by_event,
        by_polled_event,
        by_condition,
        by_waiting_for_a_condition,
        by_condition_over_a_lock,
        by_lock,
        by_semaphore,
        by_barrier,
        by_token,
    ],
)
def test_what_a_thread_hands_over_is_ordered(how: Callable[[], Handover]) -> None:
    for _ in range(5):
        hand_over(how)


def test_what_is_ordered_by_chance_is_a_race() -> None:
    with pytest.raises(DoubleError, match="the slots' fill in thread Thread-"):
        hand_over(by_nothing)


def test_starting_and_joining_a_thread_orders_it() -> None:
    with Double() as double:
        slots = Slots(double, 1, 1)
        double.host_write(slots.memory)
        thread = threading.Thread(target=lambda: double.host_write(slots.memory))
        thread.start()
        thread.join()
        double.host_write(slots.memory)


def test_a_thread_that_is_not_joined_is_not_ordered() -> None:
    with Double() as double:
        slots = Slots(double, 1, 1)
        thread = threading.Thread(target=lambda: double.host_write(slots.memory))
        thread.start()
        double.host_write(slots.memory)
        thread.join()
        assert [finding.kind for finding in double.found()] == ["race"]


def test_pools_are_ordered_by_what_they_give_and_take() -> None:
    with Double() as double:
        slots = Slots(double, 4, 1)
        double.host_write(slots.memory)
        with ThreadPoolExecutor(2) as pool:
            tasks = [pool.submit(double.host_write, slots.memory[block]) for block in range(4)]
            for task in tasks:
                task.result()
            double.host_read(slots.memory)


def test_locks_made_in_the_double_work_on_after_it() -> None:
    with Double():
        lock, condition, event = threading.RLock(), threading.Condition(), threading.Event()
        items: queue.SimpleQueue[int] = queue.SimpleQueue()
    with lock, lock, condition:
        condition.notify_all()
    event.set()
    items.put(3)
    assert event.is_set()
    assert items.get_nowait() == 3
    with pytest.raises(queue.Empty):
        items.get(timeout=0.001)
    assert threading.Lock().__class__.__module__ == "_thread"


def test_a_stream_waited_for_by_one_thread_is_not_waited_for_by_another() -> None:
    def run(*, handed_over: bool) -> None:
        with Double() as double, pushed() as cuda:
            body(double, cuda, handed_over)

    def body(double: Double, cuda: Any, handed_over: bool) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(4)
        context = double.hosts.current().contexts[-1]
        result = cuda.pagelocked_empty(4, np.uint8)
        cuda.memcpy_dtoh_async(result, device, stream)
        waited: list[int] = []

        def waiter() -> None:
            context.push()
            try:
                stream.synchronize()
            finally:
                context.pop()
            waited.append(1)

        thread = threading.Thread(target=waiter)
        thread.start()
        while not waited:
            pass
        if handed_over:
            thread.join()
        assert result.sum() >= 0
        stream.synchronize()
        device.free()
        thread.join()

    run(handed_over=True)
    with pytest.raises(DoubleError, match="memcpy_dtoh_async"):
        run(handed_over=False)


def test_what_a_thread_does_after_it_recorded_an_event_is_not_behind_the_event() -> None:
    def body(cuda: Any, double: Double) -> None:
        first, second, event = cuda.Stream(flags=1), cuda.Stream(flags=1), cuda.Event(flags=3)
        device, source = cuda.mem_alloc(4), cuda.pagelocked_empty(4, np.uint8)
        context = double.hosts.current().contexts[-1]
        written: list[int] = []

        def copier() -> None:
            while not written:
                pass
            context.push()
            try:
                second.wait_for_event(event)
                cuda.memcpy_htod_async(device, source, second)
            finally:
                context.pop()

        thread = threading.Thread(target=copier)
        thread.start()
        event.record(first)
        source[:] = 1
        written.append(1)
        thread.join()
        second.synchronize()
        device.free()

    assert found(body) == ["race"]
