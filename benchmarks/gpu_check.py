"""What a machine with a GPU can do with tumorscan, all of it, by one command.

    python -m benchmarks.gpu_check --data SLICES

Plans, parity, each runtime alone and what the host leaves of it, a paced runner that computes nothing, the
chip's own rates, overlap, scaling. Each section is a process of its own: what is absent or fails is named,
and the rest goes on. Without a GPU it ends with one line and status 3. How to read it: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks import results
from benchmarks.arguments import Common, Report, absolute, say
from benchmarks.gpu.section import SECTIONS, Section
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tables import tables
from benchmarks.gpu.told import Heard, hear
from benchmarks.gpu.worker import VARIABLE
from benchmarks.machine import CHECKOUT
from benchmarks.plots import draw
from benchmarks.slices import replicate, work_set
from engine.bundle import Bundle
from engine.driver import Driver, probe_driver
from engine.errors import MachineError, TumorscanError

MINUTES: Final = 25.0
QUICK_MINUTES: Final = 6.0
REPEATS: Final = 5
QUICK_REPEATS: Final = 3
DISTINCT: Final = 2048
LINKS: Final = 40_000
QUICK_DISTINCT: Final = 512
QUICK_LINKS: Final = 10_000
DRY_SLICES: Final = 20
DRY_LINKS: Final = 24
PER_FOLDER: Final = 1000
BATCH: Final = 64
DRY_BATCH: Final = 4
LANES: Final = 2
"""A lane that waits for its gate's answer leaves the chip to the other."""
PATIENCE: Final = 1.5
"""Times the minutes, after which no further section begins."""


