"""A run of files over a GPU's process: the real ring, pipeline and ledger, the GPU a double."""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from engine.bundle import Bundle
from engine.cascade import OperatingPoint
from engine.errors import MachineError
from engine.gpu.process import open_gpus
from engine.gpu.start import Graphs, Start
from engine.ledger import Ledger
from engine.pending import Pending
from engine.pipeline import Pipeline, Totals
from engine.ring import Ring
from engine.rows import RowWriter
from engine.scorer import GpuScorer, HostScorer, Scorer
from engine.sources.discovery import Discovery
from tests.gpuchild import MODULE
from tests.lanes import host_cascade
from tests.runs import files_below, write_slices
from tests.tinybundle import make_tiny_bundle

BATCH = 4
SLICES = 22


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    write_slices(tmp_path / "in", SLICES)
    (tmp_path / "in" / "p0" / "broken.tif").write_bytes(b"II*\0 and nothing more")
    return make_tiny_bundle(tmp_path / "bundle")


def run(bundle: Bundle, out: Path, *, gpus: int, overlays: bool = False) -> Totals:
    """Score what is left of the input; 0 GPUs are the host."""
    stop = threading.Event()
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(out / "run.sqlite", {"test": 1}, fresh=False))
        discovery = Discovery([str(bundle.folder.parent / "in")], None, out)
        ring = stack.enter_context(Ring(blocks=6, block_size=BATCH, workers=1, timeout_s=60))
        scorer: Scorer = HostScorer(host_cascade(bundle), 2)
        if gpus:
            starts = [Start(0, 2, BATCH, 0.5, Graphs(bundle.folder))] * gpus
            processes = stack.enter_context(
                open_gpus(lambda batch: starts, BATCH, smaller=False, say=pytest.fail, module=MODULE)
            )
            for process in processes:
                process.open(ring.descriptor, ring.slots)
            scorer = GpuScorer(processes, OperatingPoint.of(bundle))
        return Pipeline(
            entries=iter(Pending(discovery, ledger, False, None, stop=stop)),
            ring=ring,
            scorer=scorer,
            writer=RowWriter(out, masks=True, overlays=overlays),
            ledger=ledger,
            block_size=BATCH,
            stop=stop,
            on_tick=lambda totals: None,
        ).run()


def rows(out: Path) -> list[tuple[Any, ...]]:
    """What the ledger has of every slice, in its order."""
    with sqlite3.connect(out / "run.sqlite") as ledger:
        return sorted(ledger.execute("select * from slices").fetchall())


@pytest.mark.parametrize("overlays", [False, True])
def test_gpus_leave_what_the_host_leaves(overlays: bool, bundle: Bundle, tmp_path: Path) -> None:
    for name, gpus in (("host", 0), ("gpus", 2)):
        totals = run(bundle, tmp_path / name, gpus=gpus, overlays=overlays)
        assert (totals.ok, totals.quarantined) == (SLICES, 1)
    assert rows(tmp_path / "gpus") == rows(tmp_path / "host")
    assert files_below(tmp_path / "gpus") == files_below(tmp_path / "host")
    assert not (bundle.folder / "findings").exists()


def test_after_a_fault_the_same_run_goes_on(bundle: Bundle, tmp_path: Path) -> None:
    run(bundle, tmp_path / "host", gpus=0)
    settings = bundle.folder / "double.json"
    done = []
    for at in itertools.count(1, 2):
        settings.write_text(json.dumps({"fail": [["memcpy_htod_async", at, "unknown error"]]}))
        try:
            run(bundle, tmp_path / "gpu", gpus=1)
        except MachineError as error:
            assert "GPU 0: the GPU fails" in str(error)  # noqa: PT017
            done.append(len(rows(tmp_path / "gpu")))
        else:
            break
    assert len(done) >= 2
    assert done == sorted(done)
    assert rows(tmp_path / "gpu") == rows(tmp_path / "host")
    assert files_below(tmp_path / "gpu") == files_below(tmp_path / "host")


@pytest.fixture(autouse=True)
def _fast_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.pipeline.COMMIT_SECONDS", 0.01)
