"""Two trained runs become a bundle: converted, compared, given an operating point, judged."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from pydantic import JsonValue

from engine.bundle import Bundle, Metric, Model, Normalisation, Training, record_parity, write_manifest
from engine.cascade import OperatingPoint
from engine.errors import Failure, MachineError, UsageError
from engine.parity import CPU_LIMITS
from engine.runners.onnxruntime import OnnxRuntimeRunner
from engine.scoring import Options, score
from engine.trial import open_cascade, read_slices, trial
from trainer.calibration import choose_temperature, tempered
from trainer.card import Card, Settings, write_card
from trainer.dataset import Split, load_frame
from trainer.evaluate import Evaluation, evaluate, measures_as_json
from trainer.finished import Runs
from trainer.loader import SliceBatches
from trainer.measure import Measures
from trainer.onnx_graphs import (
    classifier_graph,
    fold_for_export,
    save_graph,
    segmenter_graph,
    with_temperature,
)
from trainer.operating import ARTICLE_POINT, ask, choose, gate_table
from trainer.study import CrossValidated
from trainer.tables import manifest_metrics

log = logging.getLogger(__name__)

PROBABILITY_TOLERANCE = 1e-4
PIXEL_TOLERANCE = 1e-5
"""How far the graphs may be from Keras holding the same rounded weights."""
COMPARED_SLICES = 96
SPLIT_FILE = "split.json"
_GRAPHS: dict[Model, str] = {"classifier": "classifier.onnx", "segmenter": "segmenter.onnx"}
_VERSIONS = ("keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True, slots=True)
class Labels:
    """What a bundle and its card call the models, their data, and the data's terms of use."""

    name: str
    data: str
    terms: str = "not stated"


@dataclass(frozen=True, slots=True)
class Known:
    """All that a bundle tells besides what its test patients say."""

    runs: Runs
    labels: Labels
    settings: Settings
    differences: dict[str, JsonValue]
    crossed: CrossValidated | None


