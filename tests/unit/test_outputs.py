"""What a run writes beside its ledger: masks, overlays, tables, run.json."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import threading
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import MachineError
from engine.ledger import Ledger, SliceRow
from engine.outputs import runjson
from engine.outputs.atomic import _usual_mode, clean_stale, replacing
from engine.outputs.masks import box, write_mask
from engine.outputs.overlays import OUTLINE_RGB, draw_overlay, write_overlay
from engine.outputs.tables import ERROR_COLUMNS, RESULT_COLUMNS, write_tables
from engine.text import FORMULA_STARTS

EVIL_NAMES = [
    "plain.tif",
    "with space.tif",
    " led and trailed ",
    'comma,quote"both",\'.tif',
    "new\nline.tif",
    "carriage\rreturn.tif",
    "both\r\n.tif",
    '"',
    "tab\t.tif",
    "NA",
    "null",
    "./=1+1.tif",
    "\\xff.tif",
    "tumeur-é-脑-\u2028.tif",
    "\ufeffbom.tif",
]


def square(height: int = 9, width: int = 7) -> npt.NDArray[np.uint8]:
    mask = np.zeros((height, width), np.uint8)
    mask[2:7, 1:6] = 1
    return mask


def ok(number: int, image_path: str, probability: float = 0.5) -> SliceRow:
    return SliceRow(
        number.to_bytes(4, "big"), 0, "data", image_path, "ok", 1, 1,
        tumor_probability=float(np.float32(probability)), has_mask=1, mask_path=f"masks/{number}_mask.png",
        mask_pixels=25, mask_fraction=25 / 65_536, bbox_x=1, bbox_y=2, bbox_w=5, bbox_h=5,
    )  # fmt: skip


def failed(number: int, image_path: str, message: str) -> SliceRow:
    return SliceRow(
        number.to_bytes(4, "big"), 0, "data", image_path, "quarantined", 1, 1,
        stage="decode", code="truncated", message=message,
    )  # fmt: skip


def tables_of(folder: Path, rows: list[SliceRow]) -> tuple[bytes, bytes]:
    with Ledger.open(folder / "run.sqlite", {}, fresh=True) as ledger:
        ledger.commit(rows)
        write_tables(ledger.rows(), folder)
    return (folder / "results.csv").read_bytes(), (folder / "errors.csv").read_bytes()


def test_a_mask_is_a_grey_png_of_0_and_255_and_its_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "masks" / "p" / "a.tif_mask.png"
    write_mask(os.fsencode(path), square())
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, square() * 255)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.tif_mask.png"]


def test_a_mask_replaces_the_one_of_a_killed_try(tmp_path: Path) -> None:
    path = tmp_path / "a_mask.png"
    path.write_bytes(b"half a file")
    write_mask(os.fsencode(path), np.ones((1, 1), np.uint8))
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).tolist() == [[255]]  # type: ignore[union-attr]


def test_a_mask_may_have_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    write_mask(os.fsencode(tmp_path) + b"/\xff\n/\xfe_mask.png", square())
    assert [os.fsencode(path.name) for path in (tmp_path / "\udcff\n").iterdir()] == [b"\xfe_mask.png"]


def test_the_longest_name_that_the_disk_takes_is_written(tmp_path: Path) -> None:
    write_mask(os.fsencode(tmp_path / f"{'n' * 251}.png"), square())
    with pytest.raises(OSError, match="too long") as caught:
        write_mask(os.fsencode(tmp_path / f"{'n' * 252}.png"), square())
    assert caught.value.errno == errno.ENAMETOOLONG
    assert len(list(tmp_path.iterdir())) == 1


def test_threads_write_into_one_new_folder(tmp_path: Path) -> None:
    def write(first: int) -> None:
        for number in range(first, 40, 4):
            write_mask(os.fsencode(tmp_path / "deep" / "er" / f"{number}.png"), square())

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list((tmp_path / "deep" / "er").glob("*.png"))) == 40


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old")

    def fail() -> None:
        with replacing(path, durable=True) as file:
            file.write(b"half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.csv"]


def test_what_a_killed_run_left_is_cleaned_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "masks" / "p").mkdir(parents=True)
    kept = [tmp_path / "masks" / "p" / name for name in (".tumorscan-notes.tmp", "a.tmp", "a_mask.png")]
    stale = [
        tmp_path / ".tumorscan-0badcafe-77-0.tmp",
        tmp_path / "masks" / "p" / ".tumorscan-0badcafe-77-31.tmp",
    ]
    for path in kept + stale:
        path.touch()
    assert clean_stale(tmp_path) == 2
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in stale)


def test_masks_that_lie_on_another_disk_are_cleaned_too(tmp_path: Path) -> None:
    stale = tmp_path / "other" / "p" / ".tumorscan-0badcafe-77-31.tmp"
    stale.parent.mkdir(parents=True)
    stale.touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "masks").symlink_to(tmp_path / "other")
    assert clean_stale(tmp_path / "out") == 1
    assert not stale.exists()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_an_unfinished_file_is_its_owners_and_a_finished_one_as_any_other(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    _usual_mode.cache_clear()
    try:
        with replacing(tmp_path / "results.csv"):
            (unfinished,) = tmp_path.iterdir()
            assert unfinished.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "results.csv").stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)
        _usual_mode.cache_clear()


def test_the_name_of_an_unfinished_file_is_one_that_is_cleaned(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.png"):
        assert clean_stale(tmp_path) == 1


def test_the_box_encloses_the_mask() -> None:
    assert box(square()) == (1, 2, 5, 5)
    assert box(np.ones((1, 1), np.uint8)) == (0, 0, 1, 1)
    assert box(np.zeros((4, 4), np.uint8)) == (0, 0, 0, 0)


def test_an_overlay_draws_the_outline_and_nothing_else() -> None:
    image = np.full((9, 7, 3), 90, np.uint8)
    overlay = draw_overlay(image, square())
    drawn = (overlay == np.array(OUTLINE_RGB, np.uint8)).all(axis=2)
    expected = square().astype(bool)
    expected[3:6, 2:5] = False
    np.testing.assert_array_equal(drawn, expected)
    assert (overlay[~drawn] == 90).all()
    assert (image == 90).all()


def test_an_outline_closes_at_the_image_border_and_around_holes() -> None:
    mask = np.ones((7, 7), np.uint8)
    mask[3, 3] = 0
    drawn = (draw_overlay(np.zeros((7, 7, 3), np.uint8), mask) != 0).any(axis=2)
    expected = np.ones((7, 7), bool)
    expected[1:6, 1:6] = False
    expected[[2, 4, 3, 3], [3, 3, 2, 4]] = True
    np.testing.assert_array_equal(drawn, expected)


def test_an_overlay_file_keeps_its_colours(tmp_path: Path) -> None:
    image = np.zeros((9, 7, 3), np.uint8)
    image[0, 0] = (200, 10, 20)
    path = tmp_path / "overlays" / "a.png"
    write_overlay(os.fsencode(path), image, square())
    read = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert read is not None
    assert tuple(read[0, 0]) == (200, 10, 20)
    assert tuple(read[2, 1]) == OUTLINE_RGB


def test_the_tables_are_these_bytes(tmp_path: Path) -> None:
    gated = SliceRow(
        b"\x00\x00\x00\x02",
        0,
        "data",
        "data/b.tif",
        "ok",
        1,
        1,
        tumor_probability=float(np.float32(1e-7)),
        has_mask=0,
    )
    results, errors = tables_of(
        tmp_path, [failed(3, "data/c,.tif", "ends early"), ok(1, "data/a.tif", 0.1), gated]
    )
    assert results.decode() == (
        "volume,image_path,slice,status,tumor_probability,has_mask,mask_path,mask_pixels,mask_fraction,"
        "bbox_x,bbox_y,bbox_w,bbox_h\n"
        "data,data/a.tif,0,ok,0.1,1,masks/1_mask.png,25,0.00038147,1,2,5,5\n"
        "data,data/b.tif,0,ok,1e-07,0,,,,,,,\n"
        'data,"data/c,.tif",0,quarantined,,,,,,,,,\n'
    )
    assert (
        errors.decode()
        == 'image_path,slice,stage,code,message\n"data/c,.tif",0,decode,truncated,ends early\n'
    )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["errors.csv", "results.csv", "run.sqlite"]


def test_a_run_without_slices_has_tables_with_their_headings(tmp_path: Path) -> None:
    results, errors = tables_of(tmp_path, [])
    assert results.decode() == f"{','.join(RESULT_COLUMNS)}\n"
    assert errors.decode() == f"{','.join(ERROR_COLUMNS)}\n"


def test_names_of_every_kind_survive_pandas(tmp_path: Path) -> None:
    rows = [failed(number, name, "m") for number, name in enumerate(EVIL_NAMES, 1)]
    tables_of(tmp_path, rows)
    for table in ("results.csv", "errors.csv"):
        assert pd.read_csv(tmp_path / table, keep_default_na=False)["image_path"].tolist() == EVIL_NAMES


safe_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(safe_text, max_size=6))
def test_any_name_survives_pandas(names: list[str], tmp_path: Path) -> None:
    tables_of(tmp_path, [ok(number, name) for number, name in enumerate(names, 1)])
    table = pd.read_csv(tmp_path / "results.csv", keep_default_na=False, dtype={"image_path": str})
    shown = [f"./{name}" if name.startswith(FORMULA_STARTS) else name for name in names]
    assert table["image_path"].tolist() == shown
    assert (table["tumor_probability"] == 0.5).all()


def test_the_order_of_commits_does_not_show_in_the_tables(tmp_path: Path) -> None:
    names = [f"data/{number}.tif" for number in range(300)]
    rows = [
        failed(number, name, "bad") if number % 7 == 0 else ok(number, name, number / 300)
        for number, name in enumerate(names)
    ]
    expected = tables_of(tmp_path, rows)
    random.Random(1).shuffle(rows)
    (tmp_path / "again").mkdir()
    with Ledger.open(tmp_path / "again" / "run.sqlite", {}, fresh=False) as ledger:
        for start in range(0, len(rows), 23):
            ledger.commit(rows[start : start + 23])
        ledger.commit(rows[:40])
        write_tables(ledger.rows(), tmp_path / "again")
    assert (tmp_path / "again" / "results.csv").read_bytes() == expected[0]
    assert (tmp_path / "again" / "errors.csv").read_bytes() == expected[1]


@pytest.mark.parametrize(
    "message", ["=1+1", "+1", "-5: bad argument", "@SUM(A1)", "\t=1", " \n=cmd|' /C calc'!A0"]
)
def test_a_message_is_never_a_formula(tmp_path: Path, message: str) -> None:
    tables_of(tmp_path, [failed(1, "a.tif", message)])
    (written,) = pd.read_csv(tmp_path / "errors.csv", keep_default_na=False)["message"]
    assert written == f"error: {message.strip()}"


def test_a_message_stays_on_one_line(tmp_path: Path) -> None:
    _, errors = tables_of(tmp_path, [failed(1, "a.tif", "first\nsecond\r\n\x00third")])
    assert errors.decode().splitlines()[1] == "a.tif,0,decode,truncated,first second third"


def test_a_full_disk_stops_a_mask_with_its_errno_and_leaves_no_piece(small_disk: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (2_048, 2_048), np.uint8)
    with pytest.raises(OSError, match="No space left") as caught:
        write_mask(os.fsencode(small_disk / "masks" / "a.png"), noise)
    assert caught.value.errno == errno.ENOSPC
    assert list((small_disk / "masks").iterdir()) == []


def test_a_full_disk_leaves_the_old_tables(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "results.csv").write_text("old")
    with Ledger.open(tmp_path / "run.sqlite", {}, fresh=False) as ledger:
        ledger.commit([ok(number, f"data/{'n' * 100}{number}.tif") for number in range(3_000)])
        with pytest.raises(MachineError, match="small: the disk is full"):
            write_tables(ledger.rows(), small_disk)
    assert (small_disk / "results.csv").read_text() == "old"
    assert [entry.name for entry in small_disk.iterdir()] == ["results.csv"]


def report(**changes: object) -> runjson.RunReport:
    values: dict[str, object] = {
        "arguments": ["score", "data", "--out", "out"],
        "started": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        "ended": datetime(2025, 1, 2, 3, 5, 5, tzinfo=UTC),
        "finished": True,
        "continued": False,
        "bundle": runjson.BundleReport(name="lgg", sha256="0" * 64),
        "runtime": "openvino",
        "runtime_version": "2026.4.0",
        "precision": {"classifier": "fp32", "segmenter": "fp32"},
        "operating_point": runjson.OperatingReport(
            gate=True, gate_threshold=0.5, mask_threshold=0.5, min_pixels=16
        ),
        "counts": runjson.CountsReport(
            slices=10, ok=9, quarantined=1, has_mask=3, gated_out=5, skipped_masks=10, skipped_other=0
        ),
        "timings": runjson.Timings(
            slices=10, seconds=2.0, seconds_total=2.0, start_up_seconds=1.0, tables_seconds=0.1
        ),
        "slices_per_second": 5.0,
        "machine": runjson.describe_machine(),
        "packages": runjson.package_versions(),
    }
    return runjson.RunReport.model_validate(values | changes)


def test_run_json_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = report()
    runjson.write_report(tmp_path / "run.json", written)
    text = (tmp_path / "run.json").read_text()
    assert runjson.RunReport.model_validate_json(text) == written
    assert json.loads(text)["started"] == "2025-01-02T03:04:05Z"
    assert list(json.loads(text)) == list(runjson.RunReport.model_fields)


def test_run_json_names_the_machine_but_not_its_host_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2-hunter2")
    runjson.write_report(tmp_path / "run.json", report())
    text = (tmp_path / "run.json").read_text()
    machine = json.loads(text)["machine"]
    assert machine["cpu"]
    assert machine["logical_cores"] == len(os.sched_getaffinity(0))
    assert machine["memory_bytes"] > 2**28
    assert re.match(r"3\.\d+", machine["python"])
    assert machine.keys() == {"cpu", "logical_cores", "memory_bytes", "kernel", "python"}
    assert "hunter2" not in text


def test_run_json_names_the_versions_that_scored() -> None:
    assert {"numpy", "openvino", "onnxruntime"} <= runjson.package_versions().keys()


def test_run_json_that_cannot_be_written_is_said() -> None:
    with pytest.raises(MachineError, match=r"/proc/run\.json: cannot be written"):
        runjson.write_report(Path("/proc/run.json"), report())
