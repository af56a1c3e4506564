"""What the end of each --help shows: commands as people type them."""

from __future__ import annotations

from typing import Final

import typer

EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "score": (
        "tumorscan score slices --out results --overlays",
        "tumorscan score slices --out results --dry-run",
        "tumorscan score --config run.toml --log-format json --metrics run.prom",
        "tumorscan score s3://archive/mri --out s3://study/results",
        "tumorscan score slices --shard 3/16 --out results/3",
        "find slices -name '*.tif' | tumorscan score --files-from - --out results --max-runtime 4h",
    ),
    "merge": ("tumorscan merge results/* --out merged",),
    "report": (
        "tumorscan report results",
        "tumorscan report results --truth slices --anonymise --out report.html",
    ),
    "bench": ("tumorscan bench slices", "tumorscan bench slices --precision fp32 --json bench.json"),
    "doctor": ("tumorscan doctor", "tumorscan doctor --json"),
    "build": ("tumorscan build slices", "tumorscan build slices --flavour tensorrt-rtx"),
    "parity": (
        "tumorscan parity slices --against openvino:bf16",
        "tumorscan parity slices --against tensorrt:fp16 --no-gate --json parity.json",
    ),
    "engines list": ("tumorscan engines list",),
    "engines inspect": ("tumorscan engines inspect segmenter --layers",),
    "engines prune": ("tumorscan engines prune --failed", "tumorscan engines prune --unused 30"),
    "train": (
        "tumorscan train segmenter lgg --run runs/segmenter",
        "tumorscan train classifier lgg --run runs/classifier --split runs/segmenter/split.json",
    ),
    "export": (
        "tumorscan export lgg --classifier runs/classifier --segmenter runs/segmenter --out my-bundle",
    ),
    "quantise": ("tumorscan quantise lgg --bundle my-bundle",),
    "evaluate": ("tumorscan evaluate results lgg --split runs/segmenter/split.json",),
    "pool": ("tumorscan pool fold1/judged fold2/judged --out pooled",),
    "compare": ("tumorscan compare baseline=judged/baseline ema=judged/ema",),
    "failures": ("tumorscan failures fold1/judged fold2/judged --pictures sheets",),
    "phantoms": ("tumorscan phantoms slices --count 60 --seed 1",),
}


def add_examples(app: typer.Typer, group: str = "") -> None:
    """Put the examples at the end of the help of every command on `app`, and of its groups' commands."""
    for command in app.registered_commands:
        command.epilog = _paragraphs(EXAMPLES.get(f"{group}{command.name}", ()))
    for below in app.registered_groups:
        if below.typer_instance is not None:
            add_examples(below.typer_instance, f"{below.typer_instance.info.name} ")


def _paragraphs(lines: tuple[str, ...]) -> str | None:
    """A paragraph each, or typer joins them to one line; indented, they are code in Markdown."""
    if not lines:
        return None
    return "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *(f"    {line}" for line in lines)))
