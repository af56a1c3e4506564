"""The trainer's commands; `tumorscan` hangs them beside its own. Keras is imported only when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from engine.errors import UsageError
from trainer import quantise_command, study_commands
from trainer.extra import need_train_extra

if TYPE_CHECKING:
    from trainer.measure import Measures

_SPLIT: dict[str, Any] = {"rich_help_panel": "Who is trained on"}
_RECIPE: dict[str, Any] = {"rich_help_panel": "The recipe (else the preset's)"}


def register(app: typer.Typer) -> None:
    """Add train, export, quantise, evaluate, pool, compare, failures and phantoms to the command."""
    app.command(name="train")(train_command)
    app.command(name="export")(export_command)
    quantise_command.register(app)
    app.command(name="evaluate")(evaluate_command)
    app.command(name="pool")(pool_command)
    study_commands.register(app)
    app.command(name="phantoms")(phantoms_command)


def train_command(
    kind: Annotated[Literal["classifier", "segmenter"], typer.Argument(help="Which model to train.")],
    data: Annotated[Path, typer.Argument(help="A tree of patients' folders: X.tif beside X_mask.tif.")],
    run: Annotated[Path, typer.Option(help="The run folder; an unfinished run in it is resumed.")],
    preset: Annotated[Literal["best", "article"], typer.Option(help="The recipe.")] = "best",
    weights: Annotated[
        str, typer.Option(help="none, imagenet (downloads), or an .npz of weights by layer.")
    ] = "none",
    extra: Annotated[
        list[Path] | None, typer.Option(help="A further tree, trained on whole (repeatable).")
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="A split file to use (else a new one, in the run folder).", **_SPLIT)
    ] = None,
    by: Annotated[
        Literal["patient", "slice"] | None,
        typer.Option(help="Split patients or single slices, which leaks (else the preset's).", **_SPLIT),
    ] = None,
    folds: Annotated[
        int, typer.Option(min=0, help="Cross-validate: deal the patients into so many folds.", **_SPLIT)
    ] = 0,
    fold: Annotated[int, typer.Option(min=0, help="The fold to test on, counted from 1.", **_SPLIT)] = 0,
    test_fraction: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.9, help="The test part; 0 keeps nobody back (else the preset's).", **_SPLIT
        ),
    ] = None,
    validation_fraction: Annotated[
        float | None,
        typer.Option(min=0.01, max=0.9, help="The validation part (else the preset's).", **_SPLIT),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="The most epochs (else the preset's).", **_RECIPE)
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Slices a step.", **_RECIPE)] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="The highest.", **_RECIPE)] = None,
    momentum: Annotated[
        float | None,
        typer.Option(min=0, max=0.999, help="Of batch normalisation; lower it for a few steps.", **_RECIPE),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            help="What the segmenter sees: tumour, all, or a share of the others (0.25).", **_RECIPE
        ),
    ] = None,
    loss: Annotated[
        Literal["focal-tversky", "tversky+bce"] | None, typer.Option(help="Of the segmenter.", **_RECIPE)
    ] = None,
    augmentation: Annotated[
        Literal["none", "light", "full"] | None, typer.Option(help="How strong.", **_RECIPE)
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            help="Layers to leave as they are, by the beginnings of names (conv1,conv2).", **_RECIPE
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any other value of the recipe: ema=0, augmentation.elastic=0 (repeatable).",
            **_RECIPE,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="At most so many slices of each part, for a quick look; 0 is all.")
    ] = 0,
    seed: Annotated[
        int, typer.Option(min=0, help="Of split, order, augmentation, drop-out and initial weights.")
    ] = 0,
    precision: Annotated[
        Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"],
        typer.Option(help="auto: mixed_bfloat16 where the CPU computes in it."),
    ] = "auto",
    cache_gib: Annotated[
        float | None,
        typer.Option(min=0, help="Memory for decoded slices, in GiB (else a quarter of what is free)."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Threads that make batches; more help where a GPU waits for them.")
    ] = 1,
) -> None:
    """Train one of the two models, or go on where a killed training stopped.

    Exit status: 0 trained; 2 wrong use; 3 the machine lacks something; 130 interrupted, and the same command
    continues after the last whole epoch.
    """
    import logging

    from rich.console import Console

    if kind == "segmenter" and weights != "none":
        raise UsageError("--weights fills the classifier's ResNet50; the segmenter is trained from scratch")
    if weights not in ("none", "imagenet") and not Path(weights).is_file():
        raise UsageError(f"--weights {weights}: no such file")
    if (folds > 0) != (fold > 0) or fold > folds or folds == 1:
        raise UsageError(f"--folds {folds} --fold {fold}: give both, two folds or more, and a fold from 1")
    if split is not None and (folds or by or test_fraction is not None or validation_fraction is not None):
        raise UsageError("--split says who is trained on: leave out --by, --folds, --fold and the fractions")
    if folds and test_fraction is not None:
        raise UsageError("--test-fraction: with --folds the fold is the test part; leave one of them out")
    need_train_extra()
    from trainer.presets import PRESETS, with_fractions, with_settings
    from trainer.progress import Progress

    changes = {
        "split": by,
        "epochs": epochs,
        "batch_size": batch,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "slices": slices,
        "loss": loss,
        "augmentation": augmentation,
        "freeze": freeze,
    }
    named = {name: str(value) for name, value in changes.items() if value is not None}
    recipe = with_settings(PRESETS[(preset, kind)], {**named, **_pairs(settings or [])})
    recipe = with_fractions(recipe, validation_fraction, test_fraction)
    console = Console(stderr=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from trainer.cache import default_limit
    from trainer.fit import train
    from trainer.runs import Request

    request = Request(
        kind=kind, data=data, run=run, preset=recipe, extra=tuple(extra or ()), weights=weights,
        split=split, folds=folds, fold=fold, limit=limit, seed=seed, precision=precision,
        cache=default_limit() if cache_gib is None else int(cache_gib * 2**30), workers=workers,
    )  # fmt: skip
    with Progress(console, recipe.epochs) as progress:
        metrics = train(request, progress.watcher())
    console.print_json(data=metrics)


def export_command(
    data: Annotated[Path, typer.Argument(help="The tree that both runs were trained on.")],
    classifier: Annotated[Path, typer.Option(help="The classifier's run folder.")],
    segmenter: Annotated[Path, typer.Option(help="The segmenter's run folder.")],
    out: Annotated[Path, typer.Option(help="The bundle's folder; new or empty.")],
    name: Annotated[str, typer.Option(help="The bundle's name.")] = "mine",
    data_name: Annotated[str | None, typer.Option(help="What the card calls the data (else DATA).")] = None,
    data_terms: Annotated[str, typer.Option(help="The data's terms of use, for the card.")] = "not stated",
    cross_validated: Annotated[
        Path | None, typer.Option(help="A file of `tumorscan pool`: the recipe's numbers, for the bundle.")
    ] = None,
) -> None:
    """Turn two trained runs into a bundle: ONNX graphs, operating point, model card, test numbers.

    Exit status: 0 done; 2 wrong use; 3 the machine lacks something.
    """
    from rich.console import Console

    need_train_extra("tf2onnx", "onnx")
    from trainer.export import Labels, export

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    labels = Labels(name, data_name or str(data), data_terms)
    bundle = export(classifier, segmenter, data, out, labels, console.print, cross_validated)
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
    """Compare the masks of a run with the truth: Dice, AUC, confusion at the gate, each with its interval.

    Exit status: 0 done; 2 wrong use; 3 the machine lacks something.
    """
    from rich.console import Console

    need_train_extra()
    from trainer.evaluate import evaluate
    from trainer.pictures import choose_rows, comparison_picture
    from trainer.tables import terminal_table

    folder = out or results
    found = evaluate(results, data, ungated=ungated, split=split, part=part, seed=seed)
    found.save(folder)
    console = Console(highlight=False, soft_wrap=True)
    console.print(terminal_table(found.measures, str(results), found.join.notes()))
    written = ["dice.csv", "slices.csv", *_draw_measures(found.measures, folder, found.gate_threshold)]
    rows = choose_rows(found.measures.slices)
    if len(rows):
        comparison_picture(rows, folder / "comparison.png")
        written.append("comparison.png")
    console.print(f"{folder / 'evaluation.json'}, {', '.join(written)}")


def pool_command(
    evaluations: Annotated[
        list[Path], typer.Argument(metavar="FOLD...", help="Folders that evaluate wrote, one a fold.")
    ],
    out: Annotated[Path, typer.Option(help="Where cross-validated.json, tables and curves go.")],
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Pool the evaluated folds of a cross-validation: each patient judged by a model that never saw it.

    Exit status: 0 done; 2 wrong use; 3 the machine lacks something.
    """
    from rich.console import Console

    need_train_extra()
    from trainer.study import POOL_FILE, pool
    from trainer.tables import terminal_table

    found = pool(evaluations, seed)
    found.save(out)
    notes = [f"{len(found.folds)} folds, {found.patients} of {found.of_patients} patients"]
    console = Console(highlight=False, soft_wrap=True)
    console.print(terminal_table(found.measures, "cross-validated", notes))
    written = ["cross-validated.md", "dice.csv", *_draw_measures(found.measures, out, None)]
    console.print(f"{out / POOL_FILE}, {', '.join(written)}")


