"""The same input and identity give the same bytes, whatever happens in which order."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from engine.bundle import Bundle
from engine.runners import BACKENDS, open_runner
from engine.scoring import Options, Stop, Watcher, score
from tests.badfiles import png
from tests.faults import shim
from tests.faults.scene import Left
from tests.runs import command, environment, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle, tiny_slices

SLICES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input with slices of several sizes and two bad ones, and a bundle."""
    folder = tmp_path_factory.mktemp("determinism")
    write_slices(folder / "data", SLICES, patients=3)
    for side in (17, 90, 300):
        (folder / "data" / "p1" / f"side_{side}.png").write_bytes(png(side, side + 40))
    (folder / "data" / "p0" / "empty.tif").write_bytes(b"")
    (folder / "data" / "p2" / "cut.png").write_bytes(png(64, 64)[:-30])
    make_tiny_bundle(folder / "bundle")
    return folder


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def scored(out: str, backend: str, **options: object) -> Left:
    """Score the folder here and now; what that left."""
    score(Options(("data",), Path(out), bundle=Path("bundle"), backend=backend, **options))  # type: ignore[arg-type]
    return Left.of(Path(out))


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Left]:
    """What a run of one worker and one slice at a time leaves, by backend."""
    whole = {}
    for backend in BACKENDS:
        words = ("--bundle", "bundle", "--backend", backend, "--workers", "1", "--batch", "1")
        assert tumorscan("score", "data", "--out", f"one_{backend}", *words, cwd=folder).status == 4
        whole[backend] = Left.of(folder / f"one_{backend}")
    return whole


@pytest.mark.parametrize("backend", BACKENDS)
def test_workers_and_batch_change_no_byte(expected: dict[str, Left], backend: str) -> None:
    for workers, batch in ((2, 3), (3, 16), (1, 64)):
        left = scored(f"{backend}_{workers}_{batch}", backend, workers=workers, batch=batch)
        assert expected[backend].difference(left) == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_points_of_resumption_change_no_byte(expected: dict[str, Left], backend: str) -> None:
    chance = random.Random(4)
    out = f"resumed_{backend}"
    for limit in (1, 2, 19, 40, None):
        left = scored(out, backend, limit=limit, batch=chance.choice((1, 4, 7)))
    assert expected[backend].difference(left) == ""


def test_stops_at_any_moment_change_no_byte(expected: dict[str, Left]) -> None:
    class StopsAtOnce(Watcher):
        def __init__(self, stop: Stop) -> None:
            self.stop = stop

        def goes_on(self, totals: object) -> None:
            self.stop.asked.set()

    options = Options(
        ("data",), Path("stopped"), bundle=Path("bundle"), backend="onnxruntime", workers=2, batch=2
    )
    for _ in range(40):
        stop = Stop()
        if score(options, StopsAtOnce(stop), stop).finished:
            break
    assert expected["onnxruntime"].difference(Left.of(Path("stopped"))) == ""


@pytest.mark.skipif(bool(shim.why_not()), reason=shim.why_not())
def test_the_order_in_which_files_are_read_changes_no_byte(folder: Path, expected: dict[str, Left]) -> None:
    """The first files of the input are the slowest to read, so that all others overtake them."""
    import subprocess

    env = shim.calls("read", "/data/p0/", do="sleep 15", count=0, mark=folder / "mark")
    words = ("--bundle", "bundle", "--backend", "onnxruntime", "--workers", "2", "--batch", "2")
    line = command("score", "data", "--out", "overtaken", *words)
    done = subprocess.run(line, env={**environment(), **env}, capture_output=True, check=False)
    assert done.returncode == 4, done.stderr
    assert (folder / "mark").exists()
    assert expected["onnxruntime"].difference(Left.of(Path("overtaken"))) == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_runners_batch_and_threads_change_no_bit(folder: Path, backend: str) -> None:
    """So it was on 64 real slices and the shipped bundle in float32. Not so OpenVINO in bfloat16, batch 16.

    (Its tumour probabilities differ by up to 0.002 then; a run computes one slice at a time, and never so.)
    """
    bundle, images = Bundle.load(folder / "bundle"), tiny_slices(13, seed=5)
    for model, outputs in (("classifier", None), ("segmenter", ("mask", "mask_pixels", "mask_probability"))):
        results = []
        for batch, threads in itertools.product((1, 2, 5, 16), (1, 2)):
            with open_runner(backend, bundle, model, batch=batch, threads=threads, outputs=outputs) as runner:
                results.append(runner.infer(images))
        for other in results[1:]:
            for name, values in results[0].items():
                np.testing.assert_array_equal(other[name], values, strict=True)
