"""`tumorscan parity` as a user types it: what it prints, writes, records, refuses."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engine.bundle import Bundle
from engine.commands.parity import FAILED_STATUS
from engine.driver import probe_driver
from engine.errors import MachineError
from tests.badfiles import tiff
from tests.runs import Ran, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle, tiny_slice

SLICES = 14
LESIONS = 9  # every slice but numbers 1, 4, 7, 10, 13
FLOAT = ("--against", "openvino:fp32")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle and slices with their truth, never changed."""
    folder = tmp_path_factory.mktemp("original")
    make_tiny_bundle(folder / "bundle")
    for path in write_slices(folder / "data", SLICES):
        number = int(path.stem.rpartition("_")[2])
        bright = (tiny_slice(number, lesion=number % 3 != 1)[..., 1] >= 220).astype(np.uint8)
        path.with_name(f"{path.stem}_mask.tif").write_bytes(
            tiff(256, 256, channels=1, pixels=bright.tobytes())
        )
    return folder


@pytest.fixture
def folder(tmp_path: Path, original: Path) -> Path:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


def parity(folder: Path, *words: str | Path, bundle: str = "bundle", stdin: bytes = b"") -> Ran:
    return tumorscan("parity", *words, "--bundle", bundle, cwd=folder, stdin=stdin)


