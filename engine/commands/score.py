"""`tumorscan score`: parses, validates, prints; `engine.score` does it."""

from __future__ import annotations

import re
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine.commands.screen import lasting
from engine.commands.signals import OUT_OF_TIME_STATUS, SignalStop
from engine.errors import UsageError
from engine.sources.discovery import Discovery
from engine.stop import Stop
from engine.text import shown

if TYPE_CHECKING:
    from engine.score import Options, Outcome

QUARANTINED_STATUS = 4


def register(app: typer.Typer) -> None:
    """Hang the command on the app."""
    app.command(name="score")(score_command)


def score_command(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT...", help="Folders and files to score.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The output folder; a run in it is continued.")] = Path("results"),
    bundle: Annotated[
        Path | None, typer.Option(help="The model bundle (else the one that is installed).")
    ] = None,
    files_from: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="Score the paths listed there, one a line or NUL-separated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N slices of the input.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Slices decoded and scored together.")] = 16,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Decode processes (else by the cores).")
    ] = None,
    backend: Annotated[
        Literal["auto", "openvino", "onnxruntime"], typer.Option(help="What computes; auto is openvino.")
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(help="auto: the fastest that this CPU has and whose parity is recorded in the bundle."),
    ] = "auto",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Tumour probability from which a slice passes the gate (else the bundle's)."
        ),
    ] = None,
    mask_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Probability from which a pixel is tumour, in steps of 1/255."),
    ] = None,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Send every slice to the segmenter.")] = False,
    masks: Annotated[
        Literal["png", "none"], typer.Option(help="Write masks as PNG, or only count them.")
    ] = "png",
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also write the MRI with the mask's outline.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Score quarantined slices again.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete an earlier run in --out and start over.")
    ] = False,
    max_runtime: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Stop in order after this long (90, 30m, 4h); resumable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> int:
    """Score slices: which show a tumour, and where.

    Writes results.csv, errors.csv, run.json and masks/ below --out. After a stop or a kill the same command
    continues. Exit status: 0 all scored; 2 wrong use; 3 the machine lacks something; 4 finished with
    quarantined slices; 75 stopped by --max-runtime; 130, 143 interrupted, resumable.
    """
    seconds = None if max_runtime is None else _seconds(max_runtime)
    _refuse_wrong_use(inputs or [], files_from, out, bundle)
    # Before the slow imports: the first process of a container gets no signal that it does not listen to.
    signals = SignalStop(Stop())
    with nullcontext() if dry_run else signals:
        from engine.score import Options

        options = Options(
            inputs=tuple(inputs or ()),
            out=out,
            bundle=bundle,
            files_from=files_from,
            limit=limit,
            batch=batch,
            workers=workers,
            backend=backend,
            precision=precision,
            threshold=threshold,
            mask_threshold=mask_threshold,
            gate=not no_gate,
            masks=masks,
            overlays=overlays,
            retry=retry,
            fresh=fresh,
            max_runtime=seconds,
            arguments=tuple(map(shown, sys.argv[1:])),
        )
        return _dry_run(options) if dry_run else _score(options, signals, quiet=quiet)


def _refuse_wrong_use(inputs: list[str], files_from: str | None, out: Path, bundle: Path | None) -> None:
    """What can be told before the slow imports: numpy, OpenCV and a runtime take a second or more."""
    Discovery(inputs, None if files_from is None else (), out)
    if files_from is not None and files_from != "-" and not Path(files_from).exists():
        raise UsageError(f"--files-from {files_from}: no such file")
    if bundle is not None and not bundle.is_dir():
        raise UsageError(f"--bundle {bundle}: no such folder")


def _dry_run(options: Options) -> int:
    from engine.score import survey

    found = survey(options)
    plan = found.plan
    typer.echo(
        f"{found.slices:,} slices, {found.pending:,} of them still to be scored into {shown(options.out)} "
        f"by {plan.bundle.manifest.name} on {plan.backend} ({', '.join(dict.fromkeys(plan.precision))}); "
        f"{found.skipped_masks:,} files named *_mask.* and {found.skipped_other:,} others are passed over"
    )
    return 0


def _score(options: Options, signals: SignalStop, *, quiet: bool) -> int:
    from rich.console import Console

    from engine.display import Display, closing_table
    from engine.score import score

    stop, screen = signals.stop, lasting(sys.stderr)
    console = Console(file=screen, markup=False, emoji=False, highlight=False)
    with Display(options, console, quiet=quiet) as display:
        outcome = score(options, display, stop)
    if not quiet:
        table = lasting(sys.stdout)
        if outcome.finished and outcome.nothing_new:
            typer.echo("nothing new: every slice of the input has its row already", file=table)
        if outcome.finished or stop.out_of_time:
            typer.echo(closing_table(outcome), file=table)
        if not outcome.finished:
            why = "stopped by --max-runtime" if stop.out_of_time else "interrupted"
            kept = outcome.counts.ok + outcome.counts.quarantined
            said = f"tumorscan: {why}: {kept:,} slices are done and the same command continues"
            typer.echo(said, file=screen)
    return _status(outcome, signals)


def _status(outcome: Outcome, signals: SignalStop) -> int:
    if outcome.finished:
        return QUARANTINED_STATUS if outcome.counts.quarantined else 0
    if signals.stop.out_of_time:
        return OUT_OF_TIME_STATUS
    return 128 + (signals.received or signal.SIGINT)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--max-runtime {text}: give seconds, or a number with s, m, h or d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
