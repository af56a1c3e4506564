"""One run of `tumorscan score`, as a call: what the command, notebooks and clusters stand on."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import cast

from engine.bundle import Bundle
from engine.cascade import Cascade, OperatingPoint
from engine.disk import cannot_write
from engine.errors import UsageError
from engine.ledger import Counts, Ledger, has_rows, stored_identity
from engine.outputs import runjson
from engine.outputs.atomic import clean_stale
from engine.outputs.tables import write_tables
from engine.pending import Pending
from engine.pipeline import WRITERS, Pipeline, Totals
from engine.report import write_run_report
from engine.ring import Ring
from engine.rows import RowWriter
from engine.run import Options, Outcome, Plan, Survey
from engine.runners import choose_backend, choose_precision, cpu_flags, open_runner
from engine.runners.base import Precision
from engine.sources.discovery import Discovery, SourceFile, Unlisted
from engine.sources.lists import open_list
from engine.stop import Stop
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

LEDGER = "run.sqlite"
OPENVINO_SCORERS = 2
"""Threads that call the cascade: while one waits for its last slices the other keeps the cores busy."""
FILE_TIMEOUT = 60.0
"""Seconds that a worker may spend on one file."""
SHOWN_INPUTS = 20
"""Of more INPUTs the ledger keeps a hash, as it may have to show them in one line."""
_GEOMETRY = "letterbox-256"
"""Names how slices of other sizes are scaled; part of a run's identity."""


class Watcher:
    """Hears how a run goes on, in the thread that called `score`; this one keeps quiet."""

    def begins(self, plan: Plan, counts: Counts) -> None:
        """Everything is checked and the models are about to load; `counts` are of earlier calls."""

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
    earlier = _earlier(options)
    plan = _plan(options, bundle, earlier)
    with ExitStack() as stack:
        ledger = stack.enter_context(_open_ledger(options, plan))
        before = ledger.counts()
        pending = Pending(discovery, ledger, options.retry, options.limit, stop=stop.asked)
        entries = iter(pending)
        first = next(entries, None)
        if first is None:
            if pending.finished and pending.seen == 0:
                raise _nothing_there(options, discovery)
            totals, all_fed, start_up = Totals(), True, 0.0
        else:
            watcher.begins(plan, before)
            clock = time.monotonic()
            pipeline = _pipeline(options, plan, ledger, chain((first,), entries), stop, watcher, stack)
            start_up = time.monotonic() - clock
            totals = pipeline.run()
            all_fed = pipeline.exhausted
        outcome = Outcome(
            plan=plan,
            out=options.out,
            finished=all_fed and pending.finished,
            nothing_new=first is None,
            counts=ledger.counts(),
            totals=totals,
            gated_out=ledger.below(plan.operating.gate_threshold) if plan.operating.gated else 0,
            skipped_masks=discovery.skipped_masks,
            skipped_other=discovery.skipped_other,
        )
        clock = time.monotonic()
        if outcome.finished or stop.out_of_time:
            write_tables(ledger, options.out)
        tables = time.monotonic() - clock
        # A call that only finds everything scored keeps the report of the one that did it, if that wrote it.
        reported = ledger.get_meta("reported") and (options.out / "run.json").exists()
        if first is not None or (outcome.finished and not reported):
            seconds = float(cast("float", ledger.get_meta("seconds") or 0.0)) + totals.seconds
            ledger.set_meta("seconds", seconds)
            write_run_report(options, outcome, begun, start_up, tables, seconds)
            ledger.set_meta("reported", outcome.finished)
        return outcome


def survey(options: Options) -> Survey:
    """Walk the input as `score` would, and write nothing. Raises what `score` would of input and bundle."""
    bundle = Bundle.load(options.bundle or Bundle.default_folder())
    discovery = _discovery(options, threading.Event())
    earlier = _earlier(options)
    plan = _plan(options, bundle, earlier)
    if earlier is None:
        slices = pending_count = sum(1 for _ in islice(discovery, options.limit))
    else:
        with Ledger.open(options.out / LEDGER, _identity(options, plan), fresh=False) as ledger:
            pending = Pending(discovery, ledger, options.retry, options.limit, forgets=False)
            pending_count = sum(1 for _ in pending)
            slices = pending.seen
    if slices == 0:
        raise _nothing_there(options, discovery)
    return Survey(plan, slices, pending_count, discovery.skipped_masks, discovery.skipped_other)


def count_slices(options: Options, over: threading.Event) -> int | None:
    """How many files the input holds, for the time that is left; None for a pipe, or when `over` is set."""
    if options.files_from is not None and not Path(options.files_from).is_file():
        return None  # a pipe gives each line to one reader only
    count = 0
    for _ in islice(_discovery(options, over), options.limit):
        count += 1
        if over.is_set():
            return None
    return count


def _discovery(options: Options, stop: threading.Event) -> Discovery:
    listed = None if options.files_from is None else open_list(options.files_from, stop)
    return Discovery(options.inputs, listed, options.out)


def _earlier(options: Options) -> dict[str, object] | None:
    """The identity of the run to continue. One that came to no row has decided nothing, so it is none."""
    path = options.out / LEDGER
    stored = None if options.fresh else stored_identity(path)
    return stored if stored is not None and has_rows(path) else None


