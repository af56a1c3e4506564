"""How a run ended, as its run.json."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from engine.outputs import runjson
from engine.outputs.pseudonyms import Pseudonyms
from engine.run import Options, Outcome, Plan
from engine.words import words_of


def write_run_report(
    options: Options, outcome: Outcome, begun: datetime, start_up: float, tables: float, seconds: float
) -> None:
    """Write run.json. `start_up`, `tables` and `seconds` (of all calls so far) are in seconds.

    Raises MachineError when it cannot be written.
    """
    plan, totals, counts = outcome.plan, outcome.totals, outcome.counts
    report = runjson.RunReport(
        arguments=_public(options, options.arguments),
        options=_public(options, words_of(options)),
        started=begun,
        ended=datetime.now(UTC),
        finished=outcome.finished,
        continued=plan.continued,
        shard=None if options.shard is None else options.shard.text,
        bundle=runjson.BundleReport(name=plan.bundle.manifest.name, sha256=plan.bundle.sha256),
        runtime=plan.backend,
        runtime_version=_runtime_version(plan),
        why=plan.why,
        gpu=outcome.gpu,
        cluster=outcome.cluster,
        precision={"classifier": plan.precision[0], "segmenter": plan.precision[1]},
        operating_point=runjson.OperatingReport(
            gate=plan.operating.gated,
            gate_threshold=plan.operating.gate_threshold,
            mask_threshold=plan.operating.mask_threshold,
            min_pixels=plan.operating.min_pixels,
            flips=plan.operating.flips.mirrors,
            flip_classifier=plan.operating.flips.classifier,
        ),
        counts=runjson.CountsReport(
            slices=counts.ok + counts.quarantined,
            ok=counts.ok,
            quarantined=counts.quarantined,
            has_mask=counts.has_mask,
            gated_out=outcome.gated_out,
            skipped_masks=outcome.skipped_masks,
            skipped_other=outcome.skipped_other,
        ),
        timings=runjson.Timings(
            slices=totals.slices,
            seconds=totals.seconds,
            seconds_total=seconds,
            start_up_seconds=start_up,
            tables_seconds=tables,
        ),
        slices_per_second=outcome.slices_per_second,
        machine=runjson.describe_machine(),
        packages=runjson.package_versions(),
    )
    runjson.write_report(options.out / "run.json", report)


def _public(options: Options, words: Iterable[str]) -> list[str]:
    if options.anonymise is None:
        return list(words)
    return Pseudonyms.open(options.anonymise).of_arguments(words)


def _runtime_version(plan: Plan) -> str:
    if plan.gpus is None:
        return runjson.package_versions().get(plan.backend, "")
    return str((plan.gpus.loaded or {}).get("backend_version", ""))
