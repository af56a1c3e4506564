from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engine.bundle import Bundle
from engine.cascade import OperatingPoint
from engine.errors import UsageError
from engine.flips import NO_FLIPS, Flips
from engine.scorer import gate_for_gpu
from engine.scoring import Options, Outcome, score
from tests import tinybundle
from tests.runs import files_below, results, table, tumorscan, write_slices

SLICES = 7


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle whose segmenter leans to one side: it marks what lies two pixels to the right."""
    graph = tinybundle.segmenter_graph()
    blur = np.zeros((1, 3, 3, 5), np.float32)
    blur[0, 1, 1, 4] = 2
    kernel = next(each for each in graph.graph.initializer if each.name == "blur")
    kernel.CopyFrom(numpy_helper.from_array(blur, "blur"))
    convolution = next(node for node in graph.graph.node if node.op_type == "Conv")
    next(each for each in convolution.attribute if each.name == "pads").ints[:] = [1, 2, 1, 2]
    onnx.checker.check_model(graph)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tinybundle, "segmenter_graph", lambda: graph)
        return tinybundle.make_tiny_bundle(tmp_path_factory.mktemp("bundle")).folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_slices(Path("data"), SLICES)
    return Path("data")


def run(bundle: Path, out: str, flips: Flips = NO_FLIPS, **options: Any) -> Outcome:
    words = {"backend": "onnxruntime", "workers": 1, **options}
    return score(Options(("data",), Path(out), bundle=bundle, flips=flips, **words))


def lesion_and_mask(out: str, number: int) -> tuple[float, float]:
    """The middle column of slice `number`'s lesion, and of its mask."""
    mask = cv2.imread(f"{out}/masks/p{number % 4}/s_{number}.tif_mask.png", cv2.IMREAD_UNCHANGED)
    assert mask is not None
    bright = tinybundle.tiny_slice(number, lesion=True)[:, :, 1] >= 220
    return tuple(float(np.nonzero(pixels)[1].mean()) for pixels in (bright, mask))  # type: ignore[return-value]


def test_a_model_that_leans_to_one_side_stands_upright_with_flips(data: Path, bundle: Path) -> None:
    run(bundle, "plain")
    run(bundle, "flipped", Flips("horizontal"))
    for number in (0, 2, 3, 5, 6):
        lesion, mask = lesion_and_mask("plain", number)
        assert mask == pytest.approx(lesion - 2, abs=0.3)
        lesion, mask = lesion_and_mask("flipped", number)
        assert mask == pytest.approx(lesion, abs=0.3)
    assert list(table(Path("flipped"))["tumor_probability"]) == list(
        table(Path("plain"))["tumor_probability"]
    )


def test_batch_and_workers_do_not_change_a_byte_of_a_flipped_run(data: Path, bundle: Path) -> None:
    flips = Flips("all", classifier=True)
    run(bundle, "out", flips)
    for batch, workers in ((3, 2), (64, 1)):
        run(bundle, f"b{batch}", flips, batch=batch, workers=workers)
        assert results(Path(f"b{batch}")) == results(Path("out"))
        assert files_below(Path(f"b{batch}")) == files_below(Path("out"))


def test_flips_belong_to_a_run(data: Path, bundle: Path) -> None:
    run(bundle, "out", Flips("horizontal"), limit=2)
    for named, flips in (
        ('flips: "horizontal" there, "none" now', NO_FLIPS),
        ('flips: "horizontal" there, "all" now', Flips("all")),
        ("flip_classifier: false there, true now", Flips("horizontal", classifier=True)),
    ):
        with pytest.raises(UsageError, match=named):
            run(bundle, "out", flips)
    run(bundle, "out", Flips("horizontal"))
    run(bundle, "whole", Flips("horizontal"))
    assert results(Path("out")) == results(Path("whole"))


def test_the_command_flips_and_run_json_says_so(data: Path, bundle: Path) -> None:
    words = ("data", "--out", "out", "--bundle", bundle, "--backend", "onnxruntime", "--flips", "horizontal")
    assert tumorscan("score", *words, "--flip-classifier", cwd=Path.cwd()).status == 0
    point = json.loads(Path("out/run.json").read_text())["operating_point"]
    assert (point["flips"], point["flip_classifier"]) == ("horizontal", True)
    lesion, mask = lesion_and_mask("out", 3)
    assert mask == pytest.approx(lesion, abs=0.3)
    ran = tumorscan("score", "data", "--out", "other", "--flip-classifier", cwd=Path.cwd())
    assert ran.status == 2
    assert "--flip-classifier flips as --flips says" in ran.err


def test_probabilities_that_are_saved_are_the_mean_over_the_flips(data: Path, bundle: Path) -> None:
    run(bundle, "out", Flips("horizontal"), save_probabilities=True)
    run(bundle, "plain", save_probabilities=True)
    path = next(Path("out/probabilities").rglob("s_3*"))
    flipped = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    plain = cv2.imread(str(path).replace("out", "plain", 1), cv2.IMREAD_UNCHANGED)
    assert flipped is not None
    assert plain is not None
    assert np.abs(flipped.astype(int) - plain).max() > 100


def test_a_gpu_refuses_flips_in_one_line(bundle: Path) -> None:
    point = OperatingPoint.of(Bundle.load(bundle), flips=Flips("horizontal"))
    with pytest.raises(UsageError, match="--flips horizontal: a GPU scores each slice as it is"):
        gate_for_gpu(point)
