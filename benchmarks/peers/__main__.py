"""tumorscan beside others that do the same job: from the same files to masks and a table, in turn.

    python -m benchmarks.peers --data SLICES --python-torch PATH --python-ray PATH ...

Each is a process of its own, in an environment of its own where one is named. Loading, compiling and a
first batch do not count; reading, both models, masks and table do. Before anything is timed each has to
draw the same masks on a part of the slices; what cannot run, or draws others, is left out by name.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks import arguments
from benchmarks.arguments import Common, Report, add_common, common, say
from benchmarks.peers.check import Masks, compare, read_masks
from benchmarks.peers.entries import (
    ENVIRONMENTS,
    PEERS,
    Entry,
    Peer,
    Timed,
    missing,
    run_peer,
    run_tumorscan,
)
from benchmarks.peers.job import Job
from benchmarks.peers.weights import write_weights
from benchmarks.slices import WorkSet, warm, work_set
from engine.bundle import Bundle, Model
from engine.errors import TumorscanError, UsageError
from engine.run import BLOCK
from engine.runners import BF16_FLAGS, cpu_flags

CHECKED: Final = 48
TRIES: Final = 3
"""Of each form of a program, where it has several: a single short run may be slow by a third."""
QUICK_CHECKED: Final = 20
FEWEST: Final = 100
MOST: Final = 2048

Run = Callable[[Entry, WorkSet], Timed]


@dataclass(frozen=True, slots=True)
class Trial:
    """What the check of an entry took."""

    entry: Entry
    timed: Timed


def main() -> None:
    parsed = _parser().parse_args()
    options = common(parsed)
    report = Report("peers", options)
    pythons = {name: getattr(parsed, f"python_{name}") or sys.executable for name in ENVIRONMENTS}
    with options.folder() as folder:
        entries = _present(_entries(parsed.only, parsed.precision), pythons, report)
        template = _template(options.bundle)
        try:
            weights = write_weights(options.bundle, folder)
            template = replace(template, weights={model: str(path) for model, path in weights.items()})
        except UsageError as error:
            entries = [entry for entry in entries if entry.peer is None or not entry.peer.builds_networks]
            report.notes.append(f"peers that build the networks are left out: {error}")

        def run(entry: Entry, work: WorkSet) -> Timed:
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            warm(work.files)
            if entry.peer is None:
                return run_tumorscan(entry, options.bundle.folder, work.folder, out, template.batch)
            files = [str(file) for file in work.files]
            job = replace(
                template,
                files=files,
                out=str(out),
                precision=entry.precision,
                compiled=entry.compiler is not None,
            )
            return run_peer(entry, pythons[entry.peer.environment], job, folder)

        checked = work_set(options.data, QUICK_CHECKED if options.quick else CHECKED, folder / "checked")
        trials = _checked(entries, checked, run, folder / "out", report, 1 if options.quick else TRIES)
        work = checked
        if not options.quick:
            count = parsed.slices or _fitting(trials, options)
            work = work_set(options.data, count, folder / "data")
        measure([trial.entry for trial in trials], work, options, run, report)
        report.write(work, folder, {"batch": template.batch, "checked": len(checked.files)})


def measure(entries: list[Entry], work: WorkSet, options: Common, run: Run, report: Report) -> None:
    """All entries in turn, each repeat beginning with another; ratios are within a repeat."""
    for repeat in range(options.repeats):
        start = repeat % len(entries)
        found: dict[Entry, float] = {}
        for entry in entries[start:] + entries[:start]:
            say(f"{entry.name}, repeat {repeat + 1} of {options.repeats}")
            timed = run(entry, work)
            found[entry] = timed.per_second
            report.rows.add(entry.of, "rate", "slices/s", timed.per_second)
            report.rows.add(entry.of, "whole command", "s", timed.total)
        for entry, rate in found.items():
            if entry.peer is None and entry.backend == "openvino":
                for other, its_rate in found.items():
                    if other != entry:
                        report.rows.add(entry.of, f"times {other.name}", "1", rate / its_rate)


def _parser() -> argparse.ArgumentParser:
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=first)
    add_common(parser, minutes=45, repeats=5)
    for name in ENVIRONMENTS:
        told = f"the interpreter that has {name}"
        parser.add_argument(f"--python-{name}", metavar="PATH", type=_interpreter, help=told)
    programs = ", ".join(peer.program for peer in PEERS)
    parser.add_argument("--only", action="append", help=f"may be repeated: {programs}")
    parser.add_argument("--precision", action="append", help="may be repeated (else fp32, bf16 and int8)")
    parser.add_argument("--slices", type=int, help="how many (else to fit --minutes)")
    return parser


def _interpreter(text: str) -> str:
    """One with a folder in it is meant from here; another is found on the PATH."""
    return str(arguments.absolute(text)) if "/" in text else text


def _entries(only: list[str] | None, precisions: list[str] | None) -> list[Entry]:
    """tumorscan at each precision and on ONNX Runtime, and every peer at those that it has."""
    here = ("fp32", "bf16", "int8") if cpu_flags() & BF16_FLAGS else ("fp32", "int8")
    asked = tuple(precisions) if precisions else here  # int8 is left out by name where a bundle lacks it
    entries = [Entry(None, precision) for precision in asked]
    entries += [Entry(None, "fp32", backend="onnxruntime")] if "fp32" in asked else []
    for peer in PEERS:
        if only is None or peer.program in only:
            entries += [
                Entry(peer, precision, compiler)
                for precision in peer.precisions
                if precision in asked
                for compiler in peer.compilers
            ]
    return entries


def _present(entries: list[Entry], pythons: dict[str, str], report: Report) -> list[Entry]:
    """Those whose packages are installed; the others are named."""
    lacking: dict[Peer, list[str]] = {}
    for peer in dict.fromkeys(entry.peer for entry in entries if entry.peer):
        lacking[peer], found = missing(peer, pythons[peer.environment])
        report.packages |= {name: version for name, version in found.items() if name in peer.packages}
        if lacking[peer]:
            report.notes.append(
                f"{peer.title} is left out: {', '.join(lacking[peer])} not installed "
                f"(--python-{peer.environment} names an interpreter that has it)"
            )
    return [entry for entry in entries if entry.peer is None or not lacking[entry.peer]]


def _checked(
    entries: list[Entry], work: WorkSet, run: Run, out: Path, report: Report, tries: int
) -> list[Trial]:
    """Those that draw the masks they should; of a program's compilers the one that was fastest."""
    say(f"the reference on {len(work.files)} slices")
    run(Entry(None, "fp32", backend="onnxruntime"), work)
    reference = read_masks(out)
    forms: dict[tuple[object, ...], list[Trial]] = {}
    for entry in entries:
        say(f"check: {entry.name}")
        try:
            trial = Trial(entry, run(entry, work))
        except TumorscanError as error:
            report.notes.append(f"left out: {error}")
            continue
        if why := _differs(reference, out, entry):
            report.notes.append(f"{entry.name} is left out: {why}")
            continue
        kind = (entry.of["program"], entry.precision, entry.backend)
        forms.setdefault(kind, []).append(trial)
    for several in (each for each in forms.values() if len(each) > 1):
        _try_again(several, work, run, tries - 1)
        several.sort(key=_rate, reverse=True)
        rates = ", ".join(f"{trial.entry.name} {_rate(trial):.3g}" for trial in several)
        report.notes.append(f"the first of these forms is measured, slices/s in trials: {rates}")
    return [each[0] for each in forms.values()]


