"""One case: a fault, the same command again until it is done, and what is left compared byte for byte."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from tests.faults.kinds import Kind, Struck, kinds
from tests.faults.scene import FINISHED, Base, Left, Scene

IDLE_SHARE = 0.25
"""Of the cases in which the finished run is called once more."""
OUTPUTS = {"results.csv", "errors.csv", "volumes.csv", "run.json", "run.sqlite", "masks"}

Verdict = Literal["held", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Case:
    """The `number`th of the cases of one `seed`; what happens in it follows from these three."""

    number: int
    seed: int
    kind: str

    def chance(self) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}/{self.kind}")


@dataclass(slots=True)
class Report:
    """What became of a case: `runs` are the exit status and seconds of every command.

    `missed`: the fault came too late to meet anything, and the case says nothing of it.
    """

    case: Case
    verdict: Verdict
    what: str = ""
    why: str = ""
    seconds: float = 0.0
    missed: bool = False
    runs: list[tuple[int | None, float]] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        fields = asdict(self)
        return {**fields.pop("case"), **fields}


def draw(count: int, seed: int, names: list[str]) -> list[Case]:
    """`count` cases, their kinds in turn and each time in another order."""
    chance = random.Random(seed)
    order: list[str] = []
    while len(order) < count:
        order += chance.sample(names, len(names))
    return [Case(number, seed, name) for number, name in enumerate(order[:count])]


def run_case(case: Case, base: Base, folder: Path, *, keep: bool = False) -> Report:
    """Play one case in `folder`, which is deleted afterwards unless it failed (or with `keep`)."""
    kind = kinds()[case.kind]
    if why := kind.needs():
        return Report(case, "skipped", why=why)
    report = Report(case, "held")
    begun = time.monotonic()
    scene = Scene(base, folder, case.chance())
    try:
        _play(kind, scene, case, report)
    except Exception as error:
        report.verdict = "failed"
        report.why = f"{type(error).__name__}: {error}"
        for run in scene.runs:
            run.process.kill()
            run.process.wait()
    finally:
        scene.undo.close()
    report.seconds = time.monotonic() - begun
    report.runs = [(run.process.poll(), round(run.seconds, 2)) for run in scene.runs]
    if report.verdict == "held" and not keep:
        shutil.rmtree(folder)
    return report


def _play(kind: Kind, scene: Scene, case: Case, report: Report) -> None:
    struck = kind.strike(scene, case.chance())
    report.what, report.missed = struck.what, struck.missed
    _continue(scene, struck)
    expected = _undisturbed(scene) if struck.data_changed else scene.base.left
    difference = expected.difference(Left.of(scene.out))
    assert not difference, difference
    names = {path.name for path in scene.out.iterdir()} - {"lost+found"}
    assert names == OUTPUTS, f"the output folder holds {sorted(names ^ OUTPUTS)}"
    _expect_whole_records(scene.out, expected)


def _continue(scene: Scene, struck: Struck) -> None:
    """Give the same command, as it was told to say; now and then once more, when nothing is left to do."""
    scene.expect(scene.start(*struck.then), FINISHED)
    if scene.chance.random() < IDLE_SHARE:
        run = scene.start()
        scene.expect(run, FINISHED)
        assert "nothing new" in run.said, run.said


def _undisturbed(scene: Scene) -> Left:
    """What the command leaves of the input as it is now, in another output folder."""
    other = Scene(scene.base, scene.folder / "other", random.Random(0))
    (other.folder / "data").unlink()
    (other.folder / "data").symlink_to(scene.folder / "data")
    other.expect(other.start(), FINISHED)
    return Left.of(other.out)


def _expect_whole_records(out: Path, left: Left) -> None:
    """The ledger is sound and run.json tells of the same slices as the table."""
    slices = len(left.results.splitlines()) - 1
    with closing(sqlite3.connect(f"file:{out / 'run.sqlite'}?mode=ro", uri=True)) as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)], "the ledger is damaged"
        rows = ledger.execute("SELECT count(*) FROM slices").fetchone()[0]
    assert rows == slices, f"{rows} rows in the ledger, {slices} in the table"
    report = json.loads((out / "run.json").read_text())
    assert report["finished"], "run.json says the run is not finished"
    told = (report["counts"]["slices"], report["counts"]["has_mask"])
    found = (slices, sum(name.startswith("masks/") for name in left.files))
    assert told == found, f"run.json tells of {told} slices and masks, {found} are there"
