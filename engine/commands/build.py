"""`tumorscan build`: parses, validates, prints; `engine.build` makes the plans."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine.errors import UsageError
from engine.text import shown

if TYPE_CHECKING:
    from engine.proof import Watch

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def register(app: typer.Typer) -> None:
    """Hang the command on the app."""
    app.command(name="build")(build_command)


def build_command(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT...]",
            help="Slices on which FP16 is compared with float32: the graphs first (else on drawn slices), "
            "then the plans where they run here.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="The model bundle (else the one that is installed).")
    ] = None,
    batch: Annotated[int, typer.Option(help="Slices a plan works on at a time, always.")] = 64,
    workspace: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The builder's scratch memory: 512M, 4G (else its own)."),
    ] = None,
    level: Annotated[
        int | None,
        typer.Option(help="Optimisation level 0..5: higher builds longer (else the builder's own)."),
    ] = None,
    flavour: Annotated[
        Literal["tensorrt", "tensorrt-rtx"],
        typer.Option(
            help="tensorrt builds for the GPU that is here; tensorrt-rtx for all RTX GPUs, on the CPU."
        ),
    ] = "tensorrt",
    plan_cache: Annotated[
        Path | None,
        typer.Option(help="The plan cache (else $TUMORSCAN_PLAN_CACHE, else in your cache folder)."),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build even what is cached, or failed its proof before.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Build the FP16 TensorRT plans of both models, or find them in the plan cache.

    Exit status: 0 both plans are in the cache; 2 wrong use, or a bundle or cached plan that is refused; 3 no
    GPU, driver, TensorRT, space or permission.
    """
    size = None if workspace is None else _bytes(workspace)
    from engine.build import BuildOptions, build_plans

    options = BuildOptions(
        bundle=bundle,
        batch=batch,
        workspace=size,
        level=level,
        flavour=flavour,
        plan_cache=plan_cache,
        inputs=tuple(inputs or ()),
        rebuild=rebuild,
    )
    with _progress(quiet) as watch:
        outcome = build_plans(options, watch)
    if quiet:
        return
    if outcome.check is not None:
        check, likeness = outcome.check, outcome.check.mask_dice
        typer.echo(
            f"FP16 against float32 on {check.slices} {outcome.slices}: {check.flips} has_mask flips, "
            f"{check.masks_both} masks" + ("" if likeness is None else f" of Dice {likeness:.4f}")
        )
    for each in outcome.plans:
        typer.echo(f"{each.plan.record.summary}: {'built' if each.built else 'cached'}")
        typer.echo(f"  {shown(each.plan.path)}")
        if each.built:
            typer.echo(f"  the builder's messages: {shown(each.log)}")
    if outcome.unproven:
        typer.echo(f"the plans are unproven, they cannot be run here: {outcome.unproven}")


@contextmanager
def _progress(quiet: bool) -> Iterator[Watch]:
    """A bar on a terminal; in a log, a line for each step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("reading the bundle", total=None)
        last = ""

        def watch(text: str, done: float | None) -> None:
            nonlocal last
            bar.update(task, description=text, total=None if done is None else 1.0, completed=done or 0.0)
            step = text.partition(": ")[0]  # the builder's own phases follow each other too fast for a log
            if step != last and not quiet and not console.is_terminal:
                console.print(step, soft_wrap=True)
            last = step

        yield watch


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = 0 if match is None else int(float(match[1]) * _UNITS[match[2].upper()])
    if size < _UNITS["M"]:  # no unit was given, most likely
        raise UsageError(f"--workspace {text}: give 1M or more, as a number with K, M or G")
    return size
