"""A corpus scored in one run, watched, and judged."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.corpus.cases import write_corpus
from tests.corpus.judge import Verdict, differences, judge
from tests.processes import Watch
from tests.runs import command, environment
from tests.tinybundle import make_tiny_bundle

DATA = "data"
PROCESS_MIB = 1536
"""What a decode worker may hold at most: the largest image that is read, as a file and as pixels."""
QUARANTINED = (0, 4)


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a corpus. Memory in MiB: all processes together, and the largest of them."""

    files: int
    status: int
    seconds: float
    peak_mib: float
    largest_mib: float
    verdict: Verdict

    def as_json(self) -> dict[str, object]:
        return {
            "files": self.files,
            "exit_status": self.status,
            "seconds": round(self.seconds, 1),
            "peak_mib": round(self.peak_mib),
            "largest_process_mib": round(self.largest_mib),
            "ends": dict(self.verdict.ends.most_common()),
            "wrong": self.verdict.wrong,
        }


def play(folder: Path, numbers: Iterable[int], seed: int, *, workers: int) -> Played:
    """Write the files below `folder`, score them all, and the originals among them alone; judge."""
    cases = write_corpus(folder / "all" / DATA, numbers, seed)
    originals = [case.number for case in cases if case.original]
    write_corpus(folder / "originals" / DATA, originals, seed)
    make_tiny_bundle(folder / "bundle")
    reference = None
    if originals:
        run_on(folder / "originals", folder / "bundle", workers)
        reference = folder / "originals" / "results"
    begun = time.monotonic()
    status, watch, said = run_on(folder / "all", folder / "bundle", workers)
    seconds = time.monotonic() - begun
    if status not in QUARANTINED:
        verdict = Verdict([f"the run ended with {status}: {said[-800:]}"])
    else:
        verdict = judge(cases, DATA, folder / "all" / "results", reference)
        # In other slots, after other files: what a slot held before may not show.
        run_on(folder / "all", folder / "bundle", 1, "--batch", "5", "--out", "again")
        verdict.wrong += differences(folder / "all" / "results", folder / "all" / "again")
    if watch.largest > PROCESS_MIB:
        verdict.wrong.append(f"a process held {watch.largest:.0f} MiB, more than {PROCESS_MIB}")
    return Played(len(cases), status, seconds, watch.peak, watch.largest, verdict)


def run_on(folder: Path, bundle: Path, workers: int, *words: str) -> tuple[int, Watch, str]:
    """Score `folder`/data into `folder`/results; exit status, what it held, what it said."""
    line = command("score", DATA, "--bundle", bundle, "--backend", "onnxruntime", "--workers", str(workers))
    with (folder / "said.txt").open("w+b") as log:
        process = subprocess.Popen(
            [*line, "--masks", "none", *words],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        with Watch(process.pid) as watch:
            status = process.wait()
        log.seek(0)
        return status, watch, log.read().decode(errors="replace")
