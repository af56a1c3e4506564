"""`tumorscan doctor`: parses and prints; `engine.doctor` looks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import MachineError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from engine.doctor import Report

_STYLES = {"ok": "green", "warn": "yellow", "missing": "dim", "fail": "bold red"}
_WIDE = 10_000


def register(app: typer.Typer) -> None:
    """Hang the command on the app."""
    app.command(name="doctor")(doctor_command)


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    bundle: Annotated[
        Path | None, typer.Option(help="The model bundle to look at (else the one that is installed).")
    ] = None,
    plan_cache: Annotated[
        Path | None, typer.Option(help="The plan cache (else $TUMORSCAN_PLAN_CACHE, else the user's own).")
    ] = None,
) -> int:
    """Say what this machine has, what is broken, and what `score --backend auto` would use.

    Looks at the driver and its GPUs, TensorRT, the runtimes, cores, memory, disk, the bundle and the plans;
    changes nothing. Exit status: 0, whatever is missing; 3 when nothing can score here.
    """
    if bundle is not None and not bundle.is_dir():
        raise UsageError(f"--bundle {bundle}: no such folder")
    from rich.console import Console

    from engine.doctor import examine

    with Console(stderr=True).status("looking at this machine"):
        report = examine(bundle, plan_cache)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        typer.echo(_text(report))
    return 0 if report.can_score else MachineError.exit_status


def _text(report: Report) -> str:
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:  # a path that is broken over lines is found by no grep
        console = Console(markup=False, emoji=False, highlight=False, width=_WIDE)
    with console.capture() as capture:
        console.print(_table(report))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([*lines, "", report.choice.sentence])


def _table(report: Report) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    group = ""
    for finding in report.findings:
        if finding.group != group:
            group = finding.group
            table.add_row(Text(group, style="bold"), "", "")
        status = Text(finding.status, style=_STYLES[finding.status])
        table.add_row(f"  {finding.name}", status, Text(finding.value))
        if finding.advice:
            table.add_row("", "", Text(f"-> {finding.advice}", style="italic"))
    return table