def export(
    classifier: Path,
    segmenter: Path,
    data: Path,
    out: Path,
    labels: Labels,
    say: Callable[[str], None],
    cross_validated: Path | None = None,
) -> Bundle:
    """Write a bundle into `out`, which must be new or empty.

    Its metrics are those of the split's test part, where it has one, and those of `cross_validated`, a file
    of `Pool.save`, where it is given.

    Raises:
        UsageError: run folders or a file that do not fit, or an output that holds something.
        MachineError: the graphs differ from Keras by more than the tolerances.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty: give --out a new folder")
    runs = Runs.open(classifier, segmenter)
    crossed = None if cross_validated is None else CrossValidated.load(cross_validated)
    frame = load_frame(data)
    validation = runs.split.select(frame, "validation", allow_unknown=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
        folder = Path(work) / "bundle"
        folder.mkdir()
        keras.config.set_dtype_policy("float32")
        models = {kind: fold_for_export(runs.model(kind)) for kind in runs.folders}
        say("converting")
        _save_graphs(models, folder, mask_threshold=0.5)
        settings = Settings(ARTICLE_POINT)
        if not runs.are_the_articles:
            say("choosing temperature and operating point on the validation patients")
            settings = _choose(folder, validation)
            models["classifier"] = with_temperature(models["classifier"], settings.temperature)
            _save_graphs(models, folder, settings.operating.mask_threshold)
        say(f"comparing with Keras on {COMPARED_SLICES} slices")
        differences = _compare_with_keras(models, folder, validation, settings.operating.mask_threshold)
        runs.split.save(folder / SPLIT_FILE)
        known = Known(runs, labels, settings, differences, crossed)
        bundle = _write(folder, known, None)
        if runs.split.test:
            say("judging on the test patients")
            found = _judge(bundle, frame, runs.split, data, Path(work)).measures
            bundle = _write(folder, known, found)
        say("recording the parity of other precisions on the validation patients")
        bundle = _record_bf16(bundle, validation)
        shutil.rmtree(out, ignore_errors=True)
        folder.rename(out)
    return Bundle.load(out)


def _save_graphs(models: dict[Model, keras.Model], folder: Path, mask_threshold: float) -> None:
    save_graph(classifier_graph(models["classifier"]), folder / _GRAPHS["classifier"])
    save_graph(segmenter_graph(models["segmenter"], mask_threshold), folder / _GRAPHS["segmenter"])


def _compare_with_keras(
    models: dict[Model, keras.Model], folder: Path, frame: pd.DataFrame, mask_threshold: float
) -> dict[str, JsonValue]:
    """Largest probability error and share of differing mask pixels, over slices spread through the frame."""
    rows = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, COMPARED_SLICES).astype(int))]
    batches = SliceBatches(rows, target="class", batch_size=16)
    error, different, pixels = 0.0, 0, 0
    with (
        OnnxRuntimeRunner(folder / _GRAPHS["classifier"], "classifier") as classifier,
        OnnxRuntimeRunner(folder / _GRAPHS["segmenter"], "segmenter") as segmenter,
    ):
        for index in range(len(batches)):
            images = batches[index][0].astype(np.uint8, copy=False)
            wanted = np.asarray(models["classifier"](images, training=False))[:, 1]
            error = max(error, float(np.abs(classifier.infer(images)["tumor_probability"] - wanted).max()))
            mask = np.asarray(models["segmenter"](images, training=False))[..., 0] >= mask_threshold
            different += int((mask != (segmenter.infer(images)["mask"] > 0)).sum())
            pixels += mask.size
    if not error <= PROBABILITY_TOLERANCE or different > PIXEL_TOLERANCE * pixels:
        raise MachineError(
            f"the exported graphs differ from Keras: probability by {error:.2e} "
            f"(at most {PROBABILITY_TOLERANCE}), {different} of {pixels} mask pixels (at most 1 in 100,000)"
        )
    return {
        "slices": len(rows),
        "probability_error_max": error,
        "mask_pixels_differing": different,
        "pixels": pixels,
    }


def _choose(folder: Path, validation: pd.DataFrame) -> Settings:
    cores = len(os.sched_getaffinity(0))
    with (
        OnnxRuntimeRunner(folder / _GRAPHS["classifier"], "classifier", threads=cores) as classifier,
        OnnxRuntimeRunner(
            folder / _GRAPHS["segmenter"], "segmenter", threads=cores, outputs=("mask_probability",)
        ) as segmenter,
    ):
        answers = ask(validation, classifier, segmenter)
    probability = answers.probability.astype(np.float64)
    calibration = choose_temperature(answers.truth_pixels > 0, probability, answers.volumes)
    mended = tempered(probability, calibration.value).astype(np.float32)
    answers = replace(answers, probability=mended)
    operating = choose(answers)
    return Settings(operating, calibration, gate_table(answers, operating))


def _write(folder: Path, known: Known, found: Measures | None) -> Bundle:
    """bundle.json and the card; `found` is of the test part, None where it was not judged."""
    config, runs, settings, crossed = known.runs.configs, known.runs, known.settings, known.crossed
    table = settings.gates
    training = Training.model_validate(
        {
            "data": known.labels.data,
            "data_terms": known.labels.terms,
            "presets": {kind: config[kind]["preset"]["name"] for kind in config},
            "split_file": SPLIT_FILE,
            "split_sha256": runs.split.sha256,
            "split": runs.split.kind,
            "parts": {part: len(runs.split.names(part)) for part in ("train", "validation", "test")},
            "extra": [Path(path).name for path in config["segmenter"]["extra"]],
            "classifier_weights": Path(config["classifier"]["weights"]).name,
            "segmenter_slices": config["segmenter"]["preset"]["slices"],
            "epochs": runs.epochs,
            "keras_parity": known.differences,
            "calibration": None if settings.calibration is None else settings.calibration.record(),
            "gates": None
            if table is None
            else json.loads(table.to_json(orient="records", double_precision=6)),
            "cross_validation": None if crossed is None else crossed.record(),
        }
    )
    metrics: dict[str, Metric] = {}
    if crossed is not None:
        metrics |= manifest_metrics(crossed.metrics, "cross_validated")
    if found is not None:
        metrics |= manifest_metrics(measures_as_json(found)["metrics"], "test")
    write_card(folder / "MODEL_CARD.md", Card(known.labels.name, training, settings, found, crossed))
    return write_manifest(
        folder,
        name=known.labels.name,
        date=datetime.now(UTC).date().isoformat(),
        graphs={"classifier": {"fp32": _GRAPHS["classifier"]}, "segmenter": {"fp32": _GRAPHS["segmenter"]}},
        files=["MODEL_CARD.md", SPLIT_FILE],
        normalisation=Normalisation(
            classifier="unit" if config["classifier"]["weights"] == "none" else "imagenet_bgr"
        ),
        operating=settings.operating,
        training=training,
        metrics=metrics,
        versions={package: version(package) for package in _VERSIONS},
    )


def _judge(bundle: Bundle, frame: pd.DataFrame, split: Split, data: Path, work: Path) -> Evaluation:
    """Score the test patients as a user would, with and without the gate, and measure."""
    rows = split.select(frame, "test", allow_unknown=True)
    listing = work / "test.txt"
    listing.write_text("".join(f"{path}\n" for path in rows["image_path"]))
    (work / SPLIT_FILE).write_bytes((bundle.folder / SPLIT_FILE).read_bytes())
    for gate in (True, False):
        score(
            Options(
                inputs=(),
                files_from=str(listing),
                out=work / ("gated" if gate else "ungated"),
                bundle=bundle.folder,
                backend="onnxruntime",
                precision="fp32",
                gate=gate,
            )
        )
    return evaluate(work / "gated", data, ungated=work / "ungated", split=work / SPLIT_FILE, part="test")


def _record_bf16(bundle: Bundle, validation: pd.DataFrame) -> Bundle:
    """Compare OpenVINO in bfloat16 with ONNX Runtime in float32; where the CPU has none, record nothing."""
    point = OperatingPoint.of(bundle)
    slices = read_slices((), map(os.fsencode, validation["image_path"]), truth=True, on_bad=_refuse)
    with ExitStack() as stack:
        try:
            other = stack.enter_context(open_cascade(bundle, "openvino", "bf16", point))
        except MachineError as error:
            log.info("bf16 is not measured: %s", error)
            return bundle
        reference = stack.enter_context(open_cascade(bundle, "onnxruntime", "fp32", point))
        report = trial(reference, other, slices)
    return record_parity(bundle, "openvino:bf16", report.record(CPU_LIMITS))


def _refuse(path: str, failure: Failure) -> None:
    raise UsageError(f"{path}: {failure.message}; or remove it and its mask")
