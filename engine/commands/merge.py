"""`tumorscan merge`: parses, validates, prints; `engine.merge` does it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.cloud.addresses import as_typed
from engine.commands.carry_out import QUARANTINED_STATUS
from engine.text import shown

if TYPE_CHECKING:
    from engine.merge import Merged


def register(app: typer.Typer) -> None:
    """Hang the command on the app."""
    app.command(name="merge")(merge_command)


def merge_command(
    shards: Annotated[
        list[Path],
        typer.Argument(
            metavar="SHARD...", help="The output folders of all shards, or their addresses, in any order."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder of the whole run, beside the shards.")],
    no_masks: Annotated[
        bool,
        typer.Option("--no-masks", help="Tables only: leave masks, overlays and the like with the shards."),
    ] = False,
    parquet: Annotated[
        bool,
        typer.Option(
            "--parquet", help="Write the tables as Parquet too, as is done where all shards have it."
        ),
    ] = False,
    anonymise: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The private folder that the shards were scored with."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> int:
    """Put the shards of a run together, once every one is there and finished.

    Verifies that they are of one bundle, one input and one set of options, then writes what the undivided run
    would have: the same tables, byte for byte, the same masks (hard links where the disk has them), run.json
    with the rates of each shard, and a ledger. Exit status: 0 merged; 2 a shard is missing, twice there, not
    finished, damaged or of another run; 3 the machine lacks something; 4 merged, with quarantined slices.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from engine.merge import Options, merge

    options = Options(
        shards=tuple(shards),
        out=out,
        files=not no_masks,
        parquet=parquet,
        anonymise=anonymise,
        arguments=tuple(map(shown, sys.argv[1:])),
    )
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    columns = (TextColumn("merging"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("rows", total=None)
        merged = merge(options, lambda done, total: bar.update(task, completed=done, total=total))
    if not quiet:
        typer.echo(_told(merged, out))
    return QUARANTINED_STATUS if merged.report.counts.quarantined else 0


def _told(merged: Merged, out: Path) -> str:
    """What came of it, in a few lines."""
    report = merged.report
    counts, of_shards = report.counts, report.merged
    assert of_shards is not None
    sizes = sorted(each.slices for each in of_shards.shards)
    rows = {
        "shards": f"all {len(sizes):,} are there, of {sizes[0]:,} to {sizes[-1]:,} slices",
        "slices": f"{counts.slices:,} ({counts.ok:,} scored, {counts.quarantined:,} quarantined)",
        "with a mask": f"{counts.has_mask:,}",
        "throughput": f"{report.slices_per_second:,.1f} slices a second in one shard, "
        f"{of_shards.slices_per_second_summed:,.1f} in all side by side",
        "results": as_typed(out / "results.csv"),
    }
    if counts.quarantined:
        rows["quarantine"] = as_typed(out / "errors.csv")
    widest = max(map(len, rows))
    first = ["nothing new: these shards are merged already"] if merged.nothing_new else []
    return "\n".join([*first, *(f"{name:<{widest}}  {value}" for name, value in rows.items())])
