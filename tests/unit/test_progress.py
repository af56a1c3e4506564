from __future__ import annotations

import io

import pytest
from rich.console import Console

pytest.importorskip("keras", reason="needs the train extra")

from trainer import progress
from trainer.progress import Progress


def told(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, first: int = 0) -> str:
    """What is said of two epochs of four steps of 20 s, and a validation of 40 s."""
    clock = iter(range(0, 10_000, 20))
    now = [0]

    def monotonic() -> float:
        return float(now[0])

    monkeypatch.setattr(progress.time, "monotonic", monotonic)
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=terminal, width=200), 3) as shown:
        watcher = shown.watcher()
        watcher.on_start(first, 3, 4)
        for epoch in range(first, 3):
            for step in range(1, 5):
                now[0] = next(clock)
                watcher.on_step(epoch, step)
            next(clock), next(clock)
            watcher.on_epoch(epoch, {"loss": 0.12345, "val_loss": 0.5})
    return out.getvalue()


def test_where_there_is_no_terminal_a_line_a_minute_tells_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch, terminal=False).splitlines()
    assert lines[0] == "epoch 1/3  step 4/4  20.00 s/step, 3 min left"
    assert lines[1] == "epoch 1/3  loss 0.1235  val_loss 0.5  20.00 s/step, 3 min left"
    assert next(line for line in lines if line.startswith("epoch 3/3  loss")).endswith("0 s left")


def test_a_resumed_training_counts_its_own_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch, terminal=False, first=2).splitlines()
    assert lines[0] == "epoch 3/3  step 4/4  20.00 s/step, 0 s left"


def test_a_terminal_gets_a_bar_with_seconds_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "s/step" in told(monkeypatch, terminal=True)
