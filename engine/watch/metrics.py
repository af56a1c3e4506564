"""A run's counts and rates as a file for Prometheus (`--metrics FILE`), made anew every 15 seconds.

The file is OpenMetrics text, written so that Prometheus's older format reads it too (a counter's TYPE line
names it without `_total`; there is no `info` type), as node_exporter's textfile collector does.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import engine
from engine.cloud.addresses import local, of_path
from engine.errors import MachineError, TumorscanError
from engine.ledger import Counts, SliceRow
from engine.outputs.atomic import replacing
from engine.pipeline import Totals
from engine.run import Options, Outcome, Plan
from engine.text import shown
from engine.watch.expected import Expected
from engine.watch.watcher import Watcher

WRITE_SECONDS: Final = 15.0
_BUG_STATUS: Final = 1


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: its name (a counter's without `_total`), kind and help, and its samples by their labels."""

    name: str
    kind: str
    help: str
    samples: Mapping[tuple[tuple[str, str], ...], float]

    def text(self, run: str) -> str:
        """Its lines, each sample labelled with the `run`."""
        name = f"{self.name}_total" if self.kind == "counter" else self.name
        lines = [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} {self.kind}"]
        for labels, value in self.samples.items():
            told = ",".join(f'{key}="{_escaped(text)}"' for key, text in (("run", run), *labels))
            lines.append(f"{name}{{{told}}} {value!r}")
        return "\n".join(lines) + "\n"


class Metrics(Watcher):
    """Keeps the figures of one call in `path`. As a context it says in the end how that ended.

    Raises MachineError on entering, where the file cannot be written; a later failure is told once, to `to`.
    """

    def __init__(self, path: Path, options: Options, expected: Expected, to: Watcher) -> None:
        self._path = path
        self._run = _named(options.out)
        self._shard = options.shard
        self._expected = expected
        self._to = to
        self._started = time.time()
        self._written = 0.0
        self._warned = False
        self._plan: Plan | None = None
        self._before = 0
        self._quarantined: Counter[tuple[str, str]] = Counter()
        self._committed: float | None = None
        self._totals = Totals()
        self._finished = False
        self._status: int | None = None

    def begins(self, plan: Plan, counts: Counts) -> None:
        """See `Watcher.begins`."""
        self._plan, self._before = plan, counts.ok + counts.quarantined

    def prepares(self, _text: str, _done: float | None) -> None:
        """See `Watcher.prepares`."""
        self._write_if_due()

    def commits(self, rows: Sequence[SliceRow]) -> None:
        """See `Watcher.commits`."""
        self._committed = time.time()
        self._quarantined.update((row.stage, row.code) for row in rows if row.status == "quarantined")

    def goes_on(self, totals: Totals) -> None:
        """See `Watcher.goes_on`."""
        self._totals = totals
        self._write_if_due()

    def ended(self, outcome: Outcome, status: int) -> None:
        """Take how it ended, and with which exit status."""
        self._plan, self._totals = outcome.plan, outcome.totals
        if outcome.nothing_new:
            self._before = outcome.counts.ok + outcome.counts.quarantined
        self._finished, self._status = outcome.finished, status

    def left(self, status: int) -> None:
        """Take the exit status of a command that came to nothing."""
        self._status = status

    def __enter__(self) -> Self:
        try:
            self._write()
        except OSError as error:
            raise MachineError(
                f"--metrics {shown(self._path)}: cannot be written ({error.strerror}): name another file"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._status = error.exit_status if isinstance(error, TumorscanError) else _BUG_STATUS
        self._try_to_write()

    def _write_if_due(self) -> None:
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._try_to_write()

    def _try_to_write(self) -> None:
        try:
            self._write()
        except OSError as error:
            if not self._warned:
                self._to.says(f"--metrics {shown(self._path)}: cannot be written any more ({error.strerror})")
            self._warned = True

    def _write(self) -> None:
        self._written = time.monotonic()
        text = "".join(family.text(self._run) for family in self._families() if family.samples)
        with replacing(self._path) as file:
            file.write(f"{text}# EOF\n".encode())

    def _families(self) -> list[Family]:
        totals, status = self._totals, self._status
        seconds = (totals.ended if status is not None else time.monotonic()) - totals.started
        running = totals.started > 0
        return [
            Family("tumorscan_run_info", "gauge", "What scores, and where to; always 1.", self._info()),
            Family(
                "tumorscan_slices",
                "counter",
                "Slices that this call committed, by outcome.",
                {_label("outcome", "ok"): totals.ok, _label("outcome", "quarantined"): totals.quarantined},
            ),
            Family(
                "tumorscan_quarantined_slices",
                "counter",
                "Slices that this call put into quarantine, by stage and code (docs/errors.md).",
                {
                    (("stage", stage), ("code", code)): count
                    for (stage, code), count in sorted(self._quarantined.items())
                },
            ),
            Family("tumorscan_masks", "counter", "Slices with a mask, of this call.", _only(totals.has_mask)),
            Family(
                "tumorscan_earlier_slices",
                "gauge",
                "Slices that earlier calls committed.",
                _only(self._before),
            ),
            Family(
                "tumorscan_expected_slices",
                "gauge",
                "Slices of the whole input, about; once it is counted.",
                _only(self._expected.slices),
            ),
            Family(
                "tumorscan_slices_per_second",
                "gauge",
                "This call's mean rate, first slice read to now or to the last row committed.",
                _only(totals.slices / seconds if running and seconds > 0 else 0.0),
            ),
            Family(
                "tumorscan_stage_busy_ratio",
                "gauge",
                "Share of this call's time, 0 to 1, that a stage's threads or processes were at work.",
                {
                    _label("stage", stage): round(share, 4)
                    for stage, share in (totals.busy.shares(seconds) if running else {}).items()
                },
            ),
            Family(
                "tumorscan_start_time_seconds",
                "gauge",
                "When this call began, Unix time.",
                _only(self._started),
            ),
            Family(
                "tumorscan_last_commit_time_seconds",
                "gauge",
                "When rows were committed last, Unix time.",
                _only(self._committed),
            ),
            Family(
                "tumorscan_finished",
                "gauge",
                "1 once every slice of the input has its row.",
                _only(int(self._finished)),
            ),
            Family(
                "tumorscan_exit_status",
                "gauge",
                "The command's exit status (docs/errors.md), once it has ended.",
                _only(status),
            ),
        ]

    def _info(self) -> dict[tuple[tuple[str, str], ...], float]:
        if self._plan is None:
            return {}
        plan = self._plan
        labels = {
            "version": engine.__version__,
            "bundle": plan.bundle.manifest.name,
            "bundle_sha256": plan.bundle.sha256,
            "backend": plan.backend,
            "precision": ",".join(dict.fromkeys(plan.precision)),
            **({} if self._shard is None else {"shard": self._shard.text}),
        }
        return {tuple(labels.items()): 1}


def _named(out: Path) -> str:
    """The output's address or whole path."""
    return str(of_path(out) or shown(os.path.abspath(local(out))))  # noqa: PTH100 - as typed, links kept


def _only(value: float | None) -> dict[tuple[tuple[str, str], ...], float]:
    """One sample without labels of its own; none where there is no value yet."""
    return {} if value is None else {(): value}


def _label(name: str, value: str) -> tuple[tuple[str, str], ...]:
    return ((name, value),)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
