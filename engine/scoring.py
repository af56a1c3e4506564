"""One run of `tumorscan score`, as a call: what the command, notebooks and clusters stand on."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import astuple, replace
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engine.bundle import Bundle
from engine.cloud.desk import Desk, at_copy, at_desk
from engine.cloud.store import Stores
from engine.cloud.tree import Tree
from engine.disk import cannot_write
from engine.errors import UsageError
from engine.finish import Finish, finish
from engine.here import run_here
from engine.ledger import Ledger
from engine.opening import open_models, pseudonyms_of, scorers
from engine.outputs.atomic import clean_stale
from engine.outputs.leftovers import FOLDERS, remove_outputs
from engine.pending import Pending
from engine.report import write_run_report
from engine.run import Options, Outcome, Plan, Ran, Survey
from engine.settle import earlier_identity, identity, settle
from engine.shards import break_seal, seal
from engine.sources.channels import Patterns
from engine.sources.discovery import Discovery
from engine.sources.lists import open_list
from engine.sources.shards import Dealt
from engine.stop import Stop
from engine.text import shown
from engine.watch.watcher import Watcher

if TYPE_CHECKING:
    from engine.cluster import Cluster

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


def score(options: Options, watcher: Watcher | None = None, stop: Stop | None = None) -> Outcome:
    """Score a folder of slices, or go on where an earlier call stopped.

    Raises:
        UsageError: wrong input, options or bundle; another run's output folder; a scored file that changed.
        MachineError: a runtime, space or permission is missing; an object store does not answer.
        StoppedError: the run was stopped while it waited for an object store, before it knew what it is.
    """
    watcher = watcher or Watcher()
    stop = stop or Stop()
    if options.max_runtime is not None:
        stop.deadline = time.monotonic() + options.max_runtime
    with at_desk(options, watcher.says, stop.asked) as (here, desk):
        return _score(here, watcher, stop, desk)


def _score(options: Options, watcher: Watcher, stop: Stop, desk: Desk | None) -> Outcome:
    begun = datetime.now(UTC)
    bundle = Bundle.load(options.bundle or Bundle.default_folder())
    far = Tree(Stores(), stop.asked)
    discovery = _discovery(options, stop.asked, far)
    earlier = earlier_identity(options)
    with ExitStack() as stack:
        cluster = None
        if options.ray is not None:
            cluster = stack.enter_context(_open_cluster(options, watcher, stop, desk))
        plan = _settled(options, bundle, earlier, cluster)
        ledger = stack.enter_context(_open_ledger(options, plan, desk))
        before = ledger.counts()
        pending = _pending(options, discovery, ledger, far, stop.asked)
        entries = iter(pending)
        first = next(entries, None)
        if first is None:
            if pending.finished and pending.seen == 0 and _is_bare(discovery):
                raise _nothing_there(options, discovery)
            ran = Ran(plan, all_fed=True)
        else:
            watcher.begins(plan, before)
            if options.shard is not None:
                break_seal(ledger)
            everything = chain((first,), entries)
            if cluster is None:
                ran = run_here(options, plan, ledger, everything, stop, watcher)
            else:
                ran = cluster.run(plan, ledger, everything)
            plan = ran.plan
        if stop.out_of_time and not pending.finished:
            ledger.forget(ledger.damaged())  # the walk looks for them at its end
        outcome = Outcome(
            plan=plan,
            out=options.out,
            store=options.store,
            finished=ran.all_fed and pending.finished,
            nothing_new=first is None,
            counts=ledger.counts(),
            totals=ran.totals,
            gated_out=ledger.below(plan.operating.gate_threshold) if plan.operating.gated else 0,
            skipped_masks=discovery.skipped_masks,
            skipped_other=discovery.skipped_other,
            gpu=ran.gpu,
            cluster=ran.cluster,
            shard=options.shard,
            names=0 if discovery.seen is None else discovery.seen.names,
        )
        clock = time.monotonic()
        if outcome.finished or stop.out_of_time:
            finish(ledger, _finish(options, far), whole=outcome.finished)
            outcome = replace(outcome, counts=ledger.counts())
            watcher.ends(ledger.rows)
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
        cut_short = options.limit is not None and pending.seen >= options.limit
        if outcome.finished and discovery.seen is not None and not cut_short:
            seal(ledger, options.out, discovery.seen)
        if desk is not None:
            desk.publish(ledger, whole=outcome.finished)
        return outcome


def _finish(options: Options, far: Tree) -> Finish:
    return Finish(
        options.out,
        masks=options.masks,
        components=options.components,
        probabilities=options.save_probabilities,
        parquet=options.parquet,
        keep_patient=options.keep_patient,
        pseudonyms=pseudonyms_of(options),
        names=options.private / "names.csv",
        start=far.start,
    )


def survey(options: Options) -> Survey:
    """Walk the input as `score` would, and write nothing. Raises what `score` would of input and bundle."""
    with at_copy(options) as here:
        return _survey(here)


def _survey(options: Options) -> Survey:
    bundle = Bundle.load(options.bundle or Bundle.default_folder())
    never = threading.Event()
    far = Tree(Stores(), never)
    discovery = _discovery(options, never, far)
    earlier = earlier_identity(options)
    with ExitStack() as stack:
        silent, stop = Watcher(), Stop()
        cluster = None
        if options.ray is not None:
            cluster = stack.enter_context(_open_cluster(options, silent, stop, None))
        plan = _settled(options, bundle, earlier, cluster)
    if earlier is None:
        slices = pending_count = sum(1 for _ in islice(discovery, options.limit))
    else:
        with Ledger.open(options.ledger, identity(options, plan), fresh=False) as ledger:
            pending = _pending(options, discovery, ledger, far, never, forgets=False)
            pending_count = sum(1 for _ in pending)
            slices = pending.seen
    if slices == 0 and _is_bare(discovery):
        raise _nothing_there(options, discovery)
    return Survey(plan, slices, pending_count, discovery.skipped_masks, discovery.skipped_other)


def _open_cluster(
    options: Options, watcher: Watcher, stop: Stop, desk: Desk | None
) -> AbstractContextManager[Cluster]:
    from engine.cluster import open_cluster

    return open_cluster(options, watcher, stop, None if desk is None else desk.scattered)


def _settled(
    options: Options, bundle: Bundle, earlier: dict[str, object] | None, cluster: Cluster | None
) -> Plan:
    """The plan; of a new run on a cluster by what its nodes are."""
    if cluster is None or earlier is not None:
        return settle(options, bundle, earlier)
    return cluster.settle(bundle)


def count_slices(options: Options, over: threading.Event) -> int | None:
    """About how many slices the input holds, for the time that is left; None for a pipe, or once `over`."""
    if options.files_from is not None and not Path(options.files_from).is_file():
        return None  # a pipe gives each line to one reader only
    count = 0
    for _ in islice(_discovery(options, over, Tree(Stores(), over)).roughly(), options.limit):
        count += 1
        if over.is_set():
            return None
    return count


def _discovery(options: Options, stop: threading.Event, far: Tree) -> Discovery:
    listed = options.listed
    if options.files_from is not None:
        listed = open_list(options.files_from, stop)
        if Path(options.files_from).is_file():  # of a pipe the next lines may be long in coming
            listed = far.looked_at_ahead(listed)
    channels = None if options.channels is None else Patterns.parse(options.channels)
    dealt = None if options.shard is None else Dealt(options.shard, stacks=not options.components.keeps_all)
    out = options.out if options.store is None else Path(options.store)
    return Discovery(options.inputs, listed, out, channels, dealt, far)


def _pending(
    options: Options,
    discovery: Discovery,
    ledger: Ledger,
    far: Tree,
    stop: threading.Event,
    *,
    forgets: bool = True,
) -> Pending:
    return Pending(
        discovery,
        ledger,
        options.retry,
        options.limit,
        forgets=forgets,
        again=discovery.in_stretches if discovery.is_lasting else None,
        stop=stop,
        read=far.read,
    )


def _open_ledger(options: Options, plan: Plan, desk: Desk | None) -> Ledger:
    """Take the output folder, and clear it of what a killed run or, with `fresh`, any earlier run left."""
    if desk is not None:
        return desk.open_ledger(identity(options, plan), continued=plan.continued, fresh=options.fresh)
    kept = (options.ledger, options.private / "run.lock", options.out / "run.json")
    left = [path for path in kept if path.exists()]
    folders = tuple(options.out / name for name in FOLDERS)
    ledger = Ledger.open(options.ledger, identity(options, plan), fresh=not plan.continued, folders=folders)
    try:
        if left and options.fresh:
            remove_outputs(options.out)
        elif left:
            clean_stale(options.out)
    except OSError as error:
        ledger.close()
        raise cannot_write(options.out, error) from error
    return ledger


def _is_bare(discovery: Discovery) -> bool:
    """Whether the input itself has nothing, not only the shard of it."""
    return discovery.seen is None or discovery.seen.names == 0


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
