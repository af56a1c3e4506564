"""Bad input of every kind: one clear line or a row in errors.csv each, and nothing else lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.badfiles import png, write_bad_files
from tests.runs import Ran, files_below, results, table, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle

# Takes from root what lets it read and write everything; others have it taken already.
PLAIN_USER = () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle")).folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def closed(work: Path) -> Path:
    """A folder that a plain user can neither list nor write; skips where such users cannot be had."""
    folder = work / "closed"
    folder.mkdir()
    folder.chmod(0)
    try:
        refused = subprocess.run([*PLAIN_USER, "ls", folder], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs setpriv to be a plain user")
    if refused.returncode == 0 or b"setpriv" in refused.stderr:
        pytest.skip("permissions cannot be taken away here")
    return folder


def scored(bundle: Path, *words: str | Path, prefix: tuple[str, ...] = ()) -> Ran:
    return tumorscan(
        "score", *words, "--bundle", bundle, "--backend", "onnxruntime", cwd=Path.cwd(), prefix=prefix
    )


def errors(out: str = "results") -> dict[str, tuple[str, str]]:
    """Stage and code by image_path."""
    rows = table(Path(out), "errors.csv")
    assert (rows["message"] != "").all()
    assert not rows["message"].str.contains("\n").any()
    return {row.image_path: (row.stage, row.code) for row in rows.itertuples()}  # type: ignore[misc]


def assert_refused(ran: Ran, said: str, status: int = 2) -> None:
    assert ran.status == status, ran.err
    assert ran.out == ""
    (line,) = [line for line in ran.err.splitlines() if not line.startswith("tiny on ")]
    assert line.startswith("tumorscan: ")
    assert said in line


def test_each_bad_file_has_its_row_and_every_other_is_scored(work: Path, bundle: Path) -> None:
    kinds = write_bad_files(work / "data")
    write_slices(work / "data" / "good", 6)
    ran = scored(bundle, "data")
    assert ran.status == 4, ran.err
    expected = {"data/" + kind.name.decode("utf-8", "backslashreplace"): kind.code for kind in kinds} | {
        f"data/good/p{number % 4}/s_{number}.tif": None for number in range(6)
    }
    expected["data/two_pages.tif"] = None  # a slice a page
    rows = table(Path("results"))
    found = dict(zip(rows["image_path"], rows["status"], strict=True))
    assert len(rows) == len(found) + 1
    assert found == {path: "quarantined" if code else "ok" for path, code in expected.items()}
    assert {path: code for path, (_, code) in errors().items()} == {p: c for p, c in expected.items() if c}
    ok = rows[rows["status"] == "ok"]
    assert (ok["tumor_probability"] != "").all()
    assert all(Path("results", path).is_file() for path in ok["mask_path"] if path)
    assert f"{len(ok)} scored, {len(rows) - len(ok)} quarantined" in ran.out


def test_bad_files_given_again_are_not_tried_but_those_with_io_errors(work: Path, bundle: Path) -> None:
    write_bad_files(work / "data")
    scored(bundle, "data")
    before = results(Path("results"))
    ran = scored(bundle, "data")
    assert ran.status == 4
    assert "this call 1 slices" in " ".join(ran.out.split())  # the dangling link
    ran = scored(bundle, "data", "--retry")
    assert f"this call {len(errors())} slices" in " ".join(ran.out.split())
    assert results(Path("results")) == before


def test_a_missing_folder_is_one_line(work: Path, bundle: Path) -> None:
    assert_refused(scored(bundle, "no such folder"), "INPUT 'no such folder' does not exist")


def test_an_empty_folder_is_one_line_that_says_what_was_passed_over(work: Path, bundle: Path) -> None:
    (work / "data").mkdir()
    assert_refused(scored(bundle, "data"), "no slices in data: give a folder with .tif")
    (work / "data" / "a_mask.tif").write_bytes(b"")
    (work / "data" / "notes.txt").write_bytes(b"")
    said = "no slices in data (passed over 1 files named *_mask.* and 1 other files)"
    assert_refused(scored(bundle, "data"), said)


def test_an_output_inside_the_input_is_one_line(work: Path, bundle: Path) -> None:
    write_slices(work / "data", 2)
    assert_refused(scored(bundle, "data", "--out", "data/results"), "lies inside the input")
    assert not (work / "data" / "results").exists()


def test_an_output_that_is_a_file_is_one_line(work: Path, bundle: Path) -> None:
    write_slices(work / "data", 2)
    (work / "out").write_text("mine")
    assert_refused(scored(bundle, "data", "--out", "out"), "is not a folder")
    assert (work / "out").read_text() == "mine"


def test_a_list_that_names_missing_and_bad_paths_has_a_row_for_each(work: Path, bundle: Path) -> None:
    write_slices(work / "data", 1)
    (work / "text.tif").write_text("no image")
    (work / "list").write_bytes(b"nowhere.tif\ndata/p0/s_0.tif\ntext.tif\n\xff.tif\n")
    ran = scored(bundle, "--files-from", "list")
    assert ran.status == 4, ran.err
    assert errors() == {
        "nowhere.tif": ("discover", "not_found"),
        "text.tif": ("decode", "not_an_image"),
        "\\xff.tif": ("discover", "not_found"),
    }
    assert list(table(Path("results"))["status"]) == ["quarantined", "ok", "quarantined", "quarantined"]


@pytest.mark.parametrize("damage", ["graph", "manifest", "missing graph", "no bundle"])
def test_a_damaged_bundle_is_one_line_and_nothing_is_written(work: Path, bundle: Path, damage: str) -> None:
    write_slices(work / "data", 2)
    copy = work / "bundle"
    shutil.copytree(bundle, copy)
    graph, manifest = copy / "segmenter.onnx", copy / "bundle.json"
    if damage == "graph":
        graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    elif damage == "missing graph":
        graph.unlink()
    else:
        manifest.unlink()
    said = {
        "graph": "has sha256",
        "manifest": "bundle.json is damaged",
        "missing graph": "segmenter.onnx is missing",
        "no bundle": "is not a model bundle",
    }[damage]
    assert_refused(scored(copy, "data"), said)
    assert not (work / "results").exists()


def test_a_damaged_ledger_is_one_line_and_fresh_starts_over(work: Path, bundle: Path) -> None:
    write_slices(work / "data", 3)
    scored(bundle, "data")
    before = results(Path("results"))
    (work / "results" / "run.sqlite").write_bytes(b"no database" * 500)
    assert_refused(scored(bundle, "data"), "run.sqlite: is damaged or no ledger")
    assert scored(bundle, "data", "--fresh").status == 0
    assert results(Path("results")) == before


def test_rows_of_a_ledger_that_were_damaged_are_scored_again_by_the_same_command(
    work: Path, bundle: Path
) -> None:
    write_slices(work / "data", 6)
    scored(bundle, "data")
    before = results(Path("results"))
    with sqlite3.connect("results/run.sqlite") as ledger:
        ledger.execute("UPDATE slices SET tumor_probability = 0.5 WHERE image_path LIKE '%s_1.tif'")
        ledger.execute("UPDATE slices SET size = 7 WHERE image_path LIKE '%s_4.tif'")
        assert ledger.total_changes == 2
    ledger.close()
    assert scored(bundle, "data").status == 0
    assert results(Path("results")) == before


def test_what_may_not_be_read_has_its_row_and_is_scored_once_it_may(
    work: Path, bundle: Path, closed: Path
) -> None:
    write_slices(work / "data", 4)
    scored(bundle, "data", "--out", "whole")
    (work / "data" / "p1").chmod(0)
    (work / "data" / "p2" / "s_2.tif").chmod(0)
    ran = scored(bundle, "data", prefix=PLAIN_USER)
    assert ran.status == 4, ran.err
    assert errors() == {"data/p1": ("discover", "permission"), "data/p2/s_2.tif": ("read", "permission")}
    (work / "data" / "p1").chmod(0o755)
    (work / "data" / "p2" / "s_2.tif").chmod(0o644)
    assert scored(bundle, "data", prefix=PLAIN_USER).status == 0
    assert results(Path("results")) == results(Path("whole"))
    assert files_below(Path("results")) == files_below(Path("whole"))


def test_an_output_that_may_not_be_written_is_one_line(work: Path, bundle: Path, closed: Path) -> None:
    write_slices(work / "data", 2)
    closed.chmod(0o555)
    ran = scored(bundle, "data", "--out", "closed/out", prefix=PLAIN_USER)
    assert_refused(ran, "cannot be written (Permission denied)", status=3)
    ran = scored(bundle, "data", "--out", "closed", prefix=PLAIN_USER)
    assert_refused(ran, "cannot be written (Permission denied)", status=3)


def test_masks_that_may_not_be_written_end_the_run_and_it_continues(
    work: Path, bundle: Path, closed: Path
) -> None:
    write_slices(work / "data", 12)
    scored(bundle, "data", "--out", "whole")
    (work / "results" / "masks").mkdir(parents=True)
    (work / "results" / "masks").chmod(0o555)
    assert_refused(scored(bundle, "data", prefix=PLAIN_USER), "cannot be written (Permission", status=3)
    (work / "results" / "masks").chmod(0o755)
    assert scored(bundle, "data", prefix=PLAIN_USER).status == 0
    assert results(Path("results")) == results(Path("whole"))


@pytest.fixture
def small_disk(work: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = work / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_with_room_the_run_continues(
    work: Path, bundle: Path, small_disk: Path
) -> None:
    write_slices(work / "data", 40)
    words = ("data", "--overlays", "--batch", "4")
    scored(bundle, *words, "--out", "whole")
    ran = scored(bundle, *words, "--out", small_disk / "out")
    assert_refused(ran, "the disk is full", status=3)
    assert "run the same command to continue" in ran.err
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    ran = scored(bundle, *words, "--out", small_disk / "out")
    assert ran.status == 0, ran.err
    assert results(small_disk / "out") == results(Path("whole"))
    assert files_below(small_disk / "out") == files_below(Path("whole"))


def test_a_disk_that_is_full_at_the_start_is_one_line(work: Path, bundle: Path, small_disk: Path) -> None:
    write_slices(work / "data", 2)
    (small_disk / "ballast").write_bytes(bytes(2**20 - 4096))
    assert_refused(scored(bundle, "data", "--out", small_disk / "out"), "the disk is full", status=3)


def test_names_that_no_mask_can_have_are_quarantined(work: Path, bundle: Path) -> None:
    (path,) = write_slices(work / "data", 1)
    path.rename(path.with_name(f"{'n' * 246}.tif"))
    (work / "data" / "small.png").write_bytes(png(8, 8))
    ran = scored(bundle, "data")
    assert ran.status == 4, ran.err
    assert errors() == {f"data/p0/{'n' * 246}.tif": ("write", "name")}
    assert len(table(Path("results"))) == 2
