"""Whole runs on GPUs: real files, ring, ledger and processes, the GPU and its TensorRT doubles."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("onnx", reason="plans are made with the rtx or gpu extra")

from engine.bench import Request, measure
from engine.bundle import Bundle
from engine.cascade import Cascade, Scores
from engine.errors import MachineError, TumorscanError, UsageError
from engine.gpu.device import GpuMemoryError
from engine.gpu.lane import SLICE_BYTES
from engine.gpu.start import Graphs
from engine.ledger_readers import stored_identity
from engine.pipeline import Totals
from engine.prepare import Prepared
from engine.probes import Answer
from engine.run import Options, Outcome, Plan
from engine.scorer import GpuScorer
from engine.scoring import Stop, Watcher, score, survey
from tests import gpuchild, preparechild
from tests.doublesettings import FOLDER
from tests.lanes import host_cascade
from tests.runs import files_below, results, write_slices
from tests.tinybundle import make_tiny_bundle
from tests.unit.test_backend import gpu, machine, says

SLICES = 30
BATCH = 4
FREE = 70 << 30


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle")).folder


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan cache that the tests of this file share."""
    return tmp_path_factory.mktemp("cache") / "plans"


def settle_in(folder: Path, monkeypatch: pytest.MonkeyPatch, plans: Path) -> None:
    """Slices in data/, a folder for the doubles' settings, commits that do not wait."""
    monkeypatch.chdir(folder)
    write_slices(folder / "data", SLICES)
    (folder / "double").mkdir()
    monkeypatch.setenv(FOLDER, str(folder / "double"))
    monkeypatch.setenv("TUMORSCAN_PLAN_CACHE", str(plans))
    monkeypatch.setattr("engine.pipeline.COMMIT_SECONDS", 0.01)
    monkeypatch.setattr("engine.gpu.process.WORKER", gpuchild.MODULE)
    monkeypatch.setattr("engine.prepare.MODULE", preparechild.MODULE)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plans: Path) -> None:
    settle_in(tmp_path, monkeypatch, plans)