def _try_again(forms: list[Trial], work: WorkSet, run: Run, times: int) -> None:
    """Leave the fastest run of each of a program's forms, which take turns."""
    for _ in range(times):
        for place, trial in enumerate(forms):
            say(f"once more: {trial.entry.name}")
            forms[place] = max(trial, Trial(trial.entry, run(trial.entry, work)), key=_rate)


def _rate(trial: Trial) -> float:
    return trial.timed.per_second


def _differs(reference: Masks, out: Path, entry: Entry) -> str:
    try:
        return compare(reference, read_masks(out)).broken(entry.precision)
    except (OSError, ValueError) as error:
        return str(error)


def _template(bundle: Bundle) -> Job:
    """What all jobs share; files, outputs and weights are not in it yet."""
    models: tuple[Model, ...] = ("classifier", "segmenter")
    return Job(
        files=[],
        out="",
        graphs={model: str(bundle.graph(model).resolve()) for model in models},
        weights={},
        imagenet_input=bundle.manifest.normalisation.classifier == "imagenet_bgr",
        gate_threshold=bundle.gate_threshold,
        mask_threshold=bundle.mask_threshold,
        min_pixels=bundle.min_pixels,
        precision="fp32",
        compiled=False,
        batch=BLOCK,
        cores=len(os.sched_getaffinity(0)),
    )


def _fitting(trials: list[Trial], options: Common) -> int:
    """How many slices fill the minutes, by the trials."""
    starting = sum(trial.timed.total - trial.timed.seconds for trial in trials)
    a_slice = sum(1 / trial.timed.per_second for trial in trials)
    count = int((options.minutes * 60 / options.repeats - starting) / a_slice)
    fitting = min(MOST, max(FEWEST, count))
    say(f"{fitting} slices, about {options.repeats * (starting + fitting * a_slice) / 60:.0f} minutes more")
    return fitting


if __name__ == "__main__":
    arguments.run(main)
