"""The seeded cases that run with every test run: each kind of fault once, and a few of them twice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.faults.cases import Case, Report, draw, run_case
from tests.faults.kinds import kinds
from tests.faults.scene import Base

SEED = 1
CASES = 40
AT_ONCE = 2


@pytest.fixture(scope="module")
def played(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[Case, Future[Report]]]:
    """The cases that were asked for, played beside each other."""
    folder = tmp_path_factory.mktemp("faults")
    base = Base.make(folder / "base")
    wanted = [
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_the_same_command_makes_up_for_it
    ]
    pool = ThreadPoolExecutor(AT_ONCE)
    yield {case: pool.submit(run_case, case, base, folder / f"case-{case.number}") for case in wanted}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(
    "case", draw(CASES, SEED, list(kinds())), ids=lambda case: f"{case.number}-{case.kind}"
)
def test_the_same_command_makes_up_for_it(played: dict[Case, Future[Report]], case: Case) -> None:
    report = played[case].result()
    if report.verdict == "skipped":
        pytest.skip(report.why)
    assert report.verdict == "held", f"{report.what}: {report.why}"


def test_every_kind_is_among_them() -> None:
    assert {case.kind for case in draw(CASES, SEED, list(kinds()))} == set(kinds())
