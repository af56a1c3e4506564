"""Int8 graphs of a bundle's models: calibrated on training patients, kept where validation patients agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
from pydantic import JsonValue

from engine.bundle import Bundle, Model, record_parity, with_graph, without_graph
from engine.cascade import OperatingPoint, Scores
from engine.errors import Failure, MachineError, UsageError
from engine.parity import CPU_LIMITS, Compared, ParityReport, compare
from engine.runners import BF16_FLAGS, INT8_FLAGS, cpu_flags, parity_key
from engine.runners.base import Images
from engine.trial import Block, open_cascade, read_slices
from trainer.dataset import Split, load_frame
from trainer.int8_check import expect_int8
from trainer.int8_graph import Kernel, find_sites, kernels, prepared, quantised
from trainer.int8_ranges import measure
from trainer.int8_rounding import round_kernel

CALIBRATED_ON = 128
"""Slices, spread evenly through those of the training patients."""
FLOAT_STEMS = (0, 1, 2)
"""How many of a model's first convolutions stay in float: the least with which the masks hold."""
_BACKEND = "openvino"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Quantised:
    """The bundle with the graphs that held, and the reports of each pair of precisions, by parity's key.

    `floats` are the convolutions of each model in int8 that stay in float.
    """

    bundle: Bundle
    reports: Mapping[str, ParityReport]
    floats: Mapping[Model, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """All that a model's int8 graphs are made of, whichever convolutions stay in float."""

    model: onnx.ModelProto
    steps: Mapping[str, np.float16]
    kernels: Mapping[str, Kernel]

    def graph(self, floats: tuple[str, ...]) -> bytes:
        """The graph whose convolutions are in int8 but for `floats`."""
        whole = quantised(self.model, find_sites(self.model, floats), self.steps, self.kernels)
        made: bytes = whole.SerializeToString(deterministic=True)
        return made


@dataclass(frozen=True, slots=True)
class _Reference:
    """The validation slices, and what float32 says of each block of them."""

    paths: tuple[bytes, ...]
    scores: tuple[Scores, ...]

    def blocks(self) -> Iterator[Block]:
        """Read them again."""
        return read_slices((), self.paths, truth=True, on_bad=_refuse)


def quantise(data: Path, folder: Path, split: Path | None, say: Say) -> Quantised:
    """Put int8 graphs into the bundle in `folder`, each only where the cascade holds its parity with it.

    Ranges come from the training patients of the split that the bundle was trained on, parity from its
    validation patients, both found in `data`; `split` is for a bundle that holds none. Int8 graphs that the
    bundle has are replaced. The same input on the same machine gives the same bytes.

    Raises:
        UsageError: a bundle, split or data that do not belong together, or a slice that cannot be read.
        MachineError: a CPU or an OpenVINO that does not compute these graphs in int8.
    """
    if not cpu_flags() & INT8_FLAGS:
        raise MachineError("this CPU has no int8 dot products (VNNI), which int8 is judged with: use another")
    bundle = Bundle.load(folder)
    parts, frame = _split(bundle, split), load_frame(data)
    training = parts.select(frame, "train", allow_unknown=True)
    validation = parts.select(frame, "validation", allow_unknown=True)
    for model in ("classifier", "segmenter"):
        bundle = without_graph(bundle, model, "int8")
    chosen = training.iloc[np.unique(np.linspace(0, len(training) - 1, CALIBRATED_ON).astype(int))]
    images = np.concatenate([block.images for block in read_slices((), _paths(chosen), on_bad=_refuse)])
    say(f"calibrating on {len(images)} slices of {chosen['patient_id'].nunique()} training patients")
    ready: dict[Model, Calibrated] = {
        model: calibrate(bundle.graph(model).read_bytes(), images) for model in ("classifier", "segmenter")
    }
    say(f"float32 on {len(validation)} slices of {validation['patient_id'].nunique()} validation patients")
    reference = _score_in_float(bundle, validation)
    bundle, reports, floats = _fit(bundle, "classifier", ready["classifier"], _floats(), reference, say)
    if reports:
        bundle, more, left = _fit(bundle, "segmenter", ready["segmenter"], ("int8",), reference, say)
        reports, floats = {**reports, **more}, {**floats, **left}
    made_with: dict[str, JsonValue] = {
        "slices": len(images),
        "float": {model: list(names) for model, names in floats.items()},
    }
    for key, report in reports.items():
        bundle = record_parity(bundle, key, {**report.record(CPU_LIMITS), "calibration": made_with})
    return Quantised(bundle, reports, floats)


def calibrate(graph: bytes, images: Images) -> Calibrated:
    """From a bundle's float graph, and `images` uint8 [n,256,256,3] like those that it will score."""
    model = prepared(graph)
    ranges, moments = measure(model, images)
    return Calibrated(
        model,
        {tensor: found.step() for tensor, found in ranges.items()},
        {name: round_kernel(kernel, moments.get(name)) for name, kernel in kernels(model).items()},
    )


def _fit(
    bundle: Bundle,
    model: Model,
    ready: Calibrated,
    segmenters: tuple[str, ...],
    reference: _Reference,
    say: Say,
) -> tuple[Bundle, dict[str, ParityReport], dict[Model, tuple[str, ...]]]:
    """Give the bundle the model's first int8 graph that holds, with as few convolutions in float as can be.

    It is judged with the classifier in int8 and the segmenter in each of `segmenters`; where none holds, the
    bundle comes back without it, and without a report.
    """
    for count in FLOAT_STEMS:
        floats = tuple(list(ready.kernels)[:count])
        bundle = with_graph(bundle, model, "int8", ready.graph(floats))
        expect_int8(bundle.graph(model, "int8"))
        reports = {}
        for other in segmenters:
            key = parity_key(_BACKEND, ("int8", other))
            reports[key] = _compare(bundle, key, reference)
            say(f"{key}, {count} convolutions of the {model} in float: {_told(reports[key])}")
        if any(report.holds(CPU_LIMITS) for report in reports.values()):
            return bundle, reports, {model: floats}
    say(f"the {model} does not hold in int8")
    return without_graph(bundle, model, "int8"), {}, {}


def _told(report: ParityReport) -> str:
    figures = [f"{report.flips} of {report.slices} has_mask flips"]
    if report.mask_dice is not None:
        figures.append(f"mask Dice {report.mask_dice:.4f}")
    if report.dice_fall is not None:
        figures.append(f"Dice a volume {report.dice_reference:.4f} and {report.dice_other:.4f}")
    broken = "; ".join(report.broken(CPU_LIMITS))
    return f"{', '.join(figures)}: {broken or 'parity holds'}"


def _floats() -> tuple[str, ...]:
    """Precisions of the segmenter that this machine can judge beside a classifier in int8."""
    return ("bf16", "fp32") if cpu_flags() & BF16_FLAGS else ("fp32",)


def _score_in_float(bundle: Bundle, validation: pd.DataFrame) -> _Reference:
    paths = _paths(validation)
    with open_cascade(bundle, "onnxruntime", "fp32", OperatingPoint.of(bundle)) as cascade:
        blocks = read_slices((), paths, on_bad=_refuse)
        scores = tuple(cascade.score(block.images, _all(block)) for block in blocks)
    return _Reference(paths, scores)


def _compare(bundle: Bundle, key: str, reference: _Reference) -> ParityReport:
    backend, _, precision = key.partition(":")
    with open_cascade(bundle, backend, precision, OperatingPoint.of(bundle)) as cascade:
        return compare(
            Compared(_all(block), known, cascade.score(block.images, _all(block)), block.truth)
            for block, known in zip(reference.blocks(), reference.scores, strict=True)
        )


def _all(block: Block) -> npt.NDArray[np.bool_]:
    return np.ones(len(block.images), np.bool_)


def _paths(frame: pd.DataFrame) -> tuple[bytes, ...]:
    return tuple(map(os.fsencode, frame["image_path"]))


def _split(bundle: Bundle, given: Path | None) -> Split:
    """The split that the bundle was trained on; another would calibrate on patients kept for judging."""
    training = bundle.manifest.training
    if given is None and training.split_file is None:
        raise UsageError(f"{bundle.folder} holds no split: name the one it was trained on with --split FILE")
    path = given or bundle.folder / str(training.split_file)
    found = Split.load(path)
    if training.split_sha256 not in (None, found.sha256):
        raise UsageError(
            f"--split {path}: the bundle was trained on another split, so its test patients could be among "
            "those used here: leave --split out, the bundle has its own"
        )
    return found


def _refuse(path: str, failure: Failure) -> None:
    raise UsageError(f"{path}: {failure.message}; or remove it and its mask")
