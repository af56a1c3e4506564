"""Two trained runs become a bundle: converted, compared, given an operating point, judged."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from pydantic import JsonValue

from engine.bundle import Bundle, Metric, Normalisation, Operating, Training, record_parity, write_manifest
from engine.cascade import OperatingPoint
from engine.errors import Failure, MachineError, UsageError
from engine.parity import CPU_LIMITS
from engine.runners.onnxruntime import OnnxRuntimeRunner
from engine.score import Options, score
from engine.trial import open_cascade, read_slices, trial
from trainer.card import write_card
from trainer.dataset import Split, load_frame
from trainer.evaluate import Evaluation, evaluate
from trainer.fit import build_model
from trainer.loader import SliceBatches
from trainer.metrics import Average
from trainer.onnx_graphs import classifier_graph, fold_for_export, save_graph, segmenter_graph
from trainer.operating import ARTICLE_POINT, ask, choose

log = logging.getLogger(__name__)

PROBABILITY_TOLERANCE = 1e-4
PIXEL_TOLERANCE = 1e-5
"""How far the graphs may be from Keras holding the same rounded weights."""
COMPARED_SLICES = 96
SPLIT_FILE = "split.json"
_GRAPHS = {"classifier": "classifier.onnx", "segmenter": "segmenter.onnx"}
_VERSIONS = ("keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True, slots=True)
class Labels:
    """What a bundle and its card call the models, their data, and the data's terms of use."""

    name: str
    data: str
    terms: str = "not stated"


@dataclass(frozen=True, slots=True)
class Runs:
    """What two run folders say of themselves."""

    classifier: Path
    segmenter: Path
    split: Split
    configs: dict[str, dict[str, Any]]

    @property
    def are_the_articles(self) -> bool:
        """Whether both follow the article's recipe, which names its operating point too."""
        return all(config["preset"]["name"] == "article" for config in self.configs.values())

    @classmethod
    def open(cls, classifier: Path, segmenter: Path) -> Runs:
        """Read both; UsageError when one is no finished run of its kind or their splits differ."""
        configs, splits = {}, {}
        for kind, run in (("classifier", classifier), ("segmenter", segmenter)):
            for name in ("config.json", "split.json", "best.weights.h5"):
                if not (run / name).is_file():
                    raise UsageError(f"{run} is not a run of `tumorscan train {kind}`: it has no {name}")
            configs[kind] = json.loads((run / "config.json").read_text())
            if configs[kind]["kind"] != kind:
                raise UsageError(f"{run} holds a {configs[kind]['kind']}, not a {kind}")
            splits[kind] = Split.load(run / "split.json")
        if splits["classifier"] != splits["segmenter"]:
            raise UsageError(
                f"{classifier} and {segmenter} were trained on different splits: train one with the other's "
                "split.json (--split), or the test patients of one are the training patients of the other"
            )
        return cls(classifier, segmenter, splits["classifier"], configs)


