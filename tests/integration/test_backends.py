"""Weights carried from TensorFlow to another backend of Keras: the same slices get the same answers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the train extra")
pytest.importorskip("tensorflow", reason="needs the train extra")

from trainer.fit import build_model  # noqa: E402
from trainer.presets import Kind  # noqa: E402

# Keras reads variables by np.array(), which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

VARIABLE = "TUMORSCAN_BACKEND_PYTHON"
"""Names a Python that has Keras with torch or jax; `torch:/path/python` or `jax:/path/python`."""

SCRIPT = """
import sys
import keras, numpy as np
from trainer.{kind} import build_{kind}
model = build_{kind}({arguments})
model.load_weights("{kind}.weights.h5")
assert keras.backend.backend() == sys.argv[1]
np.save("answers.npy", keras.ops.convert_to_numpy(model(np.load("slices.npy"), training=False)))
"""


def other() -> tuple[str, str]:
    backend, _, python = os.environ.get(VARIABLE, "").partition(":")
    if not python:
        pytest.skip(f"${VARIABLE} names no Python with another backend, as torch:PATH or jax:PATH")
    return backend, python


@pytest.mark.parametrize(("kind", "arguments"), [("segmenter", ""), ("classifier", "imagenet_input=True")])
def test_weights_saved_under_tensorflow_give_the_same_answers_elsewhere(
    tmp_path: Path, kind: Kind, arguments: str
) -> None:
    backend, python = other()
    rng = np.random.default_rng(0)
    slices = rng.integers(0, 256, (2, 256, 256, 3)).astype(np.uint8)
    slices[1, :, :128] = 0
    keras.config.set_dtype_policy("float32")
    model = build_model(kind, weights="file")
    for variable in model.variables:  # as if trained: no statistic is 0 or 1
        if variable.name.startswith("moving"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    model.save_weights(tmp_path / f"{kind}.weights.h5")
    np.save(tmp_path / "slices.npy", slices)
    done = subprocess.run(
        [python, "-c", SCRIPT.format(kind=kind, arguments=arguments), backend],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    mine = np.asarray(model(slices, training=False))
    assert mine.std() > 1e-3
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), mine, atol=1e-4)