def main() -> None:
    parsed = _parser().parse_args()
    try:
        check(parsed)
    except TumorscanError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def check(parsed: argparse.Namespace) -> None:
    """Run the sections and write what they found. MachineError where there is no GPU."""
    driver = None if parsed.dry_run else probe_driver()
    options = _options(parsed)
    report = Report("gpu_check", options)
    with options.folder() as folder:
        work = work_set(options.data, _of(parsed, DRY_SLICES, QUICK_DISTINCT, DISTINCT), folder / "data")
        replicate(work.files, folder / "links", _of(parsed, DRY_LINKS, QUICK_LINKS, LINKS), PER_FOLDER)
        settings = Settings(
            data=str(work.folder),
            links=str(folder / "links"),
            bundle=str(options.bundle.folder.absolute()),
            scratch=str(folder),
            batch=parsed.batch or (DRY_BATCH if parsed.dry_run else BATCH),
            lanes=parsed.lanes,
            seconds=0.0,
            repeats=options.repeats,
            quick=parsed.quick,
            dry=parsed.dry_run,
            workers=1 if parsed.dry_run else max(1, _cores() // 2),
            most=_of(parsed, DRY_SLICES, QUICK_DISTINCT, DISTINCT),
            plan_cache=None if parsed.plan_cache is None else str(parsed.plan_cache),
        )
        walked = run_sections(settings, parsed.only or list(SECTIONS), parsed.skip, options.minutes, report)
        if driver is None:
            print(f"a dry run on a double of a GPU: {walked} quantities walked through, nothing measured")
            print("\n".join(report.notes))
            return
        if not report.rows.gathered():
            raise MachineError(
                f"nothing could be measured: {'; '.join(report.notes) or 'no section was chosen'}"
            )
        report.packages |= _versions(driver)
        path = report.write(
            work, folder, {"batch": settings.batch, "lanes": settings.lanes, "quick": int(parsed.quick)}
        )
    _show(path)


def run_sections(
    settings: Settings, chosen: list[str], skipped: list[str], minutes: float, report: Report
) -> int:
    """Each in its process, in turn; what they found goes into the report. How many quantities that were."""
    spent, known, walked = 0.0, dict[str, float](), 0
    for name, section in SECTIONS.items():
        if name not in chosen or name in skipped:
            continue
        if spent > PATIENCE * minutes * 60:
            report.notes.append(f"{name} is left out: the {minutes:g} minutes are over")
            continue
        say(f"{name}, about {section.share * minutes:.1f} minutes" if section.share else name)
        began = time.monotonic()
        heard = _run(name, section, replace(settings, seconds=section.share * minutes * 60, known=known))
        if section.share:  # plans take what they take
            spent += time.monotonic() - began
        known |= heard.known
        report.notes += heard.notes
        for of, series, unit, value in heard.values:
            walked += 1
            if value is not None:
                report.rows.add(of, series, unit, value)
    return walked


def _run(name: str, section: Section, settings: Settings) -> Heard:
    """What a section told, also where it was killed or ran out of its time, which is noted."""
    told = Path(settings.scratch) / f"{name}.told"
    words = [sys.executable, "-m", "benchmarks.gpu.section", name, str(told)]
    variables = {**os.environ, "PYTHONPATH": str(CHECKOUT), VARIABLE: settings.encode()}
    complaints = Path(settings.scratch) / f"{name}.said"
    over = ""
    with complaints.open("wb") as said:
        # A group of its own, to be ended with all that it started.
        process = subprocess.Popen(
            words, cwd=CHECKOUT, env=variables, stdout=said, stderr=said, start_new_session=True
        )
        try:
            process.wait(section.limit * 60)
        except subprocess.TimeoutExpired:
            over = f"it did not end within {section.limit:g} minutes"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    heard = hear(told)
    if not over and process.returncode:
        lines = [line for line in complaints.read_text(errors="replace").splitlines() if line.strip()]
        over = (
            f"its process ended with status {process.returncode}: {lines[-1] if lines else 'no reason given'}"
        )
    if over:
        heard.notes.append(f"{name}: what comes behind it is left out: {over}")
    for note in heard.notes:
        say(note)
    return heard


def _show(path: Path) -> None:
    """The tables on the screen, and the picture beside the JSON where matplotlib is here."""
    result = results.read("gpu_check", path.parent)
    assert result is not None
    print("\n\n".join(tables(result)))
    print("\n".join(f"- {note}" for note in result.notes))
    with suppress(ImportError):
        draw(result, path.with_suffix(".svg"))


def _parser() -> argparse.ArgumentParser:
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=first)
    parser.add_argument("--data", type=absolute, help="a folder of real slices (else phantoms are drawn)")
    parser.add_argument("--bundle", type=absolute, help="the model bundle (else the one that is installed)")
    parser.add_argument("--scratch", type=absolute, help="for outputs (else the temporary folder)")
    parser.add_argument(
        "--out", type=absolute, default=results.FOLDER, help="where JSON and picture are written"
    )
    parser.add_argument("--plan-cache", type=absolute, help="where plans lie (else as for tumorscan build)")
    parser.add_argument("--minutes", type=float, help=f"about how long (else {MINUTES:g}); plans come on top")
    parser.add_argument("--repeats", type=int, help=f"interleaved (else {REPEATS})")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_MINUTES:g} minutes, {QUICK_REPEATS} repeats"
    )
    parser.add_argument("--dry-run", action="store_true", help="on a double of a GPU; measures nothing")
    parser.add_argument("--batch", type=int, help=f"slices at a time (else {BATCH})")
    parser.add_argument("--lanes", type=int, default=LANES, help=f"(else {LANES})")
    for name, told in (("--only", "may be repeated"), ("--skip", "the same")):
        parser.add_argument(name, action="append", default=[], choices=SECTIONS, help=told)
    return parser


def _options(parsed: argparse.Namespace) -> Common:
    quick = parsed.quick or parsed.dry_run
    return Common(
        data=parsed.data,
        bundle=Bundle.load(parsed.bundle or Bundle.default_folder()),
        scratch=parsed.scratch,
        repeats=parsed.repeats or _of(parsed, 1, QUICK_REPEATS, REPEATS),
        minutes=parsed.minutes or (QUICK_MINUTES if quick else MINUTES),
        quick=False,  # a short run measures as a long one does, less often
        results=parsed.out,
    )


def _of(parsed: argparse.Namespace, dry: int, quick: int, whole: int) -> int:
    return dry if parsed.dry_run else quick if parsed.quick else whole


def _versions(driver: Driver) -> dict[str, str]:
    """What else there is to name: the driver, its CUDA, and the frameworks that are measured."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"NVIDIA driver": driver.release, "CUDA of the driver": ".".join(map(str, driver.cuda))}
    for name in ("torch", "triton", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "polygraphy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
