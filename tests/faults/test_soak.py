"""The soak in small; forty-five minutes by hand (python -m tests.faults.soak)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.soak import KINDS, Soak, prepare
from tests.faults.soak_check import expect_nothing_lost
from tests.faults.soak_report import draw, flat, rates_of, summary

HEADER = "volume,image_path,slice,status,tumor_probability,has_mask,mask_path\n"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_minutes_of_faults_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.soak.MINUTE", 12.0)  # a fault every twelve seconds, for two minutes
    soak = Soak(tmp_path, 10, 1, prepare(tmp_path, 1, None))
    soak.play()
    seen = summary(soak)
    assert len(soak.faults) >= 6
    assert flat(seen["thirds"]) == ""
    draw(soak, tmp_path / "soak.png")


def test_rates_are_told_over_seconds_and_not_across_a_restart() -> None:
    counts = [(0.0, 0), (1.0, 10), (6.0, 60), (7.0, 0), (12.0, 100)]
    assert rates_of(counts) == [(6.0, 10.0), (12.0, 20.0)]


def test_growth_is_told() -> None:
    calm = {"memory_mib": 400.0, "open_files": 60.0, "slices_per_second": 30.0}
    assert flat([calm, calm, calm]) == ""
    assert "memory grew" in flat([calm, calm, calm | {"memory_mib": 460.0}])
    assert "open files grew" in flat([calm, calm, calm | {"open_files": 70.0}])


@pytest.mark.parametrize("harm", ["lost", "twice", "another row", "quarantined", "another mask"])
def test_a_lost_row_is_noticed(tmp_path: Path, harm: str) -> None:
    listed = [f"data/loop_{loop}/p/s.tif" for loop in range(3)] + ["data/loop_0/bad/empty.tif"]
    rows = [f"x,{path},0,ok,0.9,1,masks/{number}.png" for number, path in enumerate(listed[:3])]
    rows.append(f"x,{listed[3]},0,quarantined,,,")
    (tmp_path / "out" / "masks").mkdir(parents=True)
    for number in range(3):
        mask = b"other" if harm == "another mask" and number == 2 else b"mask"
        (tmp_path / "out" / "masks" / f"{number}.png").write_bytes(mask)
    changed = {
        "lost": rows[1:],
        "twice": [*rows, rows[0]],
        "another row": [rows[0], rows[1].replace("0.9", "0.8"), *rows[2:]],
        "quarantined": [*(row.replace("ok,0.9,1", "quarantined,,") for row in rows[:3]), rows[3]],
        "another mask": rows,
    }
    (tmp_path / "out" / "results.csv").write_text(HEADER + "\n".join(rows) + "\n")
    if harm != "another mask":
        expect_nothing_lost(tmp_path, listed)
    (tmp_path / "out" / "results.csv").write_text(HEADER + "\n".join(changed[harm]) + "\n")
    with pytest.raises(AssertionError):
        expect_nothing_lost(tmp_path, listed)


def test_the_faults_of_a_soak_are_those_of_the_harness() -> None:
    from tests.faults.kinds import kinds

    assert set(KINDS) - {"paused"} <= set(kinds())
