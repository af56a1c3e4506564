"""A training is killed, after an epoch or within one, and goes on as if it had not been."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from engine.errors import UsageError

pytest.importorskip("tensorflow", reason="needs the train extra")
pytest.importorskip("h5py", reason="needs the train extra")

import h5py

from trainer import fit
from trainer.dataset import Split, load_frame, slice_keys
from trainer.phantoms import write_phantoms
from trainer.presets import PRESETS, with_fractions
from trainer.runs import Request

PHANTOMS = 26
EPOCHS = 3
PATIENCE_S = 480
"""However slow the machine: a training that is stuck, not one that is slow."""


def command(run: str, *options: str) -> list[str]:
    words = ["train", "segmenter", "data", "--run", run, "--split", "split.json", "--epochs", str(EPOCHS)]
    words += ["--batch", "2", "--momentum", "0.5", "--precision", "float32", "--slices", "0.3"]
    words += ["--set", "ema=0.8", "--set", "bn_batches=2", "--set", "warmup=5", *options]
    return [sys.executable, "-m", "engine.cli", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TF_CPP_MIN_LOG_LEVEL": "3"}


def train(work: Path, run: str, *options: str, status: int = 0) -> str:
    """Runs to the end and gives what was said; an option given again overrides the common ones."""
    done = subprocess.run(
        command(run, *options),
        cwd=work,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def train_and_kill(work: Path, run: str, reached: Callable[[Path], bool]) -> None:
    """Starts a training and sends SIGKILL as soon as its folder shows what was waited for."""
    with (work / f"{run}.log").open("w") as log:
        process = subprocess.Popen(command(run), cwd=work, env=environment(), stdout=log, stderr=log)
        try:
            end = time.monotonic() + PATIENCE_S
            while not reached(work / run):
                assert process.poll() is None, (work / f"{run}.log").read_text()
                assert time.monotonic() < end, "the training is stuck"
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL


def two_epochs_are_backed_up(run: Path) -> bool:
    path = run / "backup" / "training_metadata.json"
    return path.exists() and path.read_text().startswith('{"epoch": 2')


def history(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "history.csv").drop(columns=["seconds", "cpu_seconds"])


def arrays(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """All of a weights file: weights and, in a backup, their averages and the optimizer's state."""
    found: dict[str, npt.NDArray[np.float64]] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = np.array(item, np.float64)

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def assert_the_same_weights(first: Path, second: Path) -> None:
    one, other = arrays(first), arrays(second)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-4, err_msg=name)


def fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_data(work: Path) -> None:
    """Phantoms, and a split with all but 3 tumour slices to train on, 2 to validate, 1 to test."""
    write_phantoms(work / "data", PHANTOMS, seed=3)
    frame = load_frame(work / "data")
    tumours = slice_keys(frame[frame["mask"] == 1])
    others = slice_keys(frame[frame["mask"] == 0])  # three in ten of them are trained on, others each epoch
    parts = (*tumours[3:], *others), tuple(tumours[:2]), tuple(tumours[2:3])
    Split("slice", 0, *parts).save(work / "split.json")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing disturbed, and one that was killed after two of three epochs, twice."""
    folder = tmp_path_factory.mktemp("resume")
    write_data(folder)
    train(folder, "undisturbed")
    train_and_kill(folder, "killed", two_epochs_are_backed_up)
    for copy in ("torn", "within"):
        shutil.copytree(folder / "killed", folder / copy)
    return folder


@pytest.mark.timeout(4 * PATIENCE_S)
def test_a_killed_training_ends_as_an_undisturbed_one(work: Path) -> None:
    assert history(work / "killed")["epoch"].tolist() == [0, 1]
    assert not (work / "killed" / "metrics.json").exists()
    said = train(work, "killed")
    assert "epoch 3/3" in said
    assert "epoch 2/3" not in said
    resumed, undisturbed = history(work / "killed"), history(work / "undisturbed")
    assert resumed["epoch"].tolist() == [0, 1, 2]
    # The same weights, optimizer, learning rate and order of slices: only then are the losses the same.
    pd.testing.assert_frame_equal(resumed, undisturbed, rtol=1e-3)
    # To the last: what trains, what averages, what was kept.
    for name in ("backup/latest.weights.h5", "best.weights.h5"):
        assert_the_same_weights(work / "killed" / name, work / "undisturbed" / name)
    metrics = json.loads((work / "killed" / "metrics.json").read_text())
    assert metrics["validation"]["loss"] == pytest.approx(undisturbed["val_loss"].min(), rel=1e-3)
    assert metrics["epochs"] == EPOCHS
    assert metrics["steps"] % EPOCHS == 0


def test_a_training_that_was_killed_before_the_backup_of_an_epoch_runs_that_epoch_again(work: Path) -> None:
    backup = work / "within" / "backup"
    for name in ("latest.weights.h5", "training_metadata.json"):  # the second epoch was not backed up yet
        (backup / f"{name}.bkp").replace(backup / name)
    said = train(work, "within")
    assert "epoch 1/3" not in said
    assert "epoch 2/3" in said
    pd.testing.assert_frame_equal(history(work / "within"), history(work / "undisturbed"), rtol=1e-3)
    assert_the_same_weights(work / "within" / "best.weights.h5", work / "undisturbed" / "best.weights.h5")


def test_an_epoch_whose_backup_was_torn_runs_again_and_does_not_overwrite_better_weights(work: Path) -> None:
    run = work / "torn"
    weights, metadata = run / "backup" / "latest.weights.h5", run / "backup" / "training_metadata.json"
    written = metadata.stat().st_mtime
    os.utime(weights, (written + 1, written + 1))  # as if killed before the epoch was written
    rows = pd.read_csv(run / "history.csv")
    rows.loc[0, "val_loss"] = 1e-6  # no epoch to come can be better
    rows.to_csv(run / "history.csv", index=False)
    before = fingerprint(run / "best.weights.h5")

    said = train(work, "torn")
    assert "epoch 1/3" not in said
    assert "epoch 2/3" in said
    resumed, undisturbed = history(run), history(work / "undisturbed")
    assert resumed["epoch"].tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(resumed.loc[1:], undisturbed.loc[1:], rtol=1e-3)
    assert fingerprint(run / "best.weights.h5") == before


def test_another_request_on_the_same_folder_is_refused_with_the_options_that_differ(work: Path) -> None:
    files = sorted((path, path.stat().st_mtime_ns) for path in (work / "undisturbed").rglob("*"))
    said = train(
        work, "undisturbed", "--epochs", "4", "--batch", "4", "--seed", "1", "--slices", "all", "--set",
        "ema=0.9", status=2,
    )  # fmt: skip
    assert "undisturbed holds a training with another --batch, --epochs, --seed, --set ema, --slices;" in said
    assert "Traceback" not in said
    assert sorted((path, path.stat().st_mtime_ns) for path in (work / "undisturbed").rglob("*")) == files


def test_a_training_that_could_not_begin_leaves_its_folder_free(work: Path) -> None:
    request = Request(
        kind="segmenter",
        data=work / "data",
        run=work / "free",
        preset=PRESETS[("best", "segmenter")],
        split=work / "missing.json",
        precision="float32",
    )
    with pytest.raises(UsageError, match=r"cannot read the split .*missing\.json"):
        fit.train(request)
    assert not request.run.exists()


# Keras reads the learning rate by np.array(), which NumPy 2.4 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_training_may_keep_nobody_back_and_look_at_a_few_slices_only(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", PHANTOMS, seed=3)
    recipe = replace(PRESETS[("best", "segmenter")], split="slice", epochs=1, batch_size=2, slices="all")
    request = Request(
        kind="segmenter",
        data=tmp_path / "data",
        run=tmp_path / "run",
        preset=with_fractions(recipe, 0.2, 0.0),
        limit=3,
        precision="float32",
    )
    metrics = fit.train(request)
    assert set(metrics) == {"validation", "epochs", "steps"}
    assert metrics["validation"]["slices"] == 3
    split = Split.load(request.run / "split.json")
    assert (len(split.train), len(split.validation), split.test) == (21, 5, ())


def test_a_finished_training_called_again_trains_no_further(work: Path) -> None:
    before = history(work / "undisturbed")
    weights = fingerprint(work / "undisturbed" / "best.weights.h5")
    assert "epoch" not in train(work, "undisturbed").replace('"epochs"', "")
    pd.testing.assert_frame_equal(history(work / "undisturbed"), before)
    assert fingerprint(work / "undisturbed" / "best.weights.h5") == weights
