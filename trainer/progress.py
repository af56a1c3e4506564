"""How a training is shown: a bar on a terminal, a line a minute elsewhere; seconds a step and time left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Self

from rich import progress as rich_progress
from rich.console import Console

from trainer.fit import Watcher

LINE_EVERY_S = 60.0


@dataclass(slots=True)
class Progress:
    """Shows one training on a console.

    Args:
        console: where to.
        epochs: how many the recipe has.
    """

    console: Console
    epochs: int
    steps: int = 0
    first: int = 0
    begun: float | None = None
    said: float = 0.0
    bar: rich_progress.Progress = field(init=False)
    task: rich_progress.TaskID = field(init=False)

    def __post_init__(self) -> None:
        columns = (
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[pace]}"),
        )
        self.bar = rich_progress.Progress(
            *columns, console=self.console, disable=not self.console.is_terminal, transient=True
        )
        self.task = self.bar.add_task("starting", total=None, pace="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def watcher(self) -> Watcher:
        """What `trainer.fit.train` tells."""
        return Watcher(on_start=self._start, on_step=self._step, on_epoch=self._epoch)

    def _start(self, first: int, _epochs: int, steps: int) -> None:
        self.first, self.steps = first, steps
        self.bar.update(self.task, description=self._named(first), total=steps)

    def _step(self, epoch: int, done: int) -> None:
        if self.begun is None:  # the first step takes long: Keras traces the model in it
            self.begun = self.said = time.monotonic()
            return
        pace = self._pace(epoch, done)
        self.bar.update(self.task, description=self._named(epoch), completed=done, pace=pace)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.said >= LINE_EVERY_S:
            self.said = now
            self._say(f"{self._named(epoch)}  step {done}/{self.steps}  {pace}")

    def _epoch(self, epoch: int, figures: dict[str, float]) -> None:
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._say(f"{self._named(epoch)}  {text}  {self._pace(epoch, self.steps)}")

    def _named(self, epoch: int) -> str:
        return f"epoch {epoch + 1}/{self.epochs}"

    def _pace(self, epoch: int, done: int) -> str:
        """Seconds a step and time left, validation counted in, by the mean since the first step."""
        since = 0.0 if self.begun is None else time.monotonic() - self.begun
        each = since / max(1, (epoch - self.first) * self.steps + done - 1)
        left = ((self.epochs - epoch) * self.steps - done) * each
        minutes = round(left / 60)
        hours = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
        return f"{each:.2f} s/step, {hours if minutes else f'{left:.0f} s'} left"

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)
