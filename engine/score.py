"""One run of `tumorscan score`, as a call: what the command, notebooks and clusters stand on."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import cast

from engine.bundle import Bundle
from engine.disk import cannot_write
from engine.errors import UsageError
from engine.finish import Finish, finish
from engine.ledger import Counts, Ledger
from engine.opening import Opened, open_models, open_run, scorers
from engine.outputs.atomic import clean_stale
from engine.outputs.pseudonyms import Pseudonyms
from engine.outputs.runjson import GpuReport
from engine.pending import Pending
from engine.pipeline import Pipeline, Totals
from engine.report import write_run_report
from engine.rows import RowWriter
from engine.run import PROOF_SLICES, Options, Outcome, Plan, Survey
from engine.settle import earlier_identity, identity, settle
from engine.sources.channels import Patterns
from engine.sources.discovery import Discovery, SourceFile, Unlisted
from engine.sources.lists import open_list
from engine.stop import Stop, StoppedError
from engine.text import shown

__all__ = [
    "Options",
    "Outcome",
    "Plan",
    "Stop",
    "Survey",
    "Watcher",
    "count_slices",
    "open_models",
    "score",
    "scorers",
    "survey",
]


FOLDERS = ("masks", "overlays", "probabilities")
"""What slices have files in."""
TABLES = ("results.csv", "errors.csv", "volumes.csv", "results.parquet", "errors.parquet", "run.json")


class Watcher:
    """Hears how a run goes on, in the thread that called `score`; this one keeps quiet."""

    def begins(self, plan: Plan, counts: Counts) -> None:
        """Everything is checked and the models are about to load; `counts` are of earlier calls."""

    def prepares(self, text: str, done: float | None) -> None:
        """Plans are built, or models loaded: what is being done, and how much of it, 0 to 1, if known."""

    def says(self, line: str) -> None:
        """A line for the user; from any thread."""

    def goes_on(self, totals: Totals) -> None:
        """Called a few times a second, and after each transaction."""


def score(options: Options, watcher: Watcher | None = None, stop: Stop | None = None) -> Outcome:
    """Score a folder of slices, or go on where an earlier call stopped.

    Raises:
        UsageError: wrong input, options or bundle; another run's output folder; a scored file that changed.
        MachineError: a runtime, space or permission is missing.
    """
    watcher = watcher or Watcher()
    stop = stop or Stop()
    begun = datetime.now(UTC)
    if options.max_runtime is not None:
        stop.deadline = time.monotonic() + options.max_runtime
    bundle = Bundle.load(options.bundle or Bundle.default_folder())
    discovery = _discovery(options, stop.asked)
    earlier = earlier_identity(options)
    plan = settle(options, bundle, earlier)
    with ExitStack() as stack:
        ledger = stack.enter_context(_open_ledger(options, plan))
        before = ledger.counts()
        pending = Pending(discovery, ledger, options.retry, options.limit, stop=stop.asked)
        entries = iter(pending)
        first = next(entries, None)
        if first is None:
            if pending.finished and pending.seen == 0:
                raise _nothing_there(options, discovery)
            ran = _Ran(plan, all_fed=True)
        else:
            watcher.begins(plan, before)
            ran = _run(options, plan, ledger, chain((first,), entries), stop, watcher)
            plan = ran.plan
        outcome = Outcome(
            plan=plan,
            out=options.out,
            finished=ran.all_fed and pending.finished,
            nothing_new=first is None,
            counts=ledger.counts(),
            totals=ran.totals,
            gated_out=ledger.below(plan.operating.gate_threshold) if plan.operating.gated else 0,
            skipped_masks=discovery.skipped_masks,
            skipped_other=discovery.skipped_other,
            gpu=ran.gpu,
        )
        clock = time.monotonic()
        if outcome.finished or stop.out_of_time:
            finish(ledger, _finish(options), whole=outcome.finished)
            outcome = replace(outcome, counts=ledger.counts())
        tables = time.monotonic() - clock
        # A call that only finds everything scored keeps the report of the one that did it, if that wrote one
        # of the same slices: a file that could not be read, and is gone, has lost its row since.
        counts = list(astuple(outcome.counts))
        reported = ledger.get_meta("reported") == counts and (options.out / "run.json").exists()
        if first is not None or (outcome.finished and not reported):
            seconds = float(cast("float", ledger.get_meta("seconds") or 0.0)) + ran.totals.seconds
            ledger.set_meta("seconds", seconds)
            write_run_report(options, outcome, begun, ran.start_up, tables, seconds)
            ledger.set_meta("reported", counts if outcome.finished else None)
        return outcome


@dataclass(frozen=True, slots=True)
class _Ran:
    """What this call came to: by which plan, and whether all there is was given to it. In seconds."""

    plan: Plan
    all_fed: bool
    totals: Totals = field(default_factory=Totals)
    start_up: float = 0.0
    gpu: GpuReport | None = None


def _run(
    options: Options,
    plan: Plan,
    ledger: Ledger,
    entries: Iterator[SourceFile | Unlisted],
    stop: Stop,
    watcher: Watcher,
) -> _Ran:
    """Load the models and score what there is."""
    clock = time.monotonic()
    # A GPU's plans are proven on the first slices.
    head = list(islice(entries, PROOF_SLICES)) if plan.gpus else []
    paths = list(dict.fromkeys(entry.path for entry in head if isinstance(entry, SourceFile)))
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(open_run(options, plan, paths, watcher, stop))
        except StoppedError:
            return _Ran(plan, all_fed=False)
        if opened.plan != plan and not plan.continued:
            ledger.declare(identity(options, opened.plan))
        pipeline = _pipeline(options, opened, ledger, chain(head, entries), stop, watcher)
        start_up = time.monotonic() - clock
        totals = pipeline.run()
        gpu = None if opened.gpus is None else opened.gpus.report()
        return _Ran(opened.plan, pipeline.exhausted, totals, start_up, gpu)


def _pipeline(
    options: Options,
    opened: Opened,
    ledger: Ledger,
    entries: Iterator[SourceFile | Unlisted],
    stop: Stop,
    watcher: Watcher,
) -> Pipeline:
    def on_tick(totals: Totals) -> None:
        stop.look_at_clock()
        watcher.goes_on(totals)

    return Pipeline(
        entries=entries,
        ring=opened.ring,
        scorer=opened.scorer,
        writer=RowWriter(
            options.out,
            masks=options.masks == "png",
            overlays=options.overlays,
            probabilities=options.save_probabilities,
            tidy=any((options.out / name).exists() for name in FOLDERS),
            pseudonyms=_pseudonyms(options),
        ),
        ledger=ledger,
        block_size=opened.batch,
        stop=stop.asked,
        on_tick=on_tick,
    )


def _finish(options: Options) -> Finish:
    return Finish(
        options.out,
        masks=options.masks,
        components=options.components,
        probabilities=options.save_probabilities,
        parquet=options.parquet,
        keep_patient=options.keep_patient,
        pseudonyms=_pseudonyms(options),
        names=options.private / "names.csv",
    )


def _pseudonyms(options: Options) -> Pseudonyms | None:
    return None if options.anonymise is None else Pseudonyms.open(options.anonymise)


def survey(options: Options) -> Survey:
    """Walk the input as `score` would, and write nothing. Raises what `score` would of input and bundle."""
    bundle = Bundle.load(options.bundle or Bundle.default_folder())
    discovery = _discovery(options, threading.Event())
    earlier = earlier_identity(options)
    plan = settle(options, bundle, earlier)
    if earlier is None:
        slices = pending_count = sum(1 for _ in islice(discovery, options.limit))
    else:
        with Ledger.open(options.ledger, identity(options, plan), fresh=False) as ledger:
            pending = Pending(discovery, ledger, options.retry, options.limit, forgets=False)
            pending_count = sum(1 for _ in pending)
            slices = pending.seen
    if slices == 0:
        raise _nothing_there(options, discovery)
    return Survey(plan, slices, pending_count, discovery.skipped_masks, discovery.skipped_other)


def count_slices(options: Options, over: threading.Event) -> int | None:
    """About how many slices the input holds, for the time that is left; None for a pipe, or once `over`."""
    if options.files_from is not None and not Path(options.files_from).is_file():
        return None  # a pipe gives each line to one reader only
    count = 0
    for _ in islice(_discovery(options, over).roughly(), options.limit):
        count += 1
        if over.is_set():
            return None
    return count


def _discovery(options: Options, stop: threading.Event) -> Discovery:
    listed = None if options.files_from is None else open_list(options.files_from, stop)
    channels = None if options.channels is None else Patterns.parse(options.channels)
    return Discovery(options.inputs, listed, options.out, channels)


def _open_ledger(options: Options, plan: Plan) -> Ledger:
    """Take the output folder, and clear it of what a killed run or, with `fresh`, any earlier run left."""
    kept = (options.ledger, options.private / "run.lock", options.out / "run.json")
    left = [path for path in kept if path.exists()]
    folders = tuple(options.out / name for name in FOLDERS)
    ledger = Ledger.open(options.ledger, identity(options, plan), fresh=not plan.continued, folders=folders)
    try:
        if left and options.fresh:
            _remove_outputs(options.out)
        elif left:
            clean_stale(options.out)
    except OSError as error:
        ledger.close()
        raise cannot_write(options.out, error) from error
    return ledger


def _remove_outputs(out: Path) -> None:
    """Delete what an earlier run left. Raises OSError."""
    for folder in (out / name for name in (*FOLDERS, "volumes")):
        if folder.is_dir():  # perhaps a link to another disk, which is kept
            for entry in folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
    for name in TABLES:
        (out / name).unlink(missing_ok=True)


def _nothing_there(options: Options, discovery: Discovery) -> UsageError:
    where = ", ".join(map(shown, options.inputs)) or "the list"
    skipped = []
    if discovery.skipped_masks:
        skipped.append(f"{discovery.skipped_masks} files named *_mask.*")
    if discovery.skipped_other:
        skipped.append(f"{discovery.skipped_other} other files")
    passed = f" (passed over {' and '.join(skipped)})" if skipped else ""
    wanted = ".tif, .png, .jpg, .webp, .nii, .nii.gz or .dcm files"
    return UsageError(f"no slices in {where}{passed}: give a folder with {wanted}")
