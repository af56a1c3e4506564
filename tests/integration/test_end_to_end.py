"""Phantoms are trained on, exported, scored and evaluated, each by the command a user types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("tensorflow", reason="needs the train extra")


def tumorscan(*words: str | Path, cwd: Path, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "engine.cli", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("end_to_end")


@pytest.mark.timeout(900)
def test_phantoms_are_trained_on_exported_scored_and_evaluated(work: Path) -> None:
    tumorscan("phantoms", "data", "--count", "110", "--seed", "3", cwd=work)
    common = ("--batch", "8", "--momentum", "0.5", "--precision", "float32")
    tumorscan("train", "segmenter", "data", "--run", "segmenter", "--epochs", "3", *common, cwd=work)
    said = tumorscan(
        "train", "classifier", "data", "--run", "classifier", "--epochs", "1", *common,
        "--split", "segmenter/split.json", cwd=work,
    )  # fmt: skip
    assert "precision" in said
    assert {"history.csv", "curves.png", "metrics.json", "split.json", "best.weights.h5"} <= {
        path.name for path in (work / "segmenter").iterdir()
    }

    tumorscan(
        "export",
        "data",
        "--classifier",
        "classifier",
        "--segmenter",
        "segmenter",
        "--out",
        "bundle",
        cwd=work,
    )
    manifest = json.loads((work / "bundle" / "bundle.json").read_text())
    assert manifest["training"]["keras_parity"]["probability_error_max"] <= 1e-4
    assert "Not a medical" in (work / "bundle" / "MODEL_CARD.md").read_text()

    tumorscan("score", "data/kaggle_3m", "--out", "gated", "--bundle", "bundle", "--overlays", cwd=work)
    tumorscan("score", "data/kaggle_3m", "--out", "all", "--bundle", "bundle", "--no-gate", cwd=work)
    results = pd.read_csv(work / "gated" / "results.csv", keep_default_na=False)
    assert len(results) == 110
    assert set(results["status"]) == {"ok"}
    masks = [path for path in results["mask_path"] if path]
    assert all((work / "gated" / path).is_file() for path in masks)

    table = tumorscan("evaluate", "gated", "data", "--ungated", "all", cwd=work)
    assert "volume dice" in table
    evaluation = json.loads((work / "gated" / "evaluation.json").read_text())
    assert evaluation["join"]["slices"] == 110
    assert np.isfinite(evaluation["metrics"]["classifier"]["auc"]["value"])
    assert (work / "gated" / "comparison.png").is_file() or not masks
    assert (work / "gated" / "reliability.png").is_file()
    assert (work / "gated" / "operating.png").is_file()
    gates = pd.read_csv(work / "gated" / "operating.csv")
    assert gates["passed"].iloc[0] == 1
    assert {each["gate"] for each in manifest["training"]["gates"]} >= {0.0, 0.5}
