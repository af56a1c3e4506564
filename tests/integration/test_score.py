"""A run from end to end: what it writes, how it continues, what it refuses, what it says."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engine.errors import UsageError
from engine.ledger import Ledger
from engine.ledger_readers import stored_identity
from engine.outputs.overlays import OUTLINE_RGB
from engine.outputs.tables import RESULT_COLUMNS
from engine.scoring import Options, Outcome, Stop, Watcher, count_slices, score, survey
from tests.badfiles import tiff
from tests.runs import command, environment, files_below, results, table, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle, tiny_slice

SLICES = 14
LESIONS = 9  # every slice but numbers 1, 4, 7, 10, 13


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle")).folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_slices(tmp_path / "data", SLICES)
    return Path("data")


def run(bundle: Path, *inputs: str | Path, out: str = "out", **options: Any) -> Outcome:
    words = {"backend": "onnxruntime", "workers": 1, **options}
    return score(Options(tuple(map(str, inputs)), Path(out), bundle=bundle, **words))


def change(path: Path) -> None:
    path.write_bytes(tiff(256, 256, pixels=tiny_slice(99, lesion=True).tobytes()))
    os.utime(path, ns=(1, 1))


# What a run writes


def test_results_have_one_row_a_slice_with_its_values_in_natural_order(data: Path, bundle: Path) -> None:
    outcome = run(bundle, data)
    rows = table(Path("out"))
    assert tuple(rows.columns) == RESULT_COLUMNS
    paths = [f"data/p{patient}/s_{n}.tif" for patient in range(4) for n in range(SLICES) if n % 4 == patient]
    assert list(rows["image_path"]) == paths
    assert list(rows["volume"]) == [path.rpartition("/")[0] for path in paths]
    assert set(rows["status"]) == {"ok"}
    assert set(rows["slice"]) == {"0"}
    for row in rows.itertuples():
        number = int(str(row.image_path).rpartition("_")[2].removesuffix(".tif"))
        assert (float(str(row.tumor_probability)) >= 0.5) == (row.has_mask == "1") == (number % 3 != 1)
    assert (outcome.finished, outcome.counts.ok, outcome.counts.has_mask) == (True, SLICES, LESIONS)
    assert outcome.gated_out == SLICES - LESIONS
    assert (Path("out") / "errors.csv").read_text() == "image_path,slice,stage,code,message\n"


def test_masks_mirror_the_input_and_agree_with_their_rows(data: Path, bundle: Path) -> None:
    run(bundle, data)
    rows = table(Path("out"))
    with_mask = rows[rows["has_mask"] == "1"]
    assert list(with_mask["mask_path"]) == [
        f"masks/{path.removeprefix('data/')}_mask.png" for path in with_mask["image_path"]
    ]
    assert sorted(files_below(Path("out"))) == sorted(with_mask["mask_path"])
    for row in with_mask.itertuples():
        mask = cv2.imread(f"out/{row.mask_path}", cv2.IMREAD_UNCHANGED)
        assert mask is not None
        assert mask.shape == (256, 256)
        assert set(np.unique(mask)) == {0, 255}
        number = int(str(row.image_path).rpartition("_")[2].removesuffix(".tif"))
        bright = tiny_slice(number, lesion=True)[:, :, 1] >= 220
        assert (bright & (mask > 0)).sum() > 0.9 * bright.sum()
        assert int(str(row.mask_pixels)) == np.count_nonzero(mask)
        assert float(str(row.mask_fraction)) == pytest.approx(np.count_nonzero(mask) / 65_536, rel=1e-5)
        box = [int(str(value)) for value in (row.bbox_x, row.bbox_y, row.bbox_w, row.bbox_h)]
        assert box == list(cv2.boundingRect(mask))


def test_run_json_says_what_was_done_with_what(data: Path, bundle: Path) -> None:
    outcome = run(bundle, data, arguments=("score", "data"))
    report = json.loads(Path("out/run.json").read_text())
    assert report["arguments"] == ["score", "data"]
    assert report["bundle"]["sha256"] == outcome.plan.bundle.sha256
    assert (report["runtime"], report["precision"]["classifier"]) == ("onnxruntime", "fp32")
    assert report["counts"]["slices"] == SLICES
    assert (report["finished"], report["continued"]) == (True, False)
    assert report["slices_per_second"] == pytest.approx(SLICES / report["timings"]["seconds"])


def test_several_inputs_have_a_folder_of_masks_each(data: Path, bundle: Path) -> None:
    write_slices(Path("more/data"), 2)
    run(bundle, data, "more/data", "data/p0/s_0.tif")
    rows = table(Path("out"))
    assert len(rows) == SLICES + 2 + 1
    assert rows["image_path"].iloc[-1] == "data/p0/s_0.tif"
    assert {"masks/data/p0/s_0.tif_mask.png", "masks/data_2/p0/s_0.tif_mask.png"} < set(rows["mask_path"])
    assert rows["mask_path"].iloc[-1] == "masks/s_0.tif_mask.png"
    assert len(set(rows["mask_path"])) == rows["has_mask"].eq("1").sum() + 1


def test_image_path_joins_the_input_as_it_was_typed(data: Path, bundle: Path) -> None:
    typed = f"{data.resolve()}/../data//p1/"
    run(bundle, typed, masks="none")
    assert table(Path("out"))["image_path"].iloc[0] == f"{data.resolve()}/../data//p1/s_1.tif"


def test_the_same_folder_with_a_slash_behind_it_is_the_same_run(data: Path, bundle: Path) -> None:
    run(bundle, "data/", limit=3)
    assert run(bundle, "data").counts.ok == SLICES
    assert table(Path("out"))["image_path"].iloc[0] == "data/p0/s_0.tif"


def test_without_masks_everything_is_counted_and_no_mask_written(data: Path, bundle: Path) -> None:
    run(bundle, data)
    run(bundle, data, out="bare", masks="none")
    assert files_below(Path("bare")) == {}
    there, bare = table(Path("out")), table(Path("bare"))
    assert set(bare["mask_path"]) == {""}
    assert there.drop(columns="mask_path").equals(bare.drop(columns="mask_path"))


def test_overlays_draw_the_outline_on_the_slice(data: Path, bundle: Path) -> None:
    run(bundle, data, overlays=True)
    names = [name for name in files_below(Path("out")) if name.startswith("overlays/")]
    assert len(names) == LESIONS
    image = cv2.imread("out/overlays/p0/s_0.tif_overlay.png", cv2.IMREAD_COLOR_RGB)
    mask = cv2.imread("out/masks/p0/s_0.tif_mask.png", cv2.IMREAD_UNCHANGED)
    assert image is not None
    assert mask is not None
    drawn = (image == OUTLINE_RGB).all(axis=2)
    assert drawn.any()
    assert not (drawn & (mask == 0)).any()
    np.testing.assert_array_equal(image[mask == 0], tiny_slice(0, lesion=True)[mask == 0])


def test_the_gate_keeps_slices_from_the_segmenter_unless_it_is_open(data: Path, tmp_path: Path) -> None:
    # A classifier that says 0.5 of everything.
    undecided = make_tiny_bundle(tmp_path / "undecided", sharpness=0).folder
    assert run(undecided, data, out="shut", threshold=0.6).counts.has_mask == 0
    assert run(undecided, data, out="open", gate=False, threshold=0.6).counts.has_mask == LESIONS
    assert run(undecided, data, out="low", threshold=0.4).counts.has_mask == LESIONS


def test_a_mask_threshold_of_ones_own_shrinks_the_masks(data: Path, bundle: Path) -> None:
    run(bundle, data)
    run(bundle, data, out="strict", mask_threshold=0.9)
    there, strict = table(Path("out")), table(Path("strict"))
    pixels, fewer = there["mask_pixels"].astype(int), strict["mask_pixels"].astype(int)
    assert (fewer <= pixels).all()
    assert 0 < fewer.sum() < pixels.sum()


def test_masks_among_the_slices_are_skipped_and_said(data: Path, bundle: Path) -> None:
    shutil.copy("data/p0/s_0.tif", "data/p0/s_0_mask.tif")
    Path("data/p0/notes.txt").write_text("no slice")
    outcome = run(bundle, data)
    assert (outcome.counts.ok, outcome.skipped_masks, outcome.skipped_other) == (SLICES, 1, 1)


def test_the_other_runtime_finds_the_same_masks(data: Path, bundle: Path) -> None:
    run(bundle, data)
    run(bundle, data, out="vino", backend="openvino")
    there, vino = table(Path("out")), table(Path("vino"))
    assert list(there["has_mask"]) == list(vino["has_mask"])
    difference = there["mask_pixels"].astype(int) - vino["mask_pixels"].astype(int)
    assert abs(difference).max() <= 2


# Batches, lists, limits


def test_batch_and_workers_do_not_change_a_byte(data: Path, bundle: Path) -> None:
    run(bundle, data)
    for batch, workers in ((3, 2), (64, 1)):
        out = f"b{batch}"
        run(bundle, data, out=out, batch=batch, workers=workers)
        assert results(Path(out)) == results(Path("out"))
        assert files_below(Path(out)) == files_below(Path("out"))


def test_a_limited_run_goes_on_without_its_limit_to_the_same_bytes(data: Path, bundle: Path) -> None:
    whole = run(bundle, data, out="whole")
    outcome = run(bundle, data, limit=5)
    assert (outcome.finished, outcome.counts.ok) == (True, 5)
    assert len(table(Path("out"))) == 5
    assert run(bundle, data, limit=5).nothing_new
    outcome = run(bundle, data)
    assert (outcome.totals.slices, outcome.counts) == (SLICES - 5, whole.counts)
    assert results(Path("out")) == results(Path("whole"))
    assert files_below(Path("out")) == files_below(Path("whole"))
    assert json.loads(Path("out/run.json").read_text())["continued"] is True


def listed(paths: list[str], end: bytes) -> bytes:
    return b"".join(os.fsencode(path) + end for path in paths)


@pytest.mark.parametrize("end", [b"\n", b"\0", b"\r\n"])
def test_a_list_is_scored_in_its_order(data: Path, bundle: Path, end: bytes) -> None:
    paths = ["data/p2/s_6.tif", "data/p0/s_0.tif", "data/p1/s_13.tif"]
    Path("list").write_bytes(listed(paths, end))
    run(bundle, files_from="list")
    rows = table(Path("out"))
    assert list(rows["image_path"]) == paths
    assert list(rows["mask_path"])[:2] == [f"masks/{path}_mask.png" for path in paths[:2]]


def test_a_list_from_standard_input_gives_the_same_as_from_a_file(data: Path, bundle: Path) -> None:
    lines = listed(["data/p2/s_6.tif", "data/p3", "data/p0/s_0.tif"], b"\0")
    Path("list").write_bytes(lines)
    run(bundle, files_from="list")
    ran = tumorscan(
        "score", "--files-from", "-", "--out", "piped", "--bundle", bundle, "--backend", "onnxruntime",
        cwd=Path.cwd(), stdin=lines,
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert results(Path("piped")) == results(Path("out"))


def test_lines_may_be_added_to_a_list_but_not_moved(data: Path, bundle: Path) -> None:
    first, second, third = "data/p2/s_6.tif", "data/p0/s_0.tif", "data/p1/s_13.tif"
    Path("list").write_bytes(listed([first, second], b"\n"))
    run(bundle, files_from="list")
    Path("list").write_bytes(listed([first, second, third], b"\n"))
    assert run(bundle, files_from="list").totals.slices == 1
    Path("list").write_bytes(listed([third, first, second], b"\n"))
    with pytest.raises(UsageError, match=r"data/p2/s_6\.tif was scored and is gone"):
        run(bundle, files_from="list")


def test_a_pipe_is_not_read_for_the_time_that_is_left(data: Path) -> None:
    os.mkfifo("list")
    options = Options((), Path("out"), files_from="list")
    assert count_slices(options, Stop().asked) is None
    assert count_slices(Options(("data",), Path("out")), Stop().asked) == SLICES
    assert count_slices(Options(("data",), Path("out"), limit=3), Stop().asked) == 3


# Continuations


def test_a_finished_run_called_again_changes_nothing(data: Path, bundle: Path) -> None:
    run(bundle, data)
    before = {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()}
    outcome = run(bundle, data)
    assert (outcome.finished, outcome.nothing_new, outcome.totals.slices) == (True, True, 0)
    assert {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()} == before


def test_tables_lost_before_the_end_are_written_by_the_next_call(data: Path, bundle: Path) -> None:
    run(bundle, data)
    before = results(Path("out"))
    Path("out/results.csv").unlink()
    assert run(bundle, data).nothing_new
    assert results(Path("out")) == before


def test_new_files_are_sorted_in_as_a_fresh_run_would(data: Path, bundle: Path) -> None:
    hidden = [Path(f"data/p{number % 4}/s_{number}.tif") for number in (0, 2, 7, 13)]
    for path in hidden:
        path.rename(path.with_suffix(".later"))
    run(bundle, data)
    for path in hidden:
        path.with_suffix(".later").rename(path)
    assert run(bundle, data).totals.slices == len(hidden)
    run(bundle, data, out="fresh")
    assert results(Path("out")) == results(Path("fresh"))
    assert files_below(Path("out")) == files_below(Path("fresh"))


@pytest.mark.parametrize("fate", ["changed", "gone"])
def test_a_scored_file_that_changed_or_vanished_is_refused_by_name(
    data: Path, bundle: Path, fate: str
) -> None:
    run(bundle, data)
    before = results(Path("out"))
    path = Path("data/p1/s_5.tif")
    change(path) if fate == "changed" else path.unlink()
    with pytest.raises(UsageError, match=rf"data/p1/s_5\.tif .*{fate}"):
        run(bundle, data)
    assert results(Path("out")) == before
    assert run(bundle, data, fresh=True).counts.ok == SLICES - (fate == "gone")


def test_another_identity_is_refused_naming_the_option(data: Path, bundle: Path) -> None:
    run(bundle, data, limit=2)
    others: dict[str, dict[str, Any]] = {
        "threshold: 0.5 there, 0.9 now": {"threshold": 0.9},
        "mask_threshold: 0.5 there, 0.4 now": {"mask_threshold": 0.4},
        "gate: true there, false now": {"gate": False},
        'masks: "png" there, "none" now': {"masks": "none"},
        "overlays: false there, true now": {"overlays": True},
        'backend: "onnxruntime" there, "openvino" now': {"backend": "openvino"},
    }
    for named, options in others.items():
        with pytest.raises(UsageError, match=rf"{re.escape(named)}.*--fresh"):
            run(bundle, data, **options)
    assert run(bundle, data, fresh=True, threshold=0.9).counts.ok == SLICES


def test_another_bundle_and_another_input_are_refused(data: Path, bundle: Path, tmp_path: Path) -> None:
    run(bundle, data, limit=2)
    with pytest.raises(UsageError, match="bundle: "):
        run(make_tiny_bundle(tmp_path / "other", min_pixels=7).folder, data)
    with pytest.raises(UsageError, match=r'inputs: \["data"\] there, \["data/p0"\] now'):
        run(bundle, "data/p0")


def test_many_inputs_are_refused_in_a_short_line(data: Path, bundle: Path) -> None:
    paths = write_slices(Path("many"), 30, patients=1)
    run(bundle, *paths)
    assert run(bundle, *paths).nothing_new
    with pytest.raises(UsageError, match="and 28 more of sha256") as refusal:
        run(bundle, *paths[1:])
    assert len(str(refusal.value)) < 500


def test_a_run_that_came_to_no_row_decides_nothing(data: Path, bundle: Path) -> None:
    Path("empty").mkdir()
    with pytest.raises(UsageError, match="no slices in empty"):
        run(bundle, "empty")
    with pytest.raises(UsageError, match="ONNX Runtime computes in fp32 only"):
        run(bundle, data, precision="bf16")
    assert run(bundle, data).counts.ok == SLICES


def test_a_continuation_takes_its_runtime_from_the_ledger(data: Path, bundle: Path) -> None:
    run(bundle, data, limit=2)
    assert run(bundle, data, backend="auto").plan.backend == "onnxruntime"


def test_fresh_starts_over_and_leaves_nothing_of_the_old_run(data: Path, bundle: Path) -> None:
    run(bundle, data, overlays=True)
    Path("out/mine.txt").write_text("kept")
    outcome = run(bundle, data, fresh=True, threshold=1.0)
    assert (outcome.counts.has_mask, outcome.plan.continued) == (0, False)
    assert files_below(Path("out")) == {}
    assert Path("out/mine.txt").read_text() == "kept"


def test_fresh_deletes_nothing_of_a_folder_without_a_run(data: Path, bundle: Path) -> None:
    Path("out/masks").mkdir(parents=True)
    Path("out/masks/drawn_by_hand.png").write_bytes(b"precious")
    run(bundle, data, fresh=True)
    assert Path("out/masks/drawn_by_hand.png").read_bytes() == b"precious"


def test_fresh_with_wrong_options_deletes_nothing(data: Path, bundle: Path) -> None:
    run(bundle, data)
    before = files_below(Path("out"))
    with pytest.raises(UsageError, match="no backend"):
        run(bundle, data, fresh=True, backend="abacus")
    identity = stored_identity(Path("out/run.sqlite"))
    assert identity is not None
    with Ledger.open(Path("out/run.sqlite"), identity, fresh=False):
        with pytest.raises(UsageError, match="another run"):
            run(bundle, data, fresh=True)
        with pytest.raises(UsageError, match="another run"):
            run(bundle, data)
    assert files_below(Path("out")) == before
    assert run(bundle, data).nothing_new


def test_a_continuation_clears_the_halves_that_a_killed_run_left(data: Path, bundle: Path) -> None:
    run(bundle, data, limit=2)
    half = Path("out/masks/p0/.tumorscan-0123abcd-17-3.tmp")
    half.write_bytes(b"half a mask")
    run(bundle, data)
    assert not half.exists()


# Quarantine


def test_a_quarantined_slice_waits_for_retry_and_a_mended_one_does_not(data: Path, bundle: Path) -> None:
    whole = run(bundle, data, out="whole")
    path = Path("data/p2/s_6.tif")
    good, times = path.read_bytes(), path.stat()
    path.write_bytes(good[:1000])
    outcome = run(bundle, data)
    assert (outcome.counts.ok, outcome.counts.quarantined, outcome.finished) == (SLICES - 1, 1, True)
    (error,) = table(Path("out"), "errors.csv").to_dict("records")
    assert (error["image_path"], error["stage"], error["code"]) == ("data/p2/s_6.tif", "decode", "truncated")
    assert run(bundle, data).nothing_new
    assert run(bundle, data, retry=True).totals.slices == 1
    path.write_bytes(good)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(bundle, data).counts == whole.counts
    assert results(Path("out")) == results(Path("whole"))
    assert len(table(Path("out"), "errors.csv")) == 0


def test_an_io_error_is_tried_again_by_every_continuation(data: Path, bundle: Path) -> None:
    link = Path("data/p2/s_99.tif")
    link.symlink_to(Path("later.tif"))
    assert run(bundle, data).counts.quarantined == 1
    outcome = run(bundle, data)
    assert (outcome.nothing_new, outcome.totals.quarantined, outcome.counts.quarantined) == (False, 1, 1)
    shutil.copy("data/p0/s_0.tif", "data/p2/later.tif")
    outcome = run(bundle, data)
    assert (outcome.counts.ok, outcome.counts.quarantined) == (SLICES + 2, 0)


# Stops


class StopsAfter(Watcher):
    def __init__(self, stop: Stop, slices: int) -> None:
        self.stop, self.slices, self.ticks = stop, slices, 0

    def goes_on(self, totals: object) -> None:
        self.ticks += 1
        if getattr(totals, "slices", 0) >= self.slices:
            self.stop.asked.set()


def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(data: Path, bundle: Path) -> None:
    write_slices(data, 1500, first=SLICES)
    run(bundle, data, out="whole")
    options = Options(("data",), Path("out"), bundle=bundle, backend="onnxruntime", workers=1, batch=4)
    for _ in range(50):
        stop = Stop()
        outcome = score(options, StopsAfter(stop, 1), stop)
        if outcome.finished:
            break
        assert not Path("out/results.csv").exists()
    assert outcome.plan.continued
    assert results(Path("out")) == results(Path("whole"))
    assert files_below(Path("out")) == files_below(Path("whole"))


def test_a_run_stopped_before_it_began_is_not_finished(data: Path, bundle: Path) -> None:
    stop = Stop()
    stop.asked.set()
    outcome = score(Options(("data",), Path("out"), bundle=bundle), stop=stop)
    assert not outcome.finished
    assert not Path("out/results.csv").exists()


@pytest.mark.parametrize("damage", ["'x'", "CAST(x'ff41' AS TEXT)"])
def test_a_run_that_is_out_of_time_writes_its_tables_without_rows_that_were_damaged(
    data: Path, bundle: Path, damage: str
) -> None:
    run(bundle, data)
    before = results(Path("out"))
    with sqlite3.connect("out/run.sqlite") as ledger:
        ledger.execute(f"UPDATE slices SET volume = {damage} WHERE image_path LIKE '%s_1.tif'")
    ledger.close()
    stop = Stop(out_of_time=True)
    stop.asked.set()
    options = Options(("data",), Path("out"), bundle=bundle, backend="onnxruntime", workers=1)
    assert not score(options, stop=stop).finished
    assert len(table(Path("out"))) == SLICES - 1
    assert run(bundle, data).finished
    assert results(Path("out")) == before


def test_max_runtime_stops_with_75_after_some_progress_and_ends_with_the_same_bytes(
    data: Path, bundle: Path
) -> None:
    write_slices(data, 1500, first=SLICES)
    run(bundle, data, out="whole")
    done = stops = 0
    while stops < 40:
        ran = tumorscan(
            "score", "data", "--bundle", bundle, "--out", "out", "--backend", "onnxruntime",
            "--max-runtime", "0.1s", "--workers", "1", cwd=Path.cwd(),
        )  # fmt: skip
        if ran.status == 0:
            break
        assert ran.status == 75, ran.err
        assert "stopped by --max-runtime" in ran.err
        assert len(table(Path("out"))) > done
        done = len(table(Path("out")))
        assert json.loads(Path("out/run.json").read_text())["finished"] is False
        stops += 1
    assert stops > 0
    assert results(Path("out")) == results(Path("whole"))


def test_a_silent_standard_input_does_not_hold_up_a_stop(data: Path, bundle: Path) -> None:
    line = command("score", "--files-from", "-", "--bundle", bundle, "--backend", "onnxruntime")
    running = subprocess.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert running.stdin is not None
    running.stdin.write(b"data/p0\n")
    running.stdin.flush()
    time.sleep(2)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143
    running.communicate()


# Dry runs


def test_a_dry_run_counts_and_writes_nothing(data: Path, bundle: Path) -> None:
    options = Options(("data",), Path("out"), bundle=bundle, backend="onnxruntime")
    found = survey(options)
    assert (found.slices, found.pending, found.plan.backend) == (SLICES, SLICES, "onnxruntime")
    assert not Path("out").exists()
    run(bundle, data, limit=5)
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    found = survey(options)
    assert (found.slices, found.pending, found.plan.continued) == (SLICES, SLICES - 5, True)
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    with pytest.raises(UsageError, match=r"threshold: 0\.5 there"):
        survey(Options(("data",), Path("out"), bundle=bundle, backend="onnxruntime", threshold=0.1))


# The command


def cli(bundle: Path, *words: str) -> tuple[int, str, str]:
    ran = tumorscan("score", *words, "--bundle", bundle, "--backend", "onnxruntime", cwd=Path.cwd())
    return ran.status, ran.out, ran.err


def test_the_command_ends_with_a_table_and_says_when_there_is_nothing_new(data: Path, bundle: Path) -> None:
    shutil.copy("data/p0/s_0.tif", "data/p0/s_0_mask.tif")
    deep = "out_" + "with_a_long_name_" * 8 + "[bold]:smile:"
    status, out, err = cli(bundle, "data", "--out", deep)
    assert status == 0, err
    assert err == "tiny on onnxruntime (fp32)\n"
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == f"slices {SLICES} ({SLICES} scored, 0 quarantined)"
    assert f"with a mask {LESIONS}" in lines
    assert "passed over 1 files named *_mask.*, 0 that are no slices" in lines
    assert any(line.endswith("slices a second, disk to disk") for line in lines)
    assert f"results {deep}/results.csv" in lines
    status, out, err = cli(bundle, "data", "--out", deep)
    assert (status, err) == (0, "")
    assert out.startswith("nothing new: every slice of the input has its row already\n")


def test_the_command_is_silent_when_asked(data: Path, bundle: Path) -> None:
    assert cli(bundle, "data", "--quiet") == (0, "", "")
    assert len(table(Path("results"))) == SLICES


def test_run_json_tells_of_the_tables_slices_when_a_bad_file_was_taken_away(data: Path, bundle: Path) -> None:
    Path("data/p0/broken.png").write_bytes(b"")
    assert run(bundle, data).counts.quarantined == 1
    Path("data/p0/broken.png").unlink()
    assert run(bundle, data).nothing_new
    counted = json.loads(Path("out/run.json").read_text())["counts"]["slices"]
    assert counted == len(table(Path("out"))) == SLICES


def test_a_run_with_quarantine_exits_with_4(data: Path, bundle: Path) -> None:
    Path("data/p0/broken.png").write_bytes(b"")
    status, out, err = cli(bundle, "data")
    assert status == 4, err
    assert "quarantine" in out
    assert "results/errors.csv" in out
    assert cli(bundle, "data", "--quiet") == (4, "", "")


def test_a_dry_run_says_what_would_be_done(data: Path, bundle: Path) -> None:
    status, out, err = cli(bundle, "data", "--dry-run", "--out", "out[red]")
    assert (status, err) == (0, "")
    assert f"{SLICES} slices, {SLICES} of them still to be scored into out[red] by tiny on onnxruntime" in out
    assert not Path("out[red]").exists()


def test_in_a_log_there_is_a_plain_line_every_so_often(data: Path, bundle: Path) -> None:
    program = (
        "import engine.watch.display; engine.watch.display.LINE_SECONDS = 0.2\n"
        "import engine.pipeline; engine.pipeline.COMMIT_SECONDS = 0.1\n"
        "from engine.cli import main; main()"
    )
    write_slices(data, 800, first=SLICES)
    line = [sys.executable, "-c", program, *command("score", "data", "--bundle", bundle)[3:]]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr
    assert "slices, " in done.stderr
    assert " a second, 0 quarantined" in done.stderr


def test_on_a_terminal_there_is_a_bar(data: Path, bundle: Path) -> None:
    write_slices(data, 100, first=SLICES)
    ours, theirs = pty.openpty()
    line = command("score", "data", "--bundle", bundle)
    running = subprocess.Popen(
        line, env={**environment(), "TERM": "xterm"}, stdout=theirs, stderr=theirs, stdin=theirs
    )
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # the other side is closed
        while piece := os.read(ours, 65_536):
            seen += piece
    os.close(ours)
    assert running.wait(60) == 0
    text = seen.decode()
    assert "loading the models" in text
    assert "━" in text
    assert "disk to disk" in text


# Memory

MEMORY_PROGRAM = """
import resource, sys
from pathlib import Path
from engine.scoring import Options, score
score(Options(("data",), Path(sys.argv[1]), Path(sys.argv[2]), limit=int(sys.argv[3]), backend="onnxruntime",
              workers=1, masks="none"))
for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
    print(resource.getrusage(who).ru_maxrss)
"""


def peak_kib(bundle: Path, slices: int) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, f"out{slices}", str(bundle), str(slices)],
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    own, workers = done.stdout.split()
    return int(own), int(workers)


def test_memory_does_not_grow_with_the_number_of_files(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = tiff(16, 16)
    for number in range(1500):
        path = Path(f"data/p{number % 15}/{number}.tif")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(small)
    few, many = peak_kib(bundle, 300), peak_kib(bundle, 1500)
    assert many[0] <= 1.1 * few[0]
    assert many[1] <= 1.1 * few[1]