def phantoms_command(
    dest: Annotated[Path, typer.Argument(metavar="DIR", help="Where kaggle_3m/ is written.")],
    count: Annotated[int, typer.Option(help="How many slices.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed draws the same slices.")] = 0,
) -> None:
    """Draw MRI-like slices with and without lesions, with true masks, for tests and demonstration.

    Exit status: 0 done; 2 wrong use; 3 the machine lacks something.
    """
    from rich.console import Console

    from trainer.phantoms import write_phantoms

    made = write_phantoms(dest, count, seed)
    Console(highlight=False, soft_wrap=True).print(
        f"{made.root}: {made.slices:,} slices of {made.patients:,} drawn patients, "
        f"{made.lesion_slices:,} with a lesion"
    )


def _draw_measures(found: Measures, folder: Path, gate: float | None) -> list[str]:
    """Draw the curves into a folder that `save` made; their names, and that of the table behind them."""
    from trainer.pictures import operating_picture, reliability_picture

    reliability_picture(found.reliability, folder / "reliability.png")
    if found.operating is None:
        return ["reliability.png"]
    operating_picture(found.operating, gate, folder / "operating.png")
    return ["reliability.png", "operating.csv", "operating.png"]


def _pairs(settings: list[str]) -> dict[str, str]:
    wrong = next((text for text in settings if "=" not in text), None)
    if wrong is not None:
        raise UsageError(f"--set {wrong}: give FIELD=VALUE, ema=0 for example")
    return {name.strip(): value.strip() for name, _, value in (text.partition("=") for text in settings)}
