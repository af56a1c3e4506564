"""Results read back: from tables, from the ledger of a run that has not ended, and what is refused."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from engine.errors import UsageError
from engine.ledger import Ledger, SliceRow
from engine.page.results import read_results
from tests.pages import Spot, run_json, spots, write_results

IDENTITY = {
    "backend": "openvino",
    "backend_version": "2026.4",
    "bundle": "cd" * 32,
    "gate": True,
    "mask_threshold": 0.5,
    "min_pixels": 4,
    "precision": ["bf16", "fp32"],
    "threshold": 0.25,
}


def write_ledger(out: Path, count: int) -> None:
    out.mkdir(exist_ok=True)
    with Ledger.open(out / "run.sqlite", IDENTITY, fresh=False) as ledger:
        ledger.commit(
            [
                SliceRow(b"%03d" % n, 0, "v", f"v/{n}.tif", "ok", 1, 1, tumor_probability=0.5, has_mask=0)
                for n in range(count - 1)
            ]
            + [SliceRow(b"z", 0, "v", "v/z.tif", "quarantined", 1, 1, stage="read", code="io", message="no")]
        )


def test_tables_give_every_slice_with_what_is_known_of_it(tmp_path: Path) -> None:
    out = write_results(
        tmp_path, [*spots(6), Spot("data/p9", "bad.tif", None, code="truncated", message="ends early")]
    )
    results = read_results(out)
    assert [each.image_path for each in results.slices][:2] == ["data/p0/s_0.tif", "data/p0/s_1.tif"]
    first, second, *_, last = results.slices
    assert (first.has_mask, first.pixels, first.mask_path) == (True, 400, "masks/0_mask.png")
    assert first.probability == 0.97
    assert (second.has_mask, second.pixels, second.mask_path) == (False, 0, "")
    assert last.quarantined
    assert (last.stage, last.code, last.message) == ("decode", "truncated", "ends early")
    assert results.run is not None
    assert results.run.bundle.name == "tiny"
    assert results.notes == ()


def test_tables_stand_by_themselves_where_only_they_were_copied(tmp_path: Path) -> None:
    out = write_results(tmp_path, spots(3))
    (out / "run.json").unlink()
    (out / "errors.csv").unlink()
    results = read_results(out)
    assert len(results.slices) == 3
    assert results.run is None


def test_a_run_that_has_not_ended_is_read_from_its_ledger_and_said_so(tmp_path: Path) -> None:
    write_ledger(tmp_path / "out", 5)
    results = read_results(tmp_path / "out")
    assert [each.quarantined for each in results.slices] == [False] * 4 + [True]
    assert results.slices[-1].code == "io"
    assert "has not finished" in results.notes[0]
    assert results.run is not None
    assert (results.run.finished, results.run.runtime) == (False, "openvino")
    assert results.run.precision == {"classifier": "bf16", "segmenter": "fp32"}
    assert results.run.operating_point.gate_threshold == 0.25


def test_a_continuation_that_is_under_way_is_read_from_its_ledger(tmp_path: Path) -> None:
    out = write_results(tmp_path, spots(3))
    write_ledger(out, 5)
    results = read_results(out)
    assert len(results.slices) == 5
    assert results.run is not None
    assert not results.run.finished
    assert "has not finished" in results.notes[0]


def test_the_tables_are_read_where_the_ledger_has_no_more(tmp_path: Path) -> None:
    out = write_results(tmp_path, spots(6))
    write_ledger(out, 6)
    assert read_results(out).slices[0].image_path == "data/p0/s_0.tif"


def test_a_run_that_was_stopped_says_so(tmp_path: Path) -> None:
    out = write_results(tmp_path, spots(3))
    (out / "run.json").write_text(json.dumps({**run_json(3), "finished": False}))
    assert "has not finished" in read_results(out).notes[0]


def test_tables_of_an_older_version_are_read_whatever_its_ledger_is(tmp_path: Path) -> None:
    out = write_results(tmp_path, spots(3))
    write_ledger(out, 5)
    with sqlite3.connect(out / "run.sqlite") as connection:
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    assert len(read_results(out).slices) == 3


def test_millilitres_are_known_of_volumes_that_tell_their_spacing(tmp_path: Path) -> None:
    out = write_results(tmp_path, spots(3))
    assert read_results(out).millilitres == {}
    (out / "volumes.csv").write_text("volume,voxels,ml\ndata/p0,400,1.25\ndata/p1,0,\n")
    assert read_results(out).millilitres == {"data/p0": 1.25}


def test_a_run_json_of_another_form_costs_what_it_tells_only(tmp_path: Path) -> None:
    out = write_results(tmp_path, spots(3))
    (out / "run.json").write_text('{"finished": "perhaps"}')
    results = read_results(out)
    assert results.run is None
    assert "run.json cannot be read" in results.notes[-1]


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (lambda out: (out / "results.csv").write_text("a,b\n1,2\n"), "has no column volume, image_path"),
        (lambda out: (out / "results.csv").write_text((out / "results.csv").read_text()[:-40]), "is damaged"),
        (lambda out: (out / "results.csv").write_bytes(b"\xff\xfe" * 99), "is damaged"),
        (lambda out: (out / "results.csv").unlink(), "neither results.csv nor run.sqlite"),
        (lambda out: (out / "run.sqlite").write_bytes(b"no database" * 99) and (out / "results.csv").unlink(),
         "(options of `tumorscan score`)"),
    ],
)  # fmt: skip
def test_what_is_no_result_of_a_run_is_refused_in_one_line(tmp_path: Path, breaks, said: str) -> None:
    out = write_results(tmp_path, spots(3))
    breaks(out)
    with pytest.raises(UsageError) as refused:
        read_results(out)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_ledger_of_another_version_without_tables_is_refused(tmp_path: Path) -> None:
    write_ledger(tmp_path / "out", 3)
    with sqlite3.connect(tmp_path / "out" / "run.sqlite") as connection:
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with pytest.raises(UsageError, match="ledger format 1"):
        read_results(tmp_path / "out")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, said in (("missing", "no such folder"), ("file", "is a file")):
        with pytest.raises(UsageError, match=said):
            read_results(tmp_path / name)


def test_a_run_that_came_to_no_slice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    Ledger.open(tmp_path / "out" / "run.sqlite", IDENTITY, fresh=False).close()
    with pytest.raises(UsageError, match="nothing was scored"):
        read_results(tmp_path / "out")