def export(
    classifier: Path, segmenter: Path, data: Path, out: Path, labels: Labels, say: Callable[[str], None]
) -> Bundle:
    """Write a bundle into `out`, which must be new or empty.

    Raises:
        UsageError: run folders that do not fit, or an output that holds something.
        MachineError: the graphs differ from Keras by more than the tolerances.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty: give --out a new folder")
    runs = Runs.open(classifier, segmenter)
    frame = load_frame(data)
    validation = runs.split.select(frame, "validation", allow_unknown=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
        folder = Path(work) / "bundle"
        folder.mkdir()
        keras.config.set_dtype_policy("float32")
        models = {kind: fold_for_export(_load(runs, kind)) for kind in ("classifier", "segmenter")}
        say("converting")
        save_graph(classifier_graph(models["classifier"]), folder / _GRAPHS["classifier"])
        save_graph(segmenter_graph(models["segmenter"], 0.5), folder / _GRAPHS["segmenter"])
        say(f"comparing with Keras on {COMPARED_SLICES} slices")
        differences = _compare_with_keras(models, folder, validation)
        say("choosing the operating point on the validation patients")
        operating = ARTICLE_POINT if runs.are_the_articles else _operating_point(folder, validation)
        save_graph(
            segmenter_graph(models["segmenter"], operating.mask_threshold), folder / _GRAPHS["segmenter"]
        )
        runs.split.save(folder / SPLIT_FILE)
        say("judging on the test patients")
        bundle = _write(folder, runs, labels, operating, differences, {}, None)
        evaluation = _judge(bundle, frame, runs.split, data, Path(work))
        bundle = _write(folder, runs, labels, operating, differences, _metrics(evaluation), evaluation)
        say("recording the parity of other precisions on the validation patients")
        bundle = _record_bf16(bundle, validation)
        shutil.rmtree(out, ignore_errors=True)
        folder.rename(out)
    return Bundle.load(out)


def _load(runs: Runs, kind: str) -> keras.Model:
    config = runs.configs[kind]
    model = build_model(kind, weights="none" if config["weights"] == "none" else "file")  # type: ignore[arg-type]
    model.load_weights((runs.classifier if kind == "classifier" else runs.segmenter) / "best.weights.h5")
    return model


def _compare_with_keras(
    models: dict[str, keras.Model], folder: Path, frame: pd.DataFrame
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
            mask = np.asarray(models["segmenter"](images, training=False))[..., 0] >= 0.5
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


def _operating_point(folder: Path, validation: pd.DataFrame) -> Operating:
    cores = len(os.sched_getaffinity(0))
    with (
        OnnxRuntimeRunner(folder / _GRAPHS["classifier"], "classifier", threads=cores) as classifier,
        OnnxRuntimeRunner(
            folder / _GRAPHS["segmenter"], "segmenter", threads=cores, outputs=("mask_probability",)
        ) as segmenter,
    ):
        return choose(ask(validation, classifier, segmenter))


def _write(
    folder: Path,
    runs: Runs,
    labels: Labels,
    operating: Operating,
    differences: dict[str, JsonValue],
    metrics: dict[str, Metric],
    evaluation: Evaluation | None,
) -> Bundle:
    config = runs.configs
    training = Training.model_validate(
        {
            "data": labels.data,
            "data_terms": labels.terms,
            "presets": {kind: config[kind]["preset"]["name"] for kind in config},
            "split_file": SPLIT_FILE,
            "split_sha256": runs.split.sha256,
            "split": runs.split.kind,
            "parts": {part: len(runs.split.names(part)) for part in ("train", "validation", "test")},
            "extra": [Path(path).name for path in config["segmenter"]["extra"]],
            "classifier_weights": Path(config["classifier"]["weights"]).name,
            "segmenter_slices": config["segmenter"]["preset"]["slices"],
            "epochs": {kind: _finished(runs, kind)["epochs"] for kind in config},
            "keras_parity": differences,
        }
    )
    normalisation = Normalisation(
        classifier="unit" if config["classifier"]["weights"] == "none" else "imagenet_bgr"
    )
    write_card(folder / "MODEL_CARD.md", labels.name, training, operating, evaluation)
    return write_manifest(
        folder,
        name=labels.name,
        date=datetime.now(UTC).date().isoformat(),
        graphs={"classifier": {"fp32": _GRAPHS["classifier"]}, "segmenter": {"fp32": _GRAPHS["segmenter"]}},
        files=["MODEL_CARD.md", SPLIT_FILE],
        normalisation=normalisation,
        operating=operating,
        training=training,
        metrics=metrics,
        versions={package: version(package) for package in _VERSIONS},
    )


def _finished(runs: Runs, kind: str) -> dict[str, Any]:
    path = (runs.classifier if kind == "classifier" else runs.segmenter) / "metrics.json"
    if not path.is_file():
        raise UsageError(f"{path.parent} is not finished: run its `tumorscan train` command again to the end")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


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


def _metrics(evaluation: Evaluation) -> dict[str, Metric]:
    """The evaluation's numbers as the manifest keeps them: group.name, the mean or the value."""
    kept = {}
    for group, metrics in evaluation.metrics.items():
        for name, metric in metrics.items():
            value = metric.mean if isinstance(metric, Average) else metric.value
            if value is None:
                continue
            low, high = metric.interval or (None, None)
            kept[f"test.{group}.{name}"] = Metric(
                value=value, low=low, high=high, unit=metric.unit, n=metric.n
            )
            if isinstance(metric, Average) and group == "volume" and metric.median is not None:
                kept[f"test.{group}.{name}.median"] = Metric(
                    value=metric.median, unit=metric.unit, n=metric.n
                )
    return kept


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
