"""The scoring of a run on this machine: its models opened, its slices through the pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice

from engine.cloud.ahead import Ahead
from engine.cloud.store import Stores
from engine.ledger import Ledger
from engine.opening import Opened, open_run, writer_for
from engine.pipeline import Pipeline, Totals
from engine.run import PROOF_SLICES, Options, Plan, Ran
from engine.settle import identity
from engine.sources.discovery import SourceFile, Unlisted
from engine.stop import Stop, StoppedError
from engine.watch.watcher import Watcher

STORE_SECONDS = 2.0
"""How long rows wait for one transaction where that is some requests to a store, and an object there."""


def run_here(
    options: Options,
    plan: Plan,
    ledger: Ledger,
    entries: Iterator[SourceFile | Unlisted],
    stop: Stop,
    watcher: Watcher,
) -> Ran:
    """Load the models and score `entries`. Raises what `open_run` and `Pipeline.run` do."""
    clock = time.monotonic()
    with ExitStack() as stack:
        ahead = stack.enter_context(Ahead(Stores(), stop.asked))
        fetched = ahead.fetched(entries)
        # A GPU's plans are proven on the first slices.
        there = (entry for entry in fetched if entry is not None)
        head = list(islice(there, PROOF_SLICES)) if plan.gpus else []
        try:
            opened = stack.enter_context(open_run(options, plan, paths_of(head), watcher, stop))
        except StoppedError:
            return Ran(plan, all_fed=False)
        if opened.plan != plan and not plan.continued:
            ledger.declare(identity(options, opened.plan))
        pipeline = _pipeline(options, opened, ledger, chain(head, fetched), stop, watcher)
        pipeline.on_decoded = ahead.decoded
        if options.store is not None:
            pipeline.hold, pipeline.hurries = STORE_SECONDS, False
        start_up = time.monotonic() - clock
        totals = pipeline.run()
        gpu = None if opened.gpus is None else opened.gpus.report()
        return Ran(opened.plan, pipeline.exhausted, totals, start_up, gpu)


def paths_of(entries: list[SourceFile | Unlisted]) -> list[bytes]:
    """The files of `entries`, each once."""
    return list(dict.fromkeys(entry.path for entry in entries if isinstance(entry, SourceFile)))


def _pipeline(
    options: Options,
    opened: Opened,
    ledger: Ledger,
    entries: Iterator[SourceFile | Unlisted | None],
    stop: Stop,
    watcher: Watcher,
) -> Pipeline:
    def on_tick(totals: Totals) -> None:
        stop.look_at_clock()
        totals.busy.hands["decode"] = opened.ring.workers
        totals.busy.seconds["decode"] = opened.ring.busy_seconds
        watcher.goes_on(totals)

    return Pipeline(
        entries=entries,
        ring=opened.ring,
        scorer=opened.scorer,
        writer=writer_for(options, opened.drawer),
        ledger=ledger,
        block_size=opened.batch,
        stop=stop.asked,
        on_tick=on_tick,
        on_commit=watcher.commits,
    )
