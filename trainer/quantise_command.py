"""`tumorscan quantise`: parses, validates, prints; `trainer.quantise` makes the graphs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import MachineError, UsageError
from trainer.extra import need_train_extra

NOTHING_HELD_STATUS = 5


def register(app: typer.Typer) -> None:
    """Hang the command on the app."""
    app.command(name="quantise")(quantise_command)


def quantise_command(
    data: Annotated[Path, typer.Argument(help="The tree that the bundle's models were trained on.")],
    bundle: Annotated[Path, typer.Option(help="The bundle; int8 graphs that it has are made anew.")],
    split: Annotated[
        Path | None, typer.Option(help="The split of its training, for a bundle that does not hold it.")
    ] = None,
) -> int:
    """Add int8 graphs to a bundle: calibrated on training patients, judged on validation patients.

    A few minutes. A graph is kept only where the cascade holds its parity with it.
    Exit status: 0 a graph was added; 2 wrong use; 3 the machine lacks something; 5 none held.
    """
    from rich.console import Console

    if not bundle.is_dir():
        raise UsageError(f"--bundle {bundle}: no such folder")
    if not os.access(bundle, os.W_OK):
        raise MachineError(f"{bundle} cannot be written to: copy the bundle, and name the copy with --bundle")
    need_train_extra("onnx")
    from trainer.quantise import quantise

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    made = quantise(data, bundle, split, console.print)
    if not made.reports:
        console.print(f"{bundle}: no int8 graph was added, as the cascade holds with none")
        return NOTHING_HELD_STATUS
    for model, graphs in made.bundle.manifest.models.items():
        if "int8" not in graphs:
            console.print(f"the {model} has no int8 graph, as its masks do not hold")
            continue
        size, floats = graphs["int8"].size / 1e6, ", ".join(made.floats[model]) or "none"
        console.print(f"{bundle / graphs['int8'].file}: {size:.1f} MB, convolutions left in float: {floats}")
    return 0
