"""`--metrics`: what the file holds, by the parsers of both formats, and where it cannot be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from engine.errors import MachineError, UsageError
from engine.ledger import SliceRow
from engine.pipeline import Totals
from engine.run import Options
from engine.watch import metrics as module
from engine.watch.expected import Expected
from engine.watch.metrics import Metrics
from engine.watch.watcher import Watcher
from tests.runs import tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle

OPTIONS = Options(inputs=("data",), out=Path("out"))


class Said(Watcher):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def says(self, line: str) -> None:
        self.lines.append(line)


def metrics_at(path: Path, options: Options = OPTIONS, to: Watcher | None = None) -> Metrics:
    return Metrics(path, options, Expected(options), to or Watcher())


def samples(path: Path, parse: Any = openmetrics) -> dict[tuple[str, str], float]:
    """Values by a sample's name and the values of its labels but the run's."""
    return {
        (
            each.name,
            " ".join(value for name, value in sorted(each.labels.items()) if name != "run"),
        ): each.value
        for family in parse(path.read_text())
        for each in family.samples
    }


def quarantined(code: str) -> SliceRow:
    return SliceRow(b"o", 0, "v", "p", "quarantined", 0, 0, stage="decode", code=code, message="m")


def test_a_run_is_told_to_its_end(tmp_path: Path) -> None:
    write_slices(tmp_path / "data", 4)
    (tmp_path / "data" / "bad.png").write_bytes(b"no image")
    make_tiny_bundle(tmp_path / "bundle")
    words = ("score", "data", "--bundle", "bundle", "--out", "out", "--quiet", "--metrics", "run.prom")
    assert tumorscan(*words, cwd=tmp_path).status == 4
    found = samples(tmp_path / "run.prom")
    assert found["tumorscan_slices_total", "ok"] == 4
    assert found["tumorscan_slices_total", "quarantined"] == 1
    assert found["tumorscan_quarantined_slices_total", "not_an_image decode"] == 1
    assert found["tumorscan_masks_total", ""] == 3
    assert found["tumorscan_finished", ""] == 1
    assert found["tumorscan_exit_status", ""] == 4
    assert found["tumorscan_slices_per_second", ""] > 0
    assert found["tumorscan_last_commit_time_seconds", ""] >= found["tumorscan_start_time_seconds", ""]
    for stage in ("decode", "score", "write", "commit"):
        assert 0 < found["tumorscan_stage_busy_ratio", stage] <= 1
    (info,) = [each for each in prometheus((tmp_path / "run.prom").read_text()) if each.name.endswith("info")]
    assert info.samples[0].labels["run"] == str(tmp_path / "out")
    assert info.samples[0].labels["bundle"] == "tiny"
    assert (tmp_path / "run.prom").stat().st_mode & 0o777 == 0o644
    assert samples(tmp_path / "run.prom", prometheus) == found

    assert tumorscan(*words, cwd=tmp_path).status == 4
    found = samples(tmp_path / "run.prom")
    assert found["tumorscan_slices_total", "ok"] == 0
    assert found["tumorscan_earlier_slices", ""] == 5


def test_names_are_escaped(tmp_path: Path) -> None:
    odd = Options(inputs=("data",), out=Path('/a "quoted"\\path\nof two lines'))
    with metrics_at(tmp_path / "run.prom", odd):
        pass
    for parse in (openmetrics, prometheus):
        (first, *_) = [
            each for family in parse((tmp_path / "run.prom").read_text()) for each in family.samples
        ]
        assert first.labels["run"] == '/a "quoted"\\path\nof two lines'


def test_the_file_is_made_anew_when_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.prom"
    with metrics_at(path) as metrics:
        metrics.commits([quarantined("truncated")])
        metrics.goes_on(Totals(quarantined=1))
        assert ("tumorscan_quarantined_slices_total", "truncated decode") not in samples(path)
        monkeypatch.setattr(module, "WRITE_SECONDS", 0.0)
        metrics.goes_on(Totals(quarantined=1))
        assert samples(path)["tumorscan_quarantined_slices_total", "truncated decode"] == 1
        assert ("tumorscan_exit_status", "") not in samples(path)


def test_an_error_that_ends_the_run_is_its_exit_status(tmp_path: Path) -> None:
    path = tmp_path / "run.prom"
    with pytest.raises(UsageError), metrics_at(path):
        raise UsageError("no")
    assert samples(path)["tumorscan_exit_status", ""] == 2
    with pytest.raises(ZeroDivisionError), metrics_at(path):
        raise ZeroDivisionError
    assert samples(path)["tumorscan_exit_status", ""] == 1


def test_a_file_that_cannot_be_written_is_refused_at_the_start_and_later_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MachineError, match=r"--metrics .*run\.prom: cannot be written"),
        metrics_at(tmp_path / "file" / "run.prom"),
    ):
        pass
    said = Said()
    path = tmp_path / "folder" / "run.prom"
    with metrics_at(path, to=said) as metrics:
        path.unlink()
        path.mkdir()
        metrics._written = -100.0
        metrics.goes_on(Totals())
    assert len(said.lines) == 1
    assert "cannot be written any more" in said.lines[0]