def recorded(folder: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((folder / "bundle" / "bundle.json").read_text())[
        "parity"
    ]
    return found


def assert_refused(ran: Ran, said: str, status: int = 2) -> None:
    assert ran.status == status, ran.err
    assert ran.err.count("\n") == 1, ran.err
    assert said in ran.err


# What it says


def test_the_reference_stands_for_itself_and_the_table_says_on_what(folder: Path) -> None:
    ran = parity(folder, "data", "--against", "onnxruntime:fp32", "--truth")
    assert (ran.status, ran.err) == (0, "")
    lines = dict(line.split("  ", 1) for line in ran.out.splitlines()[:-1])
    found = {name: value.strip() for name, value in lines.items()}
    assert found["slices"] == str(SLICES)
    assert found["probability error"] == "mean 0, at most 0"
    assert found["has_mask flips"] == "0 (0.00%; limit 0.50%)"
    assert (
        found["not empty masks"] == f"{LESIONS} of the reference, {LESIONS} of the other, {LESIONS} of both"
    )
    assert found["mask Dice"] == "1.0000 (limit 0.98)"
    assert "over 4 volumes (falls by 0.00000; limit 0.002)" in found["Dice against truth"]
    assert ran.out.splitlines()[-1] == "onnxruntime:fp32: parity holds"


def test_the_report_is_written_as_json_too(folder: Path) -> None:
    assert parity(folder, "data", *FLOAT, "--json", "report.json").status == 0
    report = json.loads((folder / "report.json").read_text())
    assert report["bundle"]["sha256"] == Bundle.load(folder / "bundle").sha256
    assert report["reference"]["runtime"] == "onnxruntime"
    assert (report["other"]["runtime"], report["other"]["precision"]) == ("openvino", "fp32")
    assert (report["slices"], report["flips"], report["masks_both"]) == (SLICES, 0, LESIONS)
    assert (report["holds"], report["standing"], report["broken"], report["gate"]) == (
        True,
        "proven",
        [],
        True,
    )
    assert (report["volumes"], report["dice_fall"]) == (0, None)


def test_few_masks_hold_weakly_and_that_is_said(folder: Path) -> None:
    ran = parity(folder, "data", *FLOAT, "--limit", "5")
    assert ran.status == 0
    assert "parity holds, weakly proven: masks of 3 slices only were compared" in ran.out


def test_without_a_gate_what_it_stops_is_segmented_too(folder: Path) -> None:
    make_tiny_bundle(folder / "strict", gate_threshold=1.0)
    gated = parity(folder, "data", *FLOAT, bundle="strict")
    assert "0 of both" in gated.out
    ungated = parity(folder, "data", *FLOAT, "--no-gate", bundle="strict")
    assert f"{LESIONS} of both" in ungated.out
    assert ungated.status == 0


def test_a_runner_that_differs_fails_with_its_own_status_and_the_limit_is_named(folder: Path) -> None:
    make_tiny_bundle(folder / "broken", sharpness=math.nan)
    ran = parity(folder, "data", *FLOAT, "--json", "report.json", bundle="broken")
    assert (ran.status, ran.err) == (FAILED_STATUS, "")
    said = f"{SLICES} probabilities are no numbers (none may be)"
    assert ran.out.splitlines()[-1] == f"openvino:fp32: parity does not hold: {said}"
    report = json.loads((folder / "report.json").read_text())
    assert (report["standing"], report["non_finite"], report["broken"]) == ("failed", SLICES, [said])
    assert report["probability_error_max"] is None


@pytest.mark.parametrize(("words", "limit"), [((), "0.50%"), (("--limits", "fp16"), "0.20%")])
def test_the_limits_may_be_chosen(folder: Path, words: tuple[str, ...], limit: str) -> None:
    assert f"limit {limit})" in parity(folder, "data", *FLOAT, *words).out


def test_bad_files_are_left_out_and_said(folder: Path) -> None:
    (folder / "data" / "empty.png").write_bytes(b"")
    (folder / "data" / "text.tif").write_text("patient, date, finding\n" * 40)
    ran = parity(folder, "data", *FLOAT)
    assert ran.status == 0
    assert "2 that cannot be read, first data/empty.png: a file of zero bytes" in ran.out


def test_slices_may_be_listed(folder: Path) -> None:
    listed = b"data/p0/s_0.tif\ndata/p0/s_4.tif\n"
    (folder / "list.txt").write_bytes(listed)
    by_file = parity(folder, "--files-from", "list.txt", *FLOAT)
    by_pipe = parity(folder, "--files-from", "-", *FLOAT, stdin=listed)
    assert (by_file.status, by_file.out) == (0, by_pipe.out)
    assert "1 of both" in by_file.out


def test_help_names_the_exit_statuses(folder: Path) -> None:
    ran = tumorscan("parity", "--help", cwd=folder)
    assert ran.status == 0
    assert "5 parity does not hold" in " ".join(ran.out.split())


# What it records


def test_a_report_goes_into_the_bundle(folder: Path) -> None:
    ran = parity(folder, "data", *FLOAT, "--truth", "--record")
    assert ran.status == 0, ran.err
    assert ran.out.splitlines()[-1] == "recorded as openvino:fp32 in bundle/bundle.json"
    record = recorded(folder)["openvino:fp32"]
    assert (record["holds"], record["slices"], record["volumes"]) == (True, SLICES, 4)
    assert record["dice_fall"] == pytest.approx(0, abs=1e-3)
    assert Bundle.load(folder / "bundle").manifest.parity["openvino:fp32"] == record


def test_a_failed_parity_is_recorded_as_failed(folder: Path) -> None:
    shutil.rmtree(folder / "bundle")
    make_tiny_bundle(folder / "bundle", sharpness=math.nan)
    assert parity(folder, "data", *FLOAT, "--truth", "--record").status == FAILED_STATUS
    assert recorded(folder)["openvino:fp32"]["holds"] is False


def test_nothing_is_recorded_without_truth(folder: Path) -> None:
    assert_refused(parity(folder, "data", *FLOAT, "--record"), "give --truth")
    for mask in (folder / "data").rglob("*_mask.tif"):
        mask.unlink()
    ran = parity(folder, "data", *FLOAT, "--record", "--truth")
    assert "unknown: no X_mask.tif lies beside" in ran.out
    assert_refused(ran, "not recorded: no X_mask.tif lies beside a slice")
    assert recorded(folder) == {}


def test_nothing_is_recorded_of_few_masks_or_without_the_gate(folder: Path) -> None:
    words = ("data", *FLOAT, "--truth", "--record")
    assert_refused(parity(folder, *words, "--limit", "4"), "give slices on which both draw 8 masks")
    assert_refused(parity(folder, *words, "--no-gate"), "no --no-gate")
    assert recorded(folder) == {}


def test_a_bundle_that_cannot_be_written_is_refused_before_anything_is_compared(folder: Path) -> None:
    prefix = () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    (folder / "bundle").chmod(0o555)
    probe = subprocess.run(
        [*prefix, "touch", str(folder / "bundle" / "probe")], capture_output=True, check=False
    )
    if probe.returncode == 0 or b"setpriv" in probe.stderr:
        pytest.skip("needs setpriv to be a plain user")
    words = ("data", *FLOAT, "--truth", "--record", "--bundle", "bundle")
    ran = tumorscan("parity", *words, cwd=folder, prefix=prefix)
    assert_refused(ran, "--record cannot write there", status=3)
    assert ran.out == ""


# What it refuses


@pytest.mark.parametrize("against", ["tensorrt:fp16", "tensorrt-rtx:fp16", "onnxruntime-cuda:fp16"])
def test_what_runs_on_a_gpu_needs_one_before_anything_is_built(folder: Path, against: str) -> None:
    try:
        probe_driver()
    except MachineError:
        assert_refused(parity(folder, "data", "--against", against), "NVIDIA driver", status=3)
    else:
        pytest.skip("this machine has a GPU")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a folder, files, or --files-from"),
        (("nowhere",), "'nowhere' does not exist"),
        (("data", "data/"), "given twice"),
        (("data", "--files-from", "list.txt"), "both INPUT and --files-from"),
        (("--files-from", "no.txt"), "--files-from no.txt: no such file"),
        (("data", "--against", "abacus:fp32"), "'--against'"),
        (("data", "--limit", "0"), "'--limit'"),
        (("data", "--json", "no/report.json"), "--json no/report.json"),
        (("data", "--json", "data"), "--json data"),
        (("empty",), "no slices in empty: give a folder"),
        (("bad",), "no slices in bad that can be read (bad/empty.png: a file of zero bytes"),
    ],
)
def test_wrong_use_is_one_plain_line(folder: Path, words: tuple[str, ...], said: str) -> None:
    (folder / "empty").mkdir()
    (folder / "bad").mkdir()
    (folder / "bad" / "empty.png").write_bytes(b"")
    ran = parity(folder, *words)
    assert_refused(ran, said)
    assert ran.out == ""


def test_a_bundle_that_is_none_is_refused(folder: Path) -> None:
    assert_refused(parity(folder, "data", bundle="nowhere"), "--bundle nowhere: no such folder")
    assert_refused(parity(folder, "data", bundle="data"), "data is not a model bundle")
