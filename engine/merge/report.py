"""The run.json of merged shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from engine.ledger import Counts
from engine.merge.shard_set import leader
from engine.outputs import runjson
from engine.outputs.pseudonyms import Pseudonyms
from engine.outputs.runjson import MergeReport, RunReport, ShardReport, Timings
from engine.shards import FinishedShard
from engine.text import shown


def write_merge_report(
    out: Path,
    shards: Sequence[FinishedShard],
    counts: Counts,
    gated_out: int,
    tables: float,
    arguments: Sequence[str],
    pseudonyms: Pseudonyms | None,
    where: Callable[[str], str],
) -> RunReport:
    """Write run.json; `tables` are the seconds that the merge took, `where` tells a shard's place.

    Raises MachineError where it cannot be written.
    """
    first = leader(shards).report
    told = [_of_shard(each, pseudonyms, where) for each in shards]
    seconds = sum(each.seconds for each in told)
    slices = counts.ok + counts.quarantined
    report = RunReport(
        arguments=list(arguments) if pseudonyms is None else pseudonyms.of_arguments(arguments),
        started=min(each.started for each in told),
        ended=max(each.ended for each in told),
        finished=True,
        continued=False,
        merged=MergeReport(
            shards=told, slices_per_second_summed=sum(each.slices_per_second for each in told)
        ),
        bundle=first.bundle,
        runtime=first.runtime,
        runtime_version=first.runtime_version,
        precision=first.precision,
        operating_point=first.operating_point,
        counts=runjson.CountsReport(
            slices=slices,
            ok=counts.ok,
            quarantined=counts.quarantined,
            has_mask=counts.has_mask,
            gated_out=gated_out,
            skipped_masks=sum(each.report.counts.skipped_masks for each in shards),
            skipped_other=sum(each.report.counts.skipped_other for each in shards),
        ),
        timings=Timings(
            slices=slices, seconds=seconds, seconds_total=seconds, start_up_seconds=0.0, tables_seconds=tables
        ),
        slices_per_second=_rate(slices, seconds),
        machine=runjson.describe_machine(),
        packages=first.packages,
    )
    runjson.write_report(out / "run.json", report)
    return report


def _of_shard(
    shard: FinishedShard, pseudonyms: Pseudonyms | None, where: Callable[[str], str]
) -> ShardReport:
    report, folder = shard.report, where(shown(shard.folder))
    seconds = report.timings.seconds_total
    return ShardReport(
        shard=shard.shard.text,
        folder=folder if pseudonyms is None else pseudonyms.of_path(folder),
        started=report.started,
        ended=report.ended,
        slices=shard.slices,
        ok=shard.counts.ok,
        quarantined=shard.counts.quarantined,
        has_mask=shard.counts.has_mask,
        seconds=seconds,
        slices_per_second=_rate(shard.slices, seconds),
        gpu=report.gpu,
        machine=report.machine,
    )


def _rate(slices: int, seconds: float) -> float:
    return slices / seconds if seconds > 0 else 0.0
