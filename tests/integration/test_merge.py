"""Shards scored apart and put together are, byte for byte, the run that was never divided."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import TumorscanError, UsageError
from engine.merge import Merged, Options, linking, merge
from engine.outputs.components import Rule
from engine.scoring import Options as Scoring
from engine.scoring import Outcome, score
from engine.sources.shards import Shard
from tests.runs import files_below, results, table, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle

COUNT = 3
TABLES = ("results.csv", "errors.csv", "volumes.csv")


def run(out: str | Path, shard: str | None = None, data: str = "data", **options: Any) -> Outcome:
    words: dict[str, Any] = {"bundle": Path("bundle"), "backend": "onnxruntime", "workers": 1, **options}
    part = None if shard is None else Shard.parse(shard)
    return score(Scoring((data,), Path(out), shard=part, **words))


def put_together(*shards: str | Path, out: str = "merged", **options: Any) -> Merged:
    return merge(Options(tuple(map(Path, shards)), Path(out), **options), lambda done, total: None)


def refused(*shards: str | Path, **options: Any) -> str:
    with pytest.raises(TumorscanError) as error:
        put_together(*shards, **options)
    assert not Path("merged/run.json").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_as_whole(out: str, whole: str = "whole") -> None:
    for name in TABLES:
        assert (Path(out) / name).read_bytes() == (Path(whole) / name).read_bytes()
    assert files_below(Path(out)) == files_below(Path(whole))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices, one of them bad, some directly in the input; scored whole, and as three shards."""
    folder = tmp_path_factory.mktemp("shards")
    paths = write_slices(folder / "data", 40, patients=9)
    for number in range(6):
        shutil.copy(paths[number], folder / "data" / f"loose{number}.tif")
    (folder / "data" / "p3" / "bad.png").write_bytes(b"\x89PNG no")
    make_tiny_bundle(folder / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("whole")
        for number in range(1, COUNT + 1):
            run(f"kept/{number}", f"{number}/{COUNT}")
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same with shards of one's own, below s/."""
    monkeypatch.chdir(home)
    shutil.copytree(home / "kept", home / "s")
    yield home
    for entry in home.iterdir():
        if entry.name not in ("data", "bundle", "whole", "kept"):
            shutil.rmtree(entry)


SHARDS = ("s/1", "s/2", "s/3")


# What comes of it


def test_merged_shards_are_the_undivided_run(here: Path) -> None:
    merged = put_together("s/2", "s/3", "s/1")
    assert_as_whole("merged")
    assert not merged.nothing_new
    told, whole = (json.loads((Path(out) / "run.json").read_text()) for out in ("merged", "whole"))
    assert told["counts"] == whole["counts"]
    assert told["finished"]
    assert told["shard"] is None
    shards = told["merged"]["shards"]
    assert [each["shard"] for each in shards] == ["1/3", "2/3", "3/3"]
    assert sum(each["slices"] for each in shards) == told["counts"]["slices"] == 47
    summed = told["merged"]["slices_per_second_summed"]
    assert summed == pytest.approx(sum(each["slices_per_second"] for each in shards))
    assert told["timings"]["seconds_total"] == pytest.approx(sum(each["seconds"] for each in shards))
    assert told["slices_per_second"] < summed


def test_masks_are_the_shards_files_under_another_name(here: Path) -> None:
    put_together(*SHARDS)
    mask = next(Path("merged/masks").rglob("*.png"))
    assert mask.stat().st_nlink == 2


def test_a_merged_run_goes_on_as_if_it_had_never_been_divided(here: Path) -> None:
    put_together(*SHARDS)
    assert run("merged").nothing_new
    assert_as_whole("merged")


def test_merging_again_finds_nothing_to_do(here: Path) -> None:
    put_together(*SHARDS)
    again = put_together(*SHARDS)
    assert again.nothing_new
    assert again.report.counts.slices == 47


def test_tables_alone_are_merged_without_masks(here: Path) -> None:
    put_together(*SHARDS, files=False)
    assert results(Path("merged")) == results(Path("whole"))
    assert not Path("merged/masks").exists()
    put_together(*SHARDS)
    assert_as_whole("merged")


def test_where_the_disk_has_no_links_masks_are_copied(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(linking, "_link", no_links)
    put_together(*SHARDS)
    assert_as_whole("merged")
    mask = next(Path("merged/masks").rglob("*.png"))
    assert mask.stat().st_nlink == 1


def test_a_lost_mask_is_drawn_again_from_the_ledger(here: Path) -> None:
    next(Path("s/1/masks").rglob("*.png")).unlink()
    put_together(*SHARDS)
    assert_as_whole("merged")


@pytest.mark.parametrize("at", ["_take_files", "take_tree"])
def test_a_killed_merge_is_done_by_the_same_call(
    here: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"engine.merge.rows.{at}", killed)
        with pytest.raises(KeyboardInterrupt):
            put_together(*SHARDS)
    assert not Path("merged/results.csv").exists()
    put_together(*SHARDS)
    assert_as_whole("merged")


def test_all_options_of_outputs_come_through(here: Path) -> None:
    pytest.importorskip("pyarrow")
    options: dict[str, Any] = {
        "masks": "rle", "overlays": True, "save_probabilities": True, "parquet": True, "limit": None,
    }  # fmt: skip
    run("full", **options)
    for number in (1, 2):
        run(f"f/{number}", f"{number}/2", **options)
    put_together("f/1", "f/2")
    assert_as_whole("merged", "full")
    for name in ("results.parquet", "errors.parquet"):
        assert (Path("merged") / name).read_bytes() == (Path("full") / name).read_bytes()


def test_components_are_those_of_whole_folders(here: Path) -> None:
    options = {"components": Rule.parse("largest")}
    run("full", **options)
    for number in (1, 2):
        run(f"f/{number}", f"{number}/2", **options)
    put_together("f/1", "f/2")
    assert_as_whole("merged", "full")
    assert run("merged", **options).nothing_new
    assert_as_whole("merged", "full")


def test_pseudonyms_are_those_of_the_whole(here: Path) -> None:
    run("full", anonymise=Path("private"))
    for number in (1, 2):
        run(f"f/{number}", f"{number}/2", anonymise=Path("private"))
    assert "give that" in refused("f/1", "f/2")
    put_together("f/1", "f/2", anonymise=Path("private"), arguments=("merge", "f/1", "f/2"))
    assert_as_whole("merged", "full")
    assert not Path("merged/run.sqlite").exists()
    assert "f/1" not in Path("merged/run.json").read_text()


def test_volumes_keep_their_own_files(here: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    import numpy as np

    from tests.tinybundle import tiny_slice

    planes = [tiny_slice(number, lesion=number % 3 != 1)[..., 1] for number in range(4)]
    for patient in range(5):
        folder = Path("scans") / f"p{patient}"
        folder.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(np.stack(planes, -1), np.eye(4)), folder / "head.nii.gz")
    options = {"components": Rule.parse("100"), "data": "scans"}
    run("full", **options)
    for number in (1, 2):
        run(f"f/{number}", f"{number}/2", **options)
    shutil.move("scans", "gone")  # a merge needs no source
    put_together("f/1", "f/2")
    assert_as_whole("merged", "full")
    assert len(list(Path("merged/volumes").rglob("*_mask.nii.gz"))) == 5


# A lone shard


def test_a_shard_says_everywhere_that_it_is_a_part(here: Path) -> None:
    words = (
        "score",
        "data",
        "--bundle",
        "bundle",
        "--backend",
        "onnxruntime",
        "--shard",
        "2/3",
        "--out",
        "s/2",
    )
    done = tumorscan(*words, cwd=here)
    assert done.status in (0, 4)
    assert "2/3: A PART ONLY; tumorscan merge puts all 3 together" in done.out
    assert "shard 2/3 of the input, a part only" in tumorscan(*words, "--dry-run", cwd=here).out
    assert json.loads(Path("s/2/run.json").read_text())["shard"] == "2/3"
    page = tumorscan("report", "s/2", cwd=here)
    assert page.status == 0
    assert "shard 2/3: a part of the input only" in Path("s/2/index.html").read_text().replace("This is ", "")
    assert "a part only" in Path("s/2/index.html").read_text()


def test_a_shard_is_continued_as_that_shard_only(here: Path) -> None:
    with pytest.raises(UsageError, match=r'shard: "2/3" there, "1/3" now'):
        run("s/2", "1/3")
    with pytest.raises(UsageError, match=r'shard: "2/3" there, unset now'):
        run("s/2")


def test_a_shard_with_nothing_in_it_is_complete(here: Path) -> None:
    write_slices(Path("few"), 4, patients=1)
    outcomes = [run(f"f/{number}", f"{number}/3", data="few") for number in (1, 2, 3)]
    assert sorted(each.counts.ok for each in outcomes) == [0, 0, 4]
    assert all(each.finished for each in outcomes)
    (empty, _) = [number for number, each in enumerate(outcomes, 1) if not each.counts.ok]
    assert table(Path(f"f/{empty}")).empty
    assert json.loads(Path(f"f/{empty}/run.json").read_text())["counts"]["slices"] == 0
    words = ("score", "few", "--bundle", "bundle", "--backend", "onnxruntime", "--shard", f"{empty}/3")
    again = tumorscan(*words, "--out", f"f/{empty}", cwd=here)
    assert again.status == 0
    assert f"of the input's 4 files none falls into shard {empty}/3" in again.out
    run("full", data="few")
    put_together("f/1", "f/2", "f/3")
    assert_as_whole("merged", "full")


def test_an_input_without_slices_is_still_refused(here: Path) -> None:
    Path("none").mkdir()
    with pytest.raises(UsageError, match="no slices in none"):
        run("f", "1/3", data="none")


# The command


def test_the_command_merges_and_reports(here: Path) -> None:
    done = tumorscan("merge", *SHARDS, "--out", "merged", cwd=here)
    assert done.status == 4, done.err
    assert "all 3 are there" in done.out
    assert "quarantine" in done.out
    assert tumorscan("merge", *SHARDS, "--out", "merged", "--quiet", cwd=here).out == ""
    page = tumorscan("report", "merged", cwd=here)
    assert page.status == 0
    assert "in all side by side" in Path("merged/index.html").read_text()
    bad = tumorscan("merge", "s/1", "s/2", "--out", "other", cwd=here)
    assert bad.status == 2
    assert bad.err.count("\n") == 1


# What is refused


def test_missing_and_unfinished_shards_are_named_together(here: Path) -> None:
    assert "of 3 shards 3 is missing:" in refused("s/1", "s/2")
    run("cut/2", "2/3", limit=2)
    said = refused("s/1", "cut/2")
    assert "3 is missing, and 2 is not finished" in said
    run("cut/2", "2/3")
    put_together("s/1", "cut/2", "s/3")
    assert_as_whole("merged")


def test_many_missing_shards_are_named_by_stretches(here: Path) -> None:
    run("f/1", "4/40")
    assert "1-3 and 5-40 are missing" in refused("f/1")


def test_a_shard_that_went_on_and_was_killed_is_not_finished(here: Path) -> None:
    with sqlite3.connect("s/2/run.sqlite") as ledger:
        # What a call leaves that is killed: it broke the seal before its first row.
        ledger.execute("DELETE FROM meta WHERE key = 'sealed'")
    ledger.close()
    assert "2 is not finished" in refused(*SHARDS)


def test_a_shard_twice_is_refused(here: Path) -> None:
    assert "s/1 is given twice" in refused("s/1", "s/../s/1", "s/2", "s/3")
    shutil.copytree("s/1", "copy")
    assert "shard 1/3 is there twice, in copy and s/1" in refused("copy", *SHARDS)


def test_shards_of_two_divisions_are_refused(here: Path) -> None:
    run("f/2", "2/2")
    assert "s/1 is shard 1/3 and f/2 is 2/2" in refused("s/1", "f/2")


def test_shards_of_other_bundles_and_options_are_refused(here: Path) -> None:
    run("t/2", "2/3", threshold=0.25)
    assert "s/1 and t/2 were not scored alike (threshold: 0.5 and 0.25)" in refused("s/1", "t/2", "s/3")
    make_tiny_bundle(Path("other"), gate_threshold=0.4)
    run("b/2", "2/3", bundle=Path("other"), threshold=0.5)
    assert "not scored alike (bundle: " in refused("s/1", "b/2", "s/3")


def test_shards_of_other_inputs_are_refused(here: Path) -> None:
    shutil.copytree("data", "copy")
    run("i/2", "2/3", data="copy")
    assert 'inputs: ["data"] and ["copy"]' in refused("s/1", "i/2", "s/3")


def test_an_input_that_grew_is_told_and_merged_anew_once_all_shards_went_on(here: Path) -> None:
    write_slices(Path("few"), 9, patients=3)
    for number in (1, 2):
        run(f"m/{number}", f"{number}/2", data="few")
    put_together("m/1", "m/2")
    shutil.copy("data/p0/s_0.tif", "few/p1/later.tif")
    run("m/2", "2/2", data="few")
    with pytest.raises(UsageError, match=r"when shard 1 of 2 looked at it \(9 files, later 10\)"):
        put_together("m/1", "m/2")
    run("m/1", "1/2", data="few")
    assert put_together("m/1", "m/2").report.counts.slices == 10
    run("anew", data="few")
    assert_as_whole("merged", "anew")
    shutil.copy("data/p0/s_0.tif", "few/p2/latest.tif")
    run("merged", data="few")
    with pytest.raises(UsageError, match="--out merged was scored on since it was merged"):
        put_together("m/1", "m/2")


def test_a_folder_that_is_no_shard_is_refused(here: Path) -> None:
    assert "whole holds a whole run, no shard" in refused("whole", *SHARDS)
    assert "data holds no run" in refused("data", *SHARDS)
    assert "nowhere: no such folder" in refused("nowhere", *SHARDS)
    assert "no shards" in refused()


def test_file_addresses_are_the_paths_that_they_mean(here: Path) -> None:
    shards = [f"file://{here}/{shard}" for shard in SHARDS]
    put_together(*shards, out=f"file://{here}/merged")
    assert_as_whole("merged")


def test_object_stores_are_not_merged(here: Path) -> None:
    assert "gs://bucket/all: shards are merged into a folder" in refused(*SHARDS, out="gs://bucket/all")


def test_an_output_that_is_a_shard_is_refused(here: Path) -> None:
    assert "--out s/1 is shard 1/3" in refused(*SHARDS, out="s/1")
    assert "--out s lies around shard 1/3" in refused(*SHARDS, out="s")
    assert "--out s/2/x lies inside shard 2/3" in refused(*SHARDS, out="s/2/x")
    assert "--out whole holds a run that was scored" in refused(*SHARDS, out="whole")


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_was_changed_is_refused_and_mended_by_the_shards_command(here: Path, name: str) -> None:
    path = Path("s/2") / name
    path.write_bytes(path.read_bytes() + b"x")
    assert f"shard 2/3 in s/2: {name} is not what was written" in refused(*SHARDS)
    if name == "volumes.csv":
        run("s/2", "2/3")
        put_together(*SHARDS)
        assert_as_whole("merged")


def test_a_damaged_ledger_is_refused(here: Path) -> None:
    ledger = Path("s/3/run.sqlite")
    kept = ledger.read_bytes()
    with sqlite3.connect(ledger) as connection:
        connection.execute("UPDATE slices SET tumor_probability = 0.125 WHERE slice = 0")
    connection.close()
    assert "a row is damaged" in refused(*SHARDS)
    ledger.write_bytes(kept[: len(kept) // 3])
    assert "is damaged" in refused(*SHARDS)
    ledger.write_bytes(b"no ledger at all")
    assert "s/3/run.sqlite" in refused(*SHARDS)


def test_a_damaged_report_is_refused(here: Path) -> None:
    Path("s/3/run.json").write_text("{")
    assert "run.json cannot be read" in refused(*SHARDS)
    Path("s/3/run.json").unlink()
    run("s/3", "3/3")
    put_together(*SHARDS)
    assert_as_whole("merged")
