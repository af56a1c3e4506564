"""Three rates at each precision, beside the runtime's bound, and where the CPU time goes.

    python -m benchmarks.throughput --data SLICES

Runner only, from RAM and disk to disk (engine/bench.py says what each is) are measured one behind the other
on the same slices, each repeat anew and in turned order, disk to disk also from an emptied page cache.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import dataclass, replace
from typing import Final

from benchmarks import child
from benchmarks.arguments import QUICK_SLICES, Common, Report, add_common, common, run, say
from benchmarks.bound import mixed_rate, model_rate
from benchmarks.slices import WorkSet, cached, chill, warm, work_set
from engine.bench import (
    MOST_SLICES,
    PRECISIONS,
    Slices,
    from_ram,
    load_slices,
    open_scorer,
    runner_only,
    warm_up,
)
from engine.errors import TumorscanError
from engine.run import BLOCK, Options, Plan
from engine.scoring import open_models, survey

BOUND_SECONDS: Final = 8.0
TRIAL_SLICES: Final = 64
_PASSES: Final = 5
"""Over the slices, a repeat: runner only, from RAM, warm, cold, and a fifth for loading and starting."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One --precision of one backend, and what it comes to on this machine."""

    asked: str
    plan: Plan

    @property
    def of(self) -> dict[str, str]:
        models = "+".join(dict.fromkeys(self.plan.precision))
        return {"backend": self.plan.backend, "precision": self.asked, "models": models}


def main() -> None:
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=first)
    add_common(parser, minutes=20, repeats=5)
    parser.add_argument("--backend", default="openvino", help="openvino or onnxruntime")
    parser.add_argument("--precision", action="append", help="may be repeated (else all that there are)")
    parser.add_argument("--batch", type=int, default=BLOCK, help="slices decoded and scored together")
    parser.add_argument("--slices", type=int, help="how many (else to fit --minutes)")
    parser.add_argument("--warm-only", action="store_true", help="leave the emptied page cache out")
    parsed = parser.parse_args()
    options = common(parsed)
    report = Report("throughput", options)
    with options.folder() as folder:
        trial = work_set(options.data, QUICK_SLICES if options.quick else TRIAL_SLICES, folder / "trial")
        base = Options((), folder / "out", options.bundle.folder, backend=parsed.backend, batch=parsed.batch)
        settings = _settings(replace(base, inputs=(str(trial.folder),)), parsed.precision, report)
        count = parsed.slices or _fitting(trial, settings, options)
        work = work_set(options.data, count, folder / "data")
        base = replace(base, inputs=(str(work.folder),))
        slices = load_slices(base, len(work.files))
        for repeat in range(options.repeats):
            for setting in settings if repeat % 2 == 0 else reversed(settings):
                say(f"{setting.asked}, repeat {repeat + 1} of {options.repeats}")
                bound = 0.3 if options.quick else BOUND_SECONDS
                measure(setting, base, Input(work, slices), report, bound, cold=not parsed.warm_only)
        for setting in settings:
            say(f"{setting.asked}: where the CPU time goes")
            measure_stages(setting, base, report)
        report.write(work, folder, {"batch": parsed.batch, "backend": parsed.backend})


@dataclass(frozen=True, slots=True)
class Input:
    """The same slices as files and decoded."""

    work: WorkSet
    slices: Slices


def measure(
    setting: Setting, base: Options, given: Input, report: Report, bound: float, *, cold: bool
) -> None:
    """Every rate once; each model's own for `bound` seconds."""
    work, slices = given.work, given.slices
    plan, out = setting.plan, base.out
    with open_scorer(plan, slices, say) as (scorer, batch):
        warm_up(scorer, slices, batch)
        alone = runner_only(scorer, slices, batch)
        ram = from_ram(scorer, slices, out, batch, plan.operating)
    shutil.rmtree(out)
    passing = alone.passed / alone.slices
    if plan.backend == "openvino":
        classifier = model_rate(plan, "classifier", slices.images, bound)
        segmenter = model_rate(plan, "segmenter", slices.images, bound)
        most = mixed_rate(classifier, segmenter, passing)
        alone_and_bound = {"classifier alone": classifier, "segmenter alone": segmenter, "bound": most}
        for name, rate in alone_and_bound.items():
            report.rows.add({**setting.of, "rate": name}, "rate", "slices/s", rate)
        report.rows.add({**setting.of, "rate": "runner only"}, "of the bound", "1", alone.per_second / most)
    found = {"runner only": alone.per_second, "from RAM": ram.per_second}
    for name in ("disk to disk", "disk to disk, cold") if cold else ("disk to disk",):
        (chill if "cold" in name else warm)(work.files)
        report.rows.add({**setting.of, "rate": name}, "cached before", "1", cached(work.files))
        ran = child.run(_job(setting, base))
        shutil.rmtree(out)
        if (ran.passed, ran.has_mask) != (alone.passed, alone.has_mask):
            report.notes.append(f"{setting.asked}: {name} had another gate outcome than runner only")
        found[name] = ran.per_second
        report.rows.add({**setting.of, "rate": name}, "first result", "s", ran.first_result)
        report.rows.add({**setting.of, "rate": name}, "whole command", "s", ran.total)
    for name, rate in found.items():
        report.rows.add({**setting.of, "rate": name}, "rate", "slices/s", rate)
        report.rows.add({**setting.of, "rate": name}, "of runner only", "1", rate / alone.per_second)
    report.rows.add(setting.of, "passes the gate", "1", passing)


def measure_stages(setting: Setting, base: Options, report: Report) -> None:
    """CPU time a slice by stage, in a run of its own, as watching costs a little."""
    ran = child.run(replace(_job(setting, base), stages=True))
    shutil.rmtree(base.out)
    for stage, spent in ran.stages.items():
        report.rows.add({**setting.of, "stage": stage}, "CPU", "ms/slice", spent / ran.slices * 1e3)


def _job(setting: Setting, base: Options) -> child.Job:
    return child.Job(
        inputs=list(base.inputs),
        out=str(base.out),
        bundle=str(base.bundle),
        backend=setting.plan.backend,
        precision=setting.asked,
        batch=setting.plan.batch,
    )


def _settings(options: Options, asked: list[str] | None, report: Report) -> list[Setting]:
    """What can be had here; what cannot is noted, and raised if it was asked for."""
    found = []
    for precision in asked or PRECISIONS:
        try:
            plan = survey(replace(options, precision=precision)).plan
            with open_models(plan):
                found.append(Setting(precision, plan))
        except TumorscanError as error:
            if asked:
                raise
            report.notes.append(f"{precision} left out: {error}")
    return found


def _fitting(trial: WorkSet, settings: list[Setting], options: Common) -> int:
    """How many slices fill the minutes, by a short trial of each precision."""
    if options.quick:
        return QUICK_SLICES
    slices = load_slices(Options((str(trial.folder),), trial.folder), len(trial.files))
    a_slice = 0.0
    for setting in settings:
        with open_scorer(setting.plan, slices, say) as (scorer, batch):
            warm_up(scorer, slices, batch)
            began = time.monotonic()
            runner_only(scorer, slices, batch)
            a_slice += (time.monotonic() - began) / len(slices)
    seconds = options.minutes * 60 / options.repeats - 2 * BOUND_SECONDS * len(settings)
    count = min(MOST_SLICES, max(TRIAL_SLICES, int(seconds / (_PASSES * a_slice))))
    say(f"{count} slices, about {options.minutes:g} minutes")
    return count


if __name__ == "__main__":
    run(main)
