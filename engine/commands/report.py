"""`tumorscan report`: parses, validates, prints; `engine.page` makes the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from engine.text import shown


def register(app: typer.Typer) -> None:
    """Hang the command on the app."""
    app.command(name="report")(report_command)


def report_command(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="The output folder of `tumorscan score`.")
    ],
    truth: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Compare with the true masks X_mask.tif below DATA.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page (else RESULTS/index.html).")
    ] = None,
    root: Annotated[
        Path, typer.Option(help="Where the relative image paths of the results begin: where score ran.")
    ] = Path(),
    limit: Annotated[
        int,
        typer.Option(min=1, max=50_000, help="Show so many slices at most: errors and findings go first."),
    ] = 4_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample beyond --limit.")] = 0,
    anonymise: Annotated[
        bool, typer.Option("--anonymise", help="Numbers instead of names, paths and messages.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> int:
    """Make one HTML page of a run: figures, a gallery of slices with outlines, every volume to leaf through.

    The page is a single file that needs no network. Exit status: 0 written; 2 wrong use; 3 the machine lacks
    something.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from engine.page.make import Options, make_page

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:

        def watch(text: str, steps: int) -> Callable[[], None]:
            task = bar.add_task(text, total=steps)
            return lambda: bar.advance(task)

        made = make_page(Options(results, truth, out, root, limit, seed, anonymise), watch)
    if not quiet:
        for note in made.notes:
            typer.echo(f"note: {note}", err=True)
        typer.echo(
            f"{shown(made.path)}: {made.shown_slices:,} of {made.slices:,} slices, {made.size / 1e6:.1f} MB"
        )
    return 0
