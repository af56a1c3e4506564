"""What TensorRT says while it builds, and the one way to stop it: by the progress monitor's answer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, SupportsInt, TextIO

from engine.errors import MachineError
from engine.plans.toolkit import Toolkit
from engine.text import shown

if TYPE_CHECKING:
    import tensorrt as trt

Progress = Callable[[str, float], None]
"""Takes the name of a phase and how much of the whole build is done, 0..1."""

_ERRORS_KEPT = 3


class Messages:
    """A log file for TensorRT's messages: a context manager that keeps the last errors for the error line.

    TensorRT calls from threads of its own and swallows what a callback raises, so nothing here raises to it:
    a failure is kept, ends the build at its next step, and is raised by `raise_failure`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: BaseException | None = None
        self._errors: deque[str] = deque(maxlen=_ERRORS_KEPT)
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def write(self, severity: str, text: str) -> None:
        """Add one message, such as ("WARNING", "..."), to the file."""
        with self._lock:
            if "ERROR" in severity:
                self._errors.append(" ".join(text.split()))
            if self._file is None:
                return
            try:
                self._file.write(f"{severity}: {text}\n")
            except OSError as error:
                self.failure = self.failure or self._unwritable(error)

    def stop(self, failure: BaseException) -> None:
        """End the build at its next step; the first failure is the one that counts."""
        with self._lock:
            self.failure = self.failure or failure

    def raise_failure(self) -> None:
        """Raise what a callback could not."""
        if self.failure is not None:
            raise self.failure

    def reason(self) -> str:
        """The last errors in one line, and where the other messages are."""
        with self._lock:
            said = "; ".join(self._errors) or "it does not say why"
        return f"{said} (all of its messages: {shown(self.path)})"

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1)
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # a line that could not be written was noticed when it was written
                file.close()

    def _unwritable(self, error: OSError) -> MachineError:
        return MachineError(f"the build log {shown(self.path)} cannot be written: {error.strerror}")


def make_logger(toolkit: Toolkit, messages: Messages) -> trt.ILogger:
    """A logger that hands everything but TensorRT's verbose chatter to `messages`."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = toolkit.module

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity != trt.ILogger.Severity.VERBOSE:
                messages.write(severity.name, msg)

    return Logger()


def make_monitor(toolkit: Toolkit, messages: Messages, progress: Progress | None) -> trt.IProgressMonitor:
    """A monitor that reports to `progress` and stops the build once `messages` holds a failure."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = toolkit.module
    phases = _Phases()

    def report(name: str, fraction: float) -> None:
        if progress is None or messages.failure is not None:
            return
        try:
            progress(name, fraction)
        except BaseException as error:
            messages.stop(error)

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: SupportsInt) -> None:
            report(phase_name, phases.start(phase_name, parent_phase, int(num_steps)))

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            report(phase_name, phases.step(phase_name, int(step)))
            return messages.failure is None

        def phase_finish(self, phase_name: str) -> None:
            report(phase_name, phases.finish(phase_name))

    return Monitor()


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class _Phases:
    """The nested phases of a build, and how much of the outermost one is done; that never falls."""

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._fraction = 0.0
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> float:
        with self._lock:
            if parent not in self._open:
                self._fraction = 0.0
            self._open[name] = _Phase(parent, max(steps, 1))
            return self._risen(name)

    def step(self, name: str, step: int) -> float:
        with self._lock:
            if name in self._open:
                self._open[name].done = step + 1
            return self._risen(name)

    def finish(self, name: str) -> float:
        with self._lock:
            if name in self._open:
                self._open[name].done = self._open[name].steps
            fraction = self._risen(name)
            self._open.pop(name, None)
            return fraction

    def _risen(self, name: str | None) -> float:
        part = 0.0
        while name is not None and (phase := self._open.get(name)) is not None:
            part = min(1.0, (phase.done + part) / phase.steps)
            name = phase.parent
        self._fraction = max(self._fraction, part)
        return self._fraction
