"""The bundle that ships, on the phantoms that a newcomer scores, by the README's own first command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import pandas as pd
import pytest

from engine.bundle import Bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tumorscan parts of the README's first command were run."""
    folder = tmp_path_factory.mktemp("newcomer")
    readme = (ROOT / "README.md").read_text()
    line = readme.split("<!-- main job -->")[1].split("```sh\n")[1].split("\n```")[0]
    parts = [part.strip() for part in line.split("&&")]
    calls = [shlex.split(part)[1:] for part in parts if part.startswith(".venv/bin/tumorscan ")]
    assert [call[0] for call in calls] == ["phantoms", "score"]
    for call in calls:
        done = subprocess.run(
            [sys.executable, "-m", "engine.cli", *call],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    return folder


def test_the_readmes_first_command_writes_a_table_masks_and_pictures(scored: Path) -> None:
    assert (scored / "results" / "results.csv").is_file()
    assert list((scored / "results" / "masks").rglob("*_mask.png"))
    assert list((scored / "results" / "overlays").rglob("*_overlay.png"))


def test_the_shipped_bundle_marks_the_phantoms_lesions_and_few_slices_without(scored: Path) -> None:
    """It was trained on patients alone, so that bright spots of drawn brains are new to it."""
    results = pd.read_csv(scored / "results" / "results.csv", keep_default_na=False)
    truth = [_has_lesion(scored / path) for path in results["image_path"]]
    marked = results["has_mask"].astype(int)
    lesions, free = marked[pd.Series(truth)], marked[~pd.Series(truth)]
    assert len(lesions) > 20
    assert lesions.mean() >= 0.95
    assert free.mean() < 0.15


def test_the_shipped_bundle_says_what_it_is(scored: Path) -> None:
    bundle = Bundle.load(Bundle.default_folder())
    card = (bundle.folder / "MODEL_CARD.md").read_text()
    assert "Not a medical" in card
    assert "non-commercial" in card
    assert bundle.manifest.metrics["cross_validated.volume.dice"].low is not None


def _has_lesion(image: Path) -> bool:
    mask = cv2.imread(str(image.with_name(f"{image.stem}_mask.tif")), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    return bool(mask.any())