def _open_ledger(options: Options, plan: Plan) -> Ledger:
    """Take the output folder, and clear it of what a killed run or, with `fresh`, any earlier run left."""
    left = [name for name in (LEDGER, "run.lock", "run.json") if (options.out / name).exists()]
    folders = (options.out / "masks", options.out / "overlays")
    identity = _identity(options, plan)
    ledger = Ledger.open(options.out / LEDGER, identity, fresh=not plan.continued, folders=folders)
    try:
        if left and options.fresh:
            _remove_outputs(options.out)
        elif left:
            clean_stale(options.out)
    except OSError as error:
        ledger.close()
        raise cannot_write(options.out, error) from error
    return ledger


def _plan(options: Options, bundle: Bundle, earlier: dict[str, object] | None) -> Plan:
    """Settle backend and precision; a continuation takes those that it was begun with."""
    backend, precision = options.backend, options.precision
    if earlier is not None and backend == "auto":
        backend = str(earlier["backend"])
    backend = choose_backend(backend)
    pair: tuple[Precision, Precision]
    if precision == "auto" and earlier is not None:
        pair = cast("tuple[Precision, Precision]", tuple(cast("list[str]", earlier["precision"])))
    elif precision == "auto":
        pair = choose_precision(bundle, backend, cpu_flags())
    elif precision in ("fp32", "bf16"):
        pair = (cast("Precision", precision), cast("Precision", precision))
    else:
        raise UsageError(f"--precision {precision}: this bundle and version have auto, fp32 and bf16")
    operating = OperatingPoint.of(
        bundle, gate_threshold=options.threshold, mask_threshold=options.mask_threshold, gated=options.gate
    )
    return Plan(bundle, backend, pair, operating, continued=earlier is not None)


def _identity(options: Options, plan: Plan) -> dict[str, object]:
    """What decides the bytes of the results; of a list its presence, as it may be longer than memory."""
    return {
        "inputs": _inputs(options),
        "files_from": options.files_from is not None,
        "bundle": plan.bundle.sha256,
        "backend": plan.backend,
        "backend_version": runjson.package_versions().get(plan.backend, ""),
        "precision": list(plan.precision),
        "gate": plan.operating.gated,
        "threshold": plan.operating.gate_threshold,
        "mask_threshold": plan.operating.mask_threshold,
        "min_pixels": plan.operating.min_pixels,
        "geometry": _GEOMETRY,
        "masks": options.masks,
        "overlays": options.overlays,
    }


def _pipeline(
    options: Options,
    plan: Plan,
    ledger: Ledger,
    entries: Iterator[SourceFile | Unlisted],
    stop: Stop,
    watcher: Watcher,
    stack: ExitStack,
) -> Pipeline:
    """Start the workers, then load the models while those come up."""
    workers = options.workers or max(1, min(8, len(os.sched_getaffinity(0)) // 2))
    callers = scorers(plan)
    blocks = callers + WRITERS + workers + 1
    ring = stack.enter_context(
        Ring(blocks=blocks, block_size=options.batch, workers=workers, timeout_s=FILE_TIMEOUT)
    )
    cascade = stack.enter_context(open_models(plan))
    plan.bundle.expect_unchanged()

    def on_tick(totals: Totals) -> None:
        stop.look_at_clock()
        watcher.goes_on(totals)

    return Pipeline(
        entries=entries,
        ring=ring,
        cascade=cascade,
        writer=RowWriter(
            options.out,
            masks=options.masks == "png",
            overlays=options.overlays,
            tidy=any((options.out / name).exists() for name in ("masks", "overlays")),
        ),
        ledger=ledger,
        block_size=options.batch,
        scorers=callers,
        stop=stop.asked,
        on_tick=on_tick,
    )


@contextmanager
def open_models(plan: Plan) -> Iterator[Cascade]:
    """Both models as a run of this plan opens them. Raises what `open_runner` does."""
    outputs = plan.operating.segmenter_outputs
    on_classifier, on_segmenter = plan.precision
    with (
        open_runner(plan.backend, plan.bundle, "classifier", on_classifier) as classifier,
        open_runner(plan.backend, plan.bundle, "segmenter", on_segmenter, outputs=outputs) as segmenter,
    ):
        yield Cascade(classifier, segmenter, plan.operating)


def scorers(plan: Plan) -> int:
    """How many threads call the cascade in a run of this plan."""
    # A call into OpenVINO fills every core by itself; one into ONNX Runtime fills one.
    return OPENVINO_SCORERS if plan.backend == "openvino" else max(2, len(os.sched_getaffinity(0)))


def _remove_outputs(out: Path) -> None:
    """Delete what an earlier run left. Raises OSError."""
    for folder in (out / "masks", out / "overlays"):
        if folder.is_dir():  # perhaps a link to another disk, which is kept
            for entry in folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
    for name in ("results.csv", "errors.csv", "run.json"):
        (out / name).unlink(missing_ok=True)


def _inputs(options: Options) -> list[str]:
    """INPUT as typed, without / at the end; a shell's long list of files by its first and their hash."""
    inputs = [shown(text.rstrip("/") or text[:1]) for text in options.inputs]
    if len(inputs) <= SHOWN_INPUTS:
        return inputs
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()
    return [inputs[0], f"and {len(inputs) - 1} more of sha256 {digest}"]


def _nothing_there(options: Options, discovery: Discovery) -> UsageError:
    where = ", ".join(map(shown, options.inputs)) or "the list"
    skipped = []
    if discovery.skipped_masks:
        skipped.append(f"{discovery.skipped_masks} files named *_mask.*")
    if discovery.skipped_other:
        skipped.append(f"{discovery.skipped_other} other files")
    passed = f" (passed over {' and '.join(skipped)})" if skipped else ""
    return UsageError(f"no slices in {where}{passed}: give a folder with .tif, .png, .jpg or .webp files")
