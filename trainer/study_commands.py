"""The commands of a study: what was tried beside each other, and where Dice is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.extra import need_train_extra


def register(app: typer.Typer) -> None:
    """Add compare and failures to the command."""
    app.command(name="compare")(compare_command)
    app.command(name="failures")(failures_command)


def compare_command(
    rows: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]JUDGED[,RUN...]...",
            help="Folders that evaluate or pool wrote, the baseline first; behind commas the run folders "
            "that it was trained in, for what they changed and took.",
        ),
    ],
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Print a Markdown table of trials: Dice, its difference to the first by patient, steps, CPU hours.

    Exit status: 0 done; 2 wrong use; 3 the machine lacks something.
    """
    need_train_extra()
    from trainer.compare import Row, compare

    typer.echo("\n".join(compare([Row.read(text) for text in rows], seed)))


def failures_command(
    evaluations: Annotated[
        list[Path], typer.Argument(metavar="JUDGED...", help="Folders that evaluate wrote, one a fold.")
    ],
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also draw contact sheets of the worst slices, one a group, there."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=600, help="Slices of a sheet.")] = 48,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Print a Markdown table of where Dice is lost: edges, small lesions, missing sequences, institutions.

    Contact sheets have the true outline in green and the predicted one in red. They show real slices: keep
    them where the data may be.

    Exit status: 0 done; 2 wrong use; 3 the machine lacks something.
    """
    need_train_extra()
    from trainer.failures import failure_groups
    from trainer.judged import join_folds, read_slices
    from trainer.measure import measure
    from trainer.sheets import write_sheets
    from trainer.tables import markdown_failures

    slices = join_folds(evaluations, [read_slices(folder) for folder in evaluations])
    volumes = measure(slices, seed, resamples=1).volumes
    typer.echo("\n".join(markdown_failures(volumes, failure_groups(slices, seed))))
    if pictures is not None:
        for path in write_sheets(slices, pictures, count):
            typer.echo(str(path), err=True)