@pytest.fixture(scope="module")
def whole(bundle: Path, plans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the host leaves with the same FP16 graphs."""
    folder = tmp_path_factory.mktemp("whole")
    cascade = host_cascade(Bundle.load(bundle))

    @contextmanager
    def opened(plan: Plan) -> Iterator[Cascade]:
        yield cascade

    with pytest.MonkeyPatch.context() as patch:
        settle_in(folder, patch, plans)
        patch.setattr("engine.opening.open_models", opened)
        run(bundle, backend="onnxruntime")
        run(bundle, "overlays", backend="onnxruntime", overlays=True)
    return folder


Machine = Callable[..., None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Have the machine answer as `machine` of the unit tests makes it."""

    def be(*found: dict[str, Any], **others: Answer | None) -> None:
        answers = machine(*found, **others)
        monkeypatch.setattr("engine.settle.asker", lambda: says(answers))

    be()
    return be


@pytest.fixture
def unprepared(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    """Models that need no proof: for what happens after it."""
    prepared = Prepared(Graphs(bundle), "proven elsewhere")
    monkeypatch.setattr("engine.on_gpus.prepare", lambda request, watch, stop: prepared)


class Heard(Watcher):
    """Keeps what it hears."""

    def __init__(self, stop_at: str = "", stop: Stop | None = None) -> None:
        self.steps: list[str] = []
        self.lines: list[str] = []
        self.stop_at, self.stop = stop_at, stop

    def prepares(self, text: str, done: float | None) -> None:
        if text not in self.steps:
            self.steps.append(text)
        if self.stop is not None and self.stop_at in text:
            self.stop.asked.set()

    def says(self, line: str) -> None:
        self.lines.append(line)


def double(**settings: Any) -> None:
    Path("double/double.json").write_text(json.dumps(settings))


def run(bundle: Path, out: str = "out", heard: Watcher | None = None, **options: Any) -> Outcome:
    words = {"backend": "cuda", "batch": BATCH, "workers": 1, "lanes": 1, **options}
    outcome = score(Options(("data",), Path(out), bundle=bundle, **words), heard)
    assert not Path("double/findings").exists(), Path("double/findings").read_text()
    return outcome


def rows(out: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(Path(out) / "run.sqlite") as ledger:
        return sorted(ledger.execute("select * from slices").fetchall())


def report(out: str = "out") -> Any:
    return json.loads(Path(out, "run.json").read_text())


def assert_same(out: Path, whole: Path) -> None:
    """Tables and files are those of an undisturbed run, to the byte."""
    assert results(out) == results(whole)
    assert files_below(out) == files_below(whole)


def mask(png: bytes) -> npt.NDArray[np.uint8]:
    found = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return np.asarray(found, np.uint8)


# Runs that go well


def test_a_first_run_builds_plans_and_proves_them_on_its_own_slices(
    bundle: Path, gpus: Machine, whole: Path
) -> None:
    heard = Heard()
    outcome = run(bundle, heard=heard, backend="auto", gpus="0")
    assert (outcome.plan.backend, outcome.plan.why) == ("tensorrt", "NVIDIA H100 is here")
    assert (outcome.finished, outcome.counts.ok) == (True, SLICES)
    for step in ("building the classifier: halfway", "building the segmenter: halfway", "loading the models"):
        assert step in heard.steps
    (line,) = heard.lines
    proof = f"proven on {SLICES} slices of the input"
    assert line == f"1 x NVIDIA H100, lanes: 1 each, batches of 4; FP16 is {proof}"
    found = report()
    assert (found["runtime"], found["runtime_version"]) == ("tensorrt", "tensorrt 10.8.0.43")
    assert found["why"] == "NVIDIA H100 is here"
    assert found["precision"] == {"classifier": "fp16", "segmenter": "fp16"}
    assert found["gpu"] == {
        "model": "NVIDIA H100",
        "indexes": [0],
        "lanes": 1,
        "batch": 4,
        "proof": proof,
        "ring_pagelocked": True,
        "lost": [],
    }
    identity: Any = stored_identity(Path("out/run.sqlite"))
    assert (identity["backend"], identity["runtime"]) == ("tensorrt", "tensorrt")
    assert (identity["gpu"], identity["batch"]) == ("NVIDIA H100", 4)
    assert len(identity["models"]["segmenter"]["plan_sha256"]) == 64

    again = Heard()
    run(bundle, "again", heard=again, backend="tensorrt")
    assert again.steps == ["loading the models"]
    assert report("again")["why"] == ""
    for out in ("out", "again"):
        assert_same(Path(out), whole / "out")

    run(bundle, "cpu", backend="onnxruntime")
    there, here = files_below(Path("cpu")), files_below(Path("out"))
    assert there.keys() == here.keys()
    assert len(here) == SLICES - SLICES // 3
    for name in here:
        assert np.count_nonzero(mask(here[name]) != mask(there[name])) <= 2


@pytest.mark.parametrize("overlays", [False, True])
def test_several_gpus_leave_one_table(overlays: bool, bundle: Path, gpus: Machine, whole: Path) -> None:
    gpus(gpu(0), gpu(1), tensorrt=None)
    outcome = run(bundle, backend="auto", lanes=2, overlays=overlays)
    assert (outcome.plan.backend, outcome.counts.ok) == ("cuda", SLICES)
    assert report()["gpu"]["indexes"] == [0, 1]
    assert report()["gpu"]["proof"] == f"proven on {SLICES} slices of the input"
    assert_same(Path("out"), whole / ("overlays" if overlays else "out"))


def test_few_masks_prove_little_and_it_is_said(bundle: Path, gpus: Machine) -> None:
    heard = Heard()
    for path in list(Path("data").rglob("*.tif"))[4:]:
        path.unlink()
    run(bundle, heard=heard)
    assert heard.lines[-1].endswith("FP16 is weakly proven on 4 slices of the input")


def test_slices_that_cannot_be_read_leave_drawn_ones_to_prove_on(bundle: Path, gpus: Machine) -> None:
    for path in Path("data").rglob("*.tif"):
        path.write_bytes(b"II*\0 and nothing more")
    outcome = run(bundle)
    assert (outcome.finished, outcome.counts.quarantined) == (True, SLICES)
    assert "drawn slices" in report()["gpu"]["proof"]


def test_a_driver_that_does_not_read_the_ring_is_told_in_run_json(
    bundle: Path, gpus: Machine, unprepared: None
) -> None:
    double(fail=[["cuMemHostRegister_v2", 0, "operation not supported"]])
    assert run(bundle).counts.ok == SLICES
    assert report()["gpu"]["ring_pagelocked"] is False


def test_the_three_rates_of_a_gpu(bundle: Path, gpus: Machine, tmp_path: Path) -> None:
    options = Options(("data",), tmp_path / "none", bundle=bundle, workers=1, lanes=1, batch=BATCH)
    measured = measure(Request(options, seconds=0.1, scratch=tmp_path / "double"))
    (rates,) = measured.rates
    assert (rates.asked, rates.plan.backend, rates.batch) == ("fp16", "tensorrt", BATCH)
    for timed in (rates.runner_only, rates.from_ram, rates.disk_to_disk):
        assert (timed.slices, timed.has_mask) == (SLICES, SLICES - SLICES // 3)


# Continuations


def test_a_continuation_takes_all_that_decides_a_bit_from_the_ledger(
    bundle: Path, gpus: Machine, whole: Path
) -> None:
    run(bundle, backend="tensorrt", limit=5)
    begun = report()["gpu"]
    gpus(gpu(0, "NVIDIA L4"), gpu(1))
    outcome = run(bundle, backend="auto", batch=None, precision="auto")
    assert (outcome.plan.backend, outcome.finished, outcome.totals.slices) == ("tensorrt", True, SLICES - 5)
    assert report()["gpu"] == begun | {"indexes": [1]}
    assert_same(Path("out"), whole / "out")
    gpus(driver=Answer("absent", {}, "gone"))
    assert run(bundle, backend="auto", batch=None).nothing_new


def test_what_would_change_a_bit_is_refused(bundle: Path, gpus: Machine, plans: Path) -> None:
    run(bundle, backend="tensorrt", limit=5)
    with pytest.raises(UsageError, match="batch: 4 there, 8 now"):
        run(bundle, backend="tensorrt", batch=8)
    with pytest.raises(UsageError, match='backend: "tensorrt" there, "openvino" now'):
        run(bundle, backend="openvino", precision="fp32")
    with pytest.raises(UsageError, match="--precision fp32: a GPU computes in fp16"):
        run(bundle, backend="tensorrt", precision="fp32")
    gpus(gpu(0, "NVIDIA L4"))
    with pytest.raises(MachineError, match="begun on NVIDIA H100, and here is NVIDIA L4"):
        run(bundle, backend="tensorrt")
    gpus()
    with pytest.raises(UsageError, match=r"is not in .*elsewhere, or is of another TensorRT, driver or GPU"):
        run(bundle, backend="tensorrt", plan_cache=Path("elsewhere"))


def test_a_run_that_is_stopped_while_plans_are_built_leaves_nothing_behind(
    bundle: Path, gpus: Machine
) -> None:
    double(patience=60)
    stop = Stop()
    options = Options(
        ("data",), Path("out"), bundle=bundle, backend="tensorrt", batch=2, plan_cache=Path("mine")
    )
    outcome = score(options, Heard("building", stop), stop)
    assert (outcome.finished, outcome.totals.slices) == (False, 0)
    double()
    assert score(options).counts.ok == SLICES


# What goes wrong


def test_plans_that_fail_their_proof_are_done_without_and_it_is_said(
    bundle: Path, gpus: Machine, tmp_path: Path
) -> None:
    other = make_tiny_bundle(tmp_path / "other", sharpness=-0.5)
    double(plans_of=str(other.folder))
    cache = tmp_path / "mine"
    with pytest.raises(MachineError, match=r"the plans fail their proof .*30 slices of the input"):
        run(bundle, backend="tensorrt", plan_cache=cache)
    heard = Heard()
    outcome = run(bundle, heard=heard, backend="auto", plan_cache=cache, fresh=True)
    assert (outcome.plan.backend, outcome.counts.ok) == ("cuda", SLICES)
    assert "failed its proof here before" in heard.lines[0]
    assert heard.lines[0].endswith("; going on with cuda")
    assert "failed its proof here before" in report()["why"]
    assert stored_identity(Path("out/run.sqlite")) is not None
    assert run(bundle, backend="auto").nothing_new


def test_a_gpu_that_is_too_small_takes_half_the_batch_once_and_the_run_keeps_it(
    bundle: Path, gpus: Machine, unprepared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    double(memory=3 * 8 * SLICE_BYTES + (2 << 20))
    monkeypatch.setattr("engine.on_gpus.BATCH", 16)
    with pytest.raises(GpuMemoryError, match=r"no room for 1 lane at batches of 16 slices .*smaller --batch"):
        run(bundle, batch=16)
    heard = Heard()
    run(bundle, heard=heard, batch=None, limit=9)
    assert heard.lines[0].startswith("GPU 0: the GPU has no room for 1 lane at batches of 16 slices")
    assert heard.lines[0].endswith("going on with batches of 8")
    assert report()["gpu"]["batch"] == 8
    assert run(bundle, batch=None).counts.ok == SLICES
    assert report()["gpu"]["batch"] == 8
    double(memory=3 * 4 * SLICE_BYTES + (2 << 20))
    with pytest.raises(GpuMemoryError, match="no room for 1 lane at batches of 8 slices"):
        run(bundle, "other", batch=None)


@pytest.mark.parametrize("error", ["unknown error", "out of memory"])
def test_a_gpu_that_vanishes_costs_nothing_that_is_done(
    error: str, bundle: Path, gpus: Machine, unprepared: None, whole: Path
) -> None:
    double(fail=[["memcpy_htod_async", 7, error]])
    with pytest.raises(MachineError, match=r"^GPU 0: the GPU ") as raised:
        run(bundle)
    assert "\n" not in str(raised.value)
    done = len(rows("out"))
    assert 0 < done < SLICES
    double()
    outcome = run(bundle)
    assert outcome.totals.slices == SLICES - done
    assert_same(Path("out"), whole / "out")


def test_a_process_that_is_killed_costs_nothing_that_is_done(
    bundle: Path, gpus: Machine, unprepared: None
) -> None:
    class Kills(Watcher):
        def goes_on(self, totals: Totals) -> None:
            if totals.slices:
                for child in children():
                    if gpuchild.MODULE.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(child, signal.SIGKILL)

    write_slices(Path("data"), 200, first=SLICES)
    with pytest.raises(MachineError, match=r"GPU 0: its process was killed by SIGKILL: .* to go on"):
        run(bundle, heard=Kills())
    done = len(rows("out"))
    assert done
    assert run(bundle).totals.slices == SLICES + 200 - done


def children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    others = [task.joinpath("children").read_text().split() for task in Path("/proc/self/task").iterdir()]
    return [int(child) for found in (text, *others) for child in found]


def test_one_gpu_of_several_that_fails_is_left_out_and_its_slices_are_not(
    bundle: Path, gpus: Machine, unprepared: None, whole: Path
) -> None:
    gpus(gpu(0), gpu(1))
    double(gpus={"1": {"fail": [["memcpy_htod_async", 1, "unspecified launch failure"]]}})
    heard = Heard()
    outcome = run(bundle, heard=heard, gpus="all")
    assert (outcome.finished, outcome.counts.ok) == (True, SLICES)
    (line,) = [line for line in heard.lines if "launch failure" in line]
    assert line.startswith("GPU 1: the GPU fails (")
    assert line.endswith("; the other GPUs go on, GPU 1 is left out")
    assert len(report()["gpu"]["lost"]) == 1
    assert_same(Path("out"), whole / "out")


def test_when_the_last_gpu_fails_too_the_run_ends_and_goes_on_later(
    bundle: Path, gpus: Machine, unprepared: None, whole: Path
) -> None:
    gpus(gpu(0), gpu(1))
    double(fail=[["memcpy_htod_async", 2, "unspecified launch failure"]])
    with pytest.raises(MachineError, match=r"^GPU [01]: the GPU fails"):
        run(bundle)
    assert len(rows("out")) < SLICES
    double()
    assert run(bundle).finished
    assert_same(Path("out"), whole / "out")


def test_probabilities_that_are_no_numbers_end_the_run_in_one_line(
    gpus: Machine, unprepared: None, monkeypatch: pytest.MonkeyPatch, bundle: Path, tmp_path: Path
) -> None:
    broken = make_tiny_bundle(tmp_path / "broken", sharpness=float("nan"))
    prepared = Prepared(Graphs(broken.folder), "proven elsewhere")
    monkeypatch.setattr("engine.on_gpus.prepare", lambda request, watch, stop: prepared)
    with pytest.raises(TumorscanError, match=r"not a number \(GPU 0\): try another --backend"):
        run(broken.folder)
    assert rows("out") == []


def test_numbers_that_stop_being_numbers_cost_nothing_that_is_done(
    bundle: Path, gpus: Machine, unprepared: None, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = GpuScorer._scores, []

    def scores(self: GpuScorer, process: Any, found: Any, valid: Any) -> Scores:
        calls.append(None)
        if len(calls) > 3:
            found.probability[:] = np.nan
        return plain(self, process, found, valid)

    monkeypatch.setattr(GpuScorer, "_scores", scores)
    with pytest.raises(TumorscanError, match="not a number"):
        run(bundle)
    done = len(rows("out"))
    assert done < SLICES
    monkeypatch.setattr(GpuScorer, "_scores", plain)
    assert run(bundle).totals.slices == SLICES - done
    assert_same(Path("out"), whole / "out")


def test_what_no_gpu_does_is_said_and_done_on_the_cpu(bundle: Path, gpus: Machine) -> None:
    plan = survey(Options(("data",), Path("out"), bundle=bundle, mask_threshold=0.3)).plan
    assert plan.backend in ("openvino", "onnxruntime")
    assert plan.why == "NVIDIA H100 is left idle: --mask-threshold 0.3 is the CPU's"
    with pytest.raises(
        MachineError, match=r"^--gpus 0: NVIDIA H100 is left idle: --precision fp32 is the CPU's$"
    ):
        survey(Options(("data",), Path("out"), bundle=bundle, precision="fp32", gpus="0"))
    with pytest.raises(UsageError, match=r"--mask-threshold 0\.3: a GPU cuts masks at the bundle's own"):
        survey(Options(("data",), Path("out"), bundle=bundle, mask_threshold=0.3, backend="cuda"))
