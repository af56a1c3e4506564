"""A run of `tumorscan score` as the command carries it out: watched, told, its exit status."""

from __future__ import annotations

import shlex
import signal
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from engine.cloud.addresses import as_typed
from engine.commands.screen import complaint, lasting
from engine.commands.signals import OUT_OF_TIME_STATUS, SignalStop
from engine.stop import Stop, StoppedError
from engine.text import shown

if TYPE_CHECKING:
    from engine.scoring import Options, Outcome

QUARANTINED_STATUS = 4


def say_dry(options: Options, config: Path | None) -> int:
    """Say what a run would do, and with which words where a file `config` gave some. The exit status."""
    from engine.scoring import survey
    from engine.words import words_of

    found = survey(options)
    plan = found.plan
    part = "" if options.shard is None else f"shard {options.shard.text} of the input, a part only: "
    typer.echo(
        f"{part}{found.slices:,} slices, {found.pending:,} of them still to be scored into "
        f"{as_typed(options.out)} by {plan.bundle.manifest.name} on {plan.backend} "
        f"({', '.join(dict.fromkeys(plan.precision))})"
        f"{f', as {plan.why}' if plan.why else ''}; "
        f"{found.skipped_masks:,} files named *_mask.* and {found.skipped_other:,} others are passed over"
    )
    if config is not None:
        words = shlex.join(["tumorscan", "score", *map(shown, options.inputs), *words_of(options)])
        typer.echo(f"with {shown(config)} the command is: {words}")
    return 0


def watched(
    options: Options, signals: SignalStop, *, quiet: bool, as_json: bool, metrics: Path | None
) -> int:
    """Score, seen on the screen or in a log, and in `metrics`. The exit status."""
    from rich.console import Console

    from engine.scoring import score
    from engine.watch.display import Display
    from engine.watch.expected import Expected
    from engine.watch.logs import JsonLog
    from engine.watch.metrics import Metrics
    from engine.watch.watcher import Watchers

    screen = lasting(sys.stderr)
    with ExitStack() as stack:
        expected = stack.enter_context(Expected(options))
        teller: Display | JsonLog
        if as_json:
            teller = JsonLog(options, screen, expected, partial(_why, signals), quiet=quiet)
        else:
            console = Console(file=screen, markup=False, emoji=False, highlight=False)
            teller = stack.enter_context(Display(options, console, expected, quiet=quiet))
        figures = None
        if metrics is not None:
            figures = stack.enter_context(Metrics(metrics, options, expected, teller))
        counter = [] if quiet and figures is None else [expected]
        watchers = Watchers(teller, *([] if figures is None else [figures]), *counter)
        try:
            outcome = score(options, watchers, signals.stop)
        except StoppedError:
            status = _interrupted(signals)
            if figures is not None:
                figures.left(status)
            typer.echo(complaint("interrupted before the first slice", status), file=screen, nl=False)
            return status
        status = _status(outcome, signals)
        if figures is not None:
            figures.ended(outcome, status)
    if isinstance(teller, JsonLog):
        teller.ended(outcome, status)
    elif not quiet:
        _tell(outcome, signals.stop)
    return status


def _tell(outcome: Outcome, stop: Stop) -> None:
    """How it ended, for people: a table, and that it goes on."""
    from engine.watch.display import closing_table

    table = lasting(sys.stdout)
    if outcome.finished and outcome.nothing_new:
        typer.echo(f"nothing new: {_nothing(outcome)}", file=table)
    if outcome.finished or stop.out_of_time:
        typer.echo(closing_table(outcome), file=table)
    if not outcome.finished:
        why = "stopped by --max-runtime" if stop.out_of_time else "interrupted"
        kept = outcome.counts.ok + outcome.counts.quarantined
        said = f"tumorscan: {why}: {kept:,} slices are done and the same command continues"
        typer.echo(said, file=lasting(sys.stderr))


def _why(signals: SignalStop) -> str | None:
    """What asked the run to stop: a signal's name, or the option."""
    if signals.received is not None:
        return signal.Signals(signals.received).name
    return "max_runtime" if signals.stop.out_of_time else None


def _nothing(outcome: Outcome) -> str:
    if outcome.shard is None:
        return "every slice of the input has its row already"
    if outcome.counts.ok + outcome.counts.quarantined:
        return f"every slice of shard {outcome.shard.text} has its row already"
    return (
        f"of the input's {outcome.names:,} files none falls into shard {outcome.shard.text} (folders stay "
        "whole; a large one of pictures is divided where it is INPUT itself)"
    )


def _status(outcome: Outcome, signals: SignalStop) -> int:
    if outcome.finished:
        return QUARANTINED_STATUS if outcome.counts.quarantined else 0
    return _interrupted(signals)


def _interrupted(signals: SignalStop) -> int:
    if signals.stop.out_of_time:
        return OUT_OF_TIME_STATUS
    return 128 + (signals.received or signal.SIGINT)
