"""The trainer's commands; `tumorscan` hangs them beside its own. Keras is imported only when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from engine.errors import MachineError, UsageError


def register(app: typer.Typer) -> None:
    """Add train, export, evaluate and phantoms to the command."""
    app.command(name="train")(train_command)
    app.command(name="export")(export_command)
    app.command(name="evaluate")(evaluate_command)
    app.command(name="phantoms")(phantoms_command)


def train_command(
    kind: Annotated[Literal["classifier", "segmenter"], typer.Argument(help="Which model to train.")],
    data: Annotated[Path, typer.Argument(help="A tree of patients' folders: X.tif beside X_mask.tif.")],
    run: Annotated[Path, typer.Option(help="The run folder; an unfinished run in it is resumed.")],
    preset: Annotated[Literal["best", "article"], typer.Option(help="The recipe.")] = "best",
    weights: Annotated[
        str, typer.Option(help="none, imagenet (downloads), or an .npz of weights by layer.")
    ] = "none",
    slices: Annotated[
        Literal["tumour", "all"] | None,
        typer.Option(help="What the segmenter is trained on (else the preset's)."),
    ] = None,
    extra: Annotated[
        list[Path] | None, typer.Option(help="A further tree, trained on whole (repeatable).")
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="A split file to use (else a new one, in the run folder).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="The most epochs (else the preset's).")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Slices a step (else the preset's).")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="The highest (else the preset's).")
    ] = None,
    momentum: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.999, help="Of batch normalisation (else the preset's); lower it for a few steps."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of split, order, augmentation and initial weights.")] = 0,
    precision: Annotated[
        Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"],
        typer.Option(help="auto: mixed_bfloat16 where the CPU computes in it."),
    ] = "auto",
) -> None:
    """Train one of the two models, or go on where a killed training stopped."""
    import dataclasses
    import logging

    from rich.console import Console

    if kind == "segmenter" and weights != "none":
        raise UsageError("--weights fills the classifier's ResNet50; the segmenter is trained from scratch")
    if weights not in ("none", "imagenet") and not Path(weights).is_file():
        raise UsageError(f"--weights {weights}: no such file")
    _need_train_extra()
    console = Console(stderr=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from trainer.fit import Watcher, train
    from trainer.presets import PRESETS
    from trainer.runs import Request

    recipe = PRESETS[(preset, kind)]
    changes: dict[str, Any] = {
        "slices": slices,
        "epochs": epochs,
        "batch_size": batch,
        "momentum": momentum,
        "learning_rate": learning_rate,
    }
    recipe = dataclasses.replace(
        recipe, **{name: value for name, value in changes.items() if value is not None}
    )
    request = Request(
        kind=kind, data=data, run=run, preset=recipe, extra=tuple(extra or ()), weights=weights,
        split=split, seed=seed, precision=precision,
    )  # fmt: skip
    metrics = _train_with_progress(request, Watcher, train, console)
    console.print_json(data=metrics)


def export_command(
    data: Annotated[Path, typer.Argument(help="The tree that both runs were trained on.")],
    classifier: Annotated[Path, typer.Option(help="The classifier's run folder.")],
    segmenter: Annotated[Path, typer.Option(help="The segmenter's run folder.")],
    out: Annotated[Path, typer.Option(help="The bundle's folder; new or empty.")],
    name: Annotated[str, typer.Option(help="The bundle's name.")] = "mine",
    data_name: Annotated[str | None, typer.Option(help="What the card calls the data (else DATA).")] = None,
    data_terms: Annotated[str, typer.Option(help="The data's terms of use, for the card.")] = "not stated",
) -> None:
    """Turn two trained runs into a bundle: ONNX graphs, operating point, model card, test numbers."""
    from rich.console import Console

    _need_train_extra("tf2onnx", "onnx")
    from trainer.export import Labels, export

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    labels = Labels(name, data_name or str(data), data_terms)
    bundle = export(classifier, segmenter, data, out, labels, console.print)
    console.print(f"{out}: bundle {bundle.manifest.name}, {bundle.manifest.operating.chosen}")


def evaluate_command(
    results: Annotated[Path, typer.Argument(help="The output folder of `tumorscan score`.")],
    data: Annotated[Path, typer.Argument(help="The tree with the true masks.")],
    ungated: Annotated[
        Path | None, typer.Option(help="A second output folder, scored with --no-gate: what the gate costs.")
    ] = None,
    split: Annotated[Path | None, typer.Option(help="A split file: judge one of its parts.")] = None,
    part: Annotated[
        Literal["train", "validation", "test"] | None, typer.Option(help="Which part (test, with --split).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where evaluation.json goes (else into RESULTS).")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Compare the masks of a run with the truth: Dice, AUC, confusion at the gate, each with its interval."""
    from rich.console import Console

    _need_train_extra()
    from trainer.evaluate import evaluate, render
    from trainer.pictures import choose_rows, comparison_picture

    folder = out or results
    found = evaluate(results, data, ungated=ungated, split=split, part=part, seed=seed)
    found.save(folder)
    console = Console(highlight=False)
    console.print(render(found))
    rows = choose_rows(found.slices)
    if len(rows):
        comparison_picture(rows, folder / "comparison.png")
        console.print(f"{folder / 'evaluation.json'}, volumes.csv, comparison.png", soft_wrap=True)


def phantoms_command(
    dest: Annotated[Path, typer.Argument(metavar="DIR", help="Where kaggle_3m/ is written.")],
    count: Annotated[int, typer.Option(help="How many slices.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed draws the same slices.")] = 0,
) -> None:
    """Draw MRI-like slices with and without lesions, with true masks, for tests and demonstration."""
    from rich.console import Console

    from trainer.phantoms import write_phantoms

    made = write_phantoms(dest, count, seed)
    Console(highlight=False, soft_wrap=True).print(
        f"{made.root}: {made.slices:,} slices of {made.patients:,} drawn patients, "
        f"{made.lesion_slices:,} with a lesion"
    )


def _train_with_progress(request: Any, watcher_type: Any, train: Any, console: Any) -> dict[str, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=None)

        def start(first: int, epochs: int, steps: int) -> None:
            progress.update(bar, description=f"epoch {first + 1}/{epochs}", total=steps)

        def step(epoch: int, done: int) -> None:
            progress.update(bar, description=f"epoch {epoch + 1}/{request.preset.epochs}", completed=done)

        def epoch(number: int, figures: dict[str, float]) -> None:
            text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            console.print(
                f"epoch {number + 1}/{request.preset.epochs}  {text}", highlight=False, soft_wrap=True
            )

        result: dict[str, Any] = train(request, watcher_type(on_start=start, on_step=step, on_epoch=epoch))
        return result


def _need_train_extra(*more: str) -> None:
    import importlib.util
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    missing = [
        name for name in ("keras", "sklearn", "matplotlib", *more) if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise MachineError(f"this needs {', '.join(missing)}: pip install 'tumorscan[train]'")
