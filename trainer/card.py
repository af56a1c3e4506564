"""MODEL_CARD.md, written from the numbers."""

from __future__ import annotations

from pathlib import Path

from engine.bundle import Operating, Training
from trainer.evaluate import Evaluation
from trainer.metrics import Average

_ROWS = (
    ("volume", "dice", "Dice per volume"),
    ("volume", "iou", "IoU per volume"),
    ("volume", "sensitivity", "Pixel sensitivity per volume"),
    ("volume", "specificity", "Pixel specificity per volume"),
    ("tumour_slice", "dice", "Dice per tumour slice"),
    ("classifier", "auc", "AUC of tumor_probability, slices"),
    ("gate", "sensitivity", "Sensitivity at the gate, slices"),
    ("gate", "specificity", "Specificity at the gate, slices"),
    ("has_mask", "sensitivity", "Sensitivity of has_mask, slices"),
    ("has_mask", "specificity", "Specificity of has_mask, slices"),
    ("gating", "dice_lost", "Dice per volume lost to the gate"),
)


def write_card(
    path: Path, name: str, training: Training, operating: Operating, evaluation: Evaluation | None
) -> None:
    """Write the card; without an evaluation its table says that nothing was measured yet."""
    extra = training.__pydantic_extra__
    parts = extra["parts"]
    phantoms = extra["extra"]
    assert isinstance(parts, dict)
    assert isinstance(phantoms, list)
    lines = [
        f"# Model card: {name}",
        "",
        "Two models that work as a cascade: a ResNet50 classifier gives each brain-MRI slice a tumour",
        "probability, and a ResUNet segmenter draws the mask of those slices that pass the gate.",
        "",
        "## Intended use",
        "",
        "Research and benchmarking: ranking and outlining in bulk slices like those of the training data.",
        "**Not a medical device**: not for diagnosis, not for treatment, not for any decision about a",
        "person.",
        "",
        "## Input",
        "",
        "RGB slices of 256x256 with the channels of the training data (for LGG and phantoms: pre-contrast,",
        "FLAIR, post-contrast, a missing sequence replaced by FLAIR), in 0..255. Other sizes are scaled with",
        "their aspect kept. The normalisation is in the graphs.",
        "",
        "## Training data",
        "",
        f"{training.data}: {parts['train']} {extra['split']}s trained on, {parts['validation']} for choosing",
        f"epoch and operating point, {parts['test']} for the numbers below (split.json).",
        "No patient is in two parts."
        if extra["split"] == "patient"
        else "Slices were split at random, as the article does: neighbours of one patient stand in several "
        "parts, so the numbers below are far better than the models.",
        f"Terms of that data: {extra.get('data_terms')}. Treat these weights as bound by them.",
        "The classifier started from ImageNet weights of ResNet50 (all but most of its last stage)."
        if extra.get("classifier_weights") != "none"
        else "The classifier was trained from scratch.",
        f"Drawn phantoms ({', '.join(map(str, phantoms))}) joined the training part only."
        if phantoms
        else "",
        f"The segmenter was trained on {extra.get('segmenter_slices')} slices.",
        "",
        "## Operating point",
        "",
        f"Gate {operating.gate_threshold:g}, mask threshold {operating.mask_threshold:g}, at least "
        f"{operating.min_pixels} pixels at 256x256; chosen {operating.chosen}.",
        "",
        "## Numbers on the test patients",
        "",
        *_table(evaluation),
        "",
        "## Known limits",
        "",
        "Few patients judged it, so the intervals are wide. Slices of other sequences, scanners or kinds of",
        "tumour than the training data's were not seen. tumor_probability is not calibrated.",
        "",
    ]
    path.write_text("\n".join(lines))


def _table(evaluation: Evaluation | None) -> list[str]:
    if evaluation is None:
        return ["Not measured yet."]
    join = evaluation.join
    rows = ["| metric | mean | median | 95% interval | n |", "| --- | --- | --- | --- | --- |"]
    for group, name, label in _ROWS:
        metric = evaluation.metrics.get(group, {}).get(name)
        if metric is None:
            continue
        value, median = (metric.mean, metric.median) if isinstance(metric, Average) else (metric.value, None)
        interval = "" if metric.interval is None else "{:.3f} to {:.3f}".format(*metric.interval)
        rows.append(f"| {label} | {_number(value)} | {_number(median)} | {interval} | {metric.n} |")
    for institution, means in evaluation.institutions.items():
        label = f"Dice per volume at {institution or 'no institution'}"
        rows.append(f"| {label} | {_number(means['dice'])} | | | {means['volumes']} |")
    rows += [
        "",
        f"{join.slices} slices of {join.patients} test patients; intervals by resampling patients. "
        "An empty mask of an empty truth counts as Dice 1.",
    ]
    return rows


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:.3f}"
