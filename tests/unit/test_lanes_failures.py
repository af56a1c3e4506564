"""Lanes whose GPU fails, at every step: no slice lost, none twice, no deadlock, nothing left behind."""

from __future__ import annotations

import pytest

from engine.bundle import Bundle
from engine.cascade import Scores
from engine.errors import MachineError
from tests.double import SCHEDULES, Double
from tests.lanes import Block, Ran, assert_block, cut, host_scores, run_lanes
from tests.tinybundle import make_tiny_bundle, tiny_slices

BATCH = 2
STEPS = 63
"""Calls that a run of `blocks` by one lane makes, as `test_the_count_is_right` sees to."""
PASSING = "out of memory"
STICKY = "unspecified launch failure"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    return cut(tiny_slices(3 * BATCH - 1), BATCH)


@pytest.fixture(scope="module")
def expected(bundle: Bundle, blocks: list[Block]) -> list[Scores]:
    return host_scores(bundle, blocks)


def run(double: Double, bundle: Bundle, blocks: list[Block], lanes: int = 1) -> Ran | None:
    """The run, None where it did not come to its first block."""
    try:
        return run_lanes(
            double, bundle, blocks, batch=BATCH, lanes=lanes, together=True, ring_blocks=len(blocks)
        )
    except MachineError:
        return None


def check(ran: Ran | None, expected: list[Scores], *, failed: bool) -> None:
    """What is told as scored is scored right and once; where anything is missing, the reason is told."""
    if ran is None:
        assert failed
        return
    assert len(set(ran.scored)) == len(ran.scored)
    assert len(set(ran.copied)) == len(ran.copied)
    assert set(ran.scored) <= set(ran.copied)
    for place in ran.scored:
        assert_block(ran.results[place], expected[place])
    if len(ran.scored) < len(expected):
        assert isinstance(ran.error, MachineError)
        assert failed
    else:
        assert ran.error is None


def test_the_count_is_right(bundle: Bundle, blocks: list[Block], expected: list[Scores]) -> None:
    with Double() as double:
        check(run(double, bundle, blocks), expected, failed=False)
    assert len(double.steps) == STEPS


@pytest.mark.parametrize("error", [PASSING, STICKY])
@pytest.mark.parametrize("at", range(STEPS))
def test_a_call_that_fails(
    at: int, error: str, bundle: Bundle, blocks: list[Block], expected: list[Scores]
) -> None:
    with Double() as double:
        double.fail("*", at=at, error=error)
        check(run(double, bundle, blocks), expected, failed=bool(double.faults.fired))
        assert double.faults.fired


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("at", range(0, 120, 9))
def test_a_call_that_fails_one_lane_of_three(
    at: int, schedule: str, bundle: Bundle, blocks: list[Block], expected: list[Scores]
) -> None:
    with Double(schedule) as double:
        double.fail("*", at=at)
        check(run(double, bundle, blocks, lanes=3), expected, failed=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("at", range(0, 30, 3))
def test_an_operation_that_fails_when_it_runs(
    at: int, schedule: str, bundle: Bundle, blocks: list[Block], expected: list[Scores]
) -> None:
    with Double(schedule) as double:
        double.fail_later("*", at=at)
        ran = run(double, bundle, blocks)
        assert double.faults.fired
        check(ran, expected, failed=True)


def test_a_fault_is_told_in_one_line_with_what_to_do(bundle: Bundle, blocks: list[Block]) -> None:
    with Double() as double:
        double.fail_later("memcpy_htod_async", at=1)
        ran = run(double, bundle, blocks)
        assert ran is not None
        assert str(ran.error) == (
            "the GPU fails (cuEventSynchronize failed: an illegal memory access was encountered): see "
            "nvidia-smi and dmesg, then run the same command to go on"
        )


@pytest.mark.parametrize(("error", "told"), [(STICKY, "the GPU fails ("), (PASSING, "the double's enqueue")])
@pytest.mark.parametrize("at", range(2, 6))
def test_the_gpu_is_blamed_for_what_it_did(
    at: int, error: str, told: str, bundle: Bundle, blocks: list[Block]
) -> None:
    """A runtime that is given work for a GPU that has failed tells of a failure of its own."""
    with Double() as double:
        double.fail("enqueue", at=at, error=error)
        ran = run(double, bundle, blocks)
        assert ran is not None
        assert str(ran.error).startswith(told)
