"""Whole runs of `score` on a real GPU: within the parity gate of the CPU's, continued to the same bytes."""

# The fixtures are those of the other file.
# ruff: noqa: F811

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engine.backend import RUNTIMES, asker, choose
from engine.bundle import Bundle
from engine.errors import MachineError
from engine.parity import FP16_LIMITS
from engine.scoring import Options, Outcome, score
from tests.gpu.test_device_runners import DATA, bundle, gpu  # noqa: F401 - fixtures
from tests.runs import files_below, results, table
from trainer.phantoms import write_phantoms

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(3600)]

SLICES = 300


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(DATA) if DATA else write_phantoms(tmp_path_factory.mktemp("phantoms"), SLICES, seed=5).root


@pytest.fixture(scope="module", params=RUNTIMES)
def backend(request: pytest.FixtureRequest) -> str:
    try:
        return choose(request.param, asker()).backend
    except MachineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "plans"


def run(bundle: Bundle, data: Path, out: Path, plans: Path, **options: Any) -> Outcome:
    words = {"limit": SLICES, "plan_cache": plans, **options}
    return score(Options((str(data),), out, bundle=bundle.folder, **words))


def test_a_run_is_within_the_parity_gate_of_the_cpus(
    bundle: Bundle, data: Path, tmp_path: Path, plans: Path, backend: str
) -> None:
    outcome = run(bundle, data, tmp_path / "gpu", plans, backend=backend)
    run(bundle, data, tmp_path / "cpu", plans, backend="onnxruntime", precision="fp32")
    assert outcome.plan.backend == backend
    assert json.loads((tmp_path / "gpu" / "run.json").read_text())["gpu"]["proof"]
    here, there = table(tmp_path / "gpu"), table(tmp_path / "cpu")
    assert list(here["image_path"]) == list(there["image_path"])
    flips = np.count_nonzero(here["has_mask"] != there["has_mask"])
    assert flips <= FP16_LIMITS.flip_fraction * len(here) + 1
    both = (here["has_mask"] == "1") & (there["has_mask"] == "1")
    pixels, others = (pd.to_numeric(each["mask_pixels"][both]) for each in (here, there))
    assert both.sum() == 0 or np.mean(2 * np.minimum(pixels, others) / (pixels + others)) >= 0.99


def test_a_run_that_is_continued_with_other_lanes_leaves_the_same_bytes(
    bundle: Bundle, data: Path, tmp_path: Path, plans: Path, backend: str
) -> None:
    run(bundle, data, tmp_path / "whole", plans, backend=backend, lanes=3)
    run(bundle, data, tmp_path / "parts", plans, backend=backend, lanes=1, limit=101)
    assert run(bundle, data, tmp_path / "parts", plans, lanes=2).plan.backend == backend
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert files_below(tmp_path / "parts") == files_below(tmp_path / "whole")
