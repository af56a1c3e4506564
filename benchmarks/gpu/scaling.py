"""Sections `scaling` and `host`: what lanes, batches and decode workers bring, and the host without a GPU."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

from benchmarks import results
from benchmarks.gpu.alone import Rate
from benchmarks.gpu.contender import Contender
from benchmarks.gpu.data import resident
from benchmarks.gpu.feeds import FILE_TIMEOUT, SPARE, Wanted, into_lanes, open_laned
from benchmarks.gpu.models import RUNTIMES, Kind, laned
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.told import Told, reason
from benchmarks.machine import CHECKOUT
from benchmarks.slices import warm
from engine.errors import MachineError, TumorscanError
from engine.ring import Ring
from engine.sources.discovery import Discovery, SourceFile

LANES: Final = (1, 2, 3, 4)
BATCHES: Final = (16, 32, 64, 128)
QUICK_LANES: Final = (1, 2, 4)
QUICK_BATCHES: Final = (32, 128)
_LEAST_HOST_MINUTES: Final = 0.5
_TICK: Final = 0.1


def measure_scaling(settings: Settings, told: Told) -> None:
    """Into the lanes by their number, runner only by the batch, decoding by the workers."""
    lanes = (1, 2) if settings.dry else QUICK_LANES if settings.quick else LANES
    batches = (settings.batch,) if settings.dry else QUICK_BATCHES if settings.quick else BATCHES
    with told.left_out("a real runtime by lanes and batches"):
        kind = _first(settings)
        _by_lanes(kind, lanes, settings, told)
        # Another batch is another plan, minutes of building: a quick run asks ONNX Runtime alone.
        _by_batches("onnxruntime-cuda" if settings.quick else kind, batches, settings, told)
    with told.left_out("the paced runner by lanes"):
        _by_lanes("paced", lanes, settings, told)
    with told.left_out("decode workers"):
        _by_workers(settings, told)


def _first(settings: Settings) -> Kind:
    """The first runtime of those with lanes that comes up here. MachineError where none does."""
    said = []
    for kind in laned(settings):
        try:
            with Contender(kind, settings, batch=settings.batch, lanes=1) as contender:
                contender.ready()
                return kind
        except TumorscanError as error:
            said.append(f"{RUNTIMES[kind].title}: {reason(error)}")
    raise MachineError("; ".join(said) or "none is installed")


def _by_lanes(kind: Kind, counts: tuple[int, ...], settings: Settings, told: Told) -> None:
    """All of them loaded at once, one at work at a time, so that repeats can be interleaved."""
    seconds = settings.seconds_each(4 * len(counts))
    wanted = [Wanted(kind, count, settings.batch) for count in counts]
    most = 2 * settings.batch if settings.dry else settings.most
    with (
        resident(settings.slices, settings.batch, most) as memory,
        open_laned(wanted, settings, told, memory) as ready,
    ):
        for repeat in range(settings.repeats + 1):  # the first warms up
            for lane in ready.values():
                fed = into_lanes(lane.scorer, memory, seconds)
                if repeat:
                    of = {
                        "runtime": kind,
                        "by": "lanes",
                        "lanes": str(lane.lanes),
                        "batch": str(settings.batch),
                    }
                    told.value(of, "rate", "slices/s", fed.rate.per_second)


def _by_batches(kind: Kind, batches: tuple[int, ...], settings: Settings, told: Told) -> None:
    """Runner only, one loaded at a time: a large batch may need most of the memory."""
    seconds = settings.seconds_each(4 * len(batches))
    for batch in batches:
        title = f"{RUNTIMES[kind].title}, batches of {batch}"
        with told.left_out(title), Contender(kind, settings, batch=batch, lanes=settings.lanes) as contender:
            contender.ready()
            for _ in range(settings.repeats):
                of = {"runtime": kind, "by": "batch", "batch": str(batch), "lanes": str(settings.lanes)}
                told.value(of, "classifier", "slices/s", contender.model("classifier", seconds).per_second)
                told.value(of, "segmenter", "slices/s", contender.model("segmenter", seconds).per_second)


def _by_workers(settings: Settings, told: Told) -> None:
    """Files in the page cache to decoded blocks, which nobody scores."""
    counts = (1, 2) if settings.dry else tuple(2**k for k in range(7) if 2**k <= 2 * settings.workers)
    files = [each for each in Discovery((str(settings.many),), None, None) if isinstance(each, SourceFile)]
    warm([path for path in settings.slices.rglob("*") if path.is_file()])
    seconds = settings.seconds_each(2 * len(counts))
    for repeat in range(settings.repeats):
        for count in counts if repeat % 2 == 0 else reversed(counts):
            rate = _decoded(files, count, settings.batch, seconds)
            told.value({"by": "decode workers", "workers": str(count)}, "rate", "slices/s", rate.per_second)


def _decoded(files: list[SourceFile], workers: int, batch: int, seconds: float) -> Rate:
    blocks = workers + SPARE
    with Ring(blocks=blocks, block_size=batch, workers=workers, timeout_s=FILE_TIMEOUT) as ring:
        under_way = first = 0
        done, began = 0, 0.0
        warming, deadline = 2 * blocks, float("inf")
        while under_way or time.monotonic() < deadline:
            while time.monotonic() < deadline and (block := ring.acquire(0)) is not None:
                piece = files[first : first + batch]
                first = (first + batch) % len(files)
                ring.submit(block, piece)
                under_way += 1
            decoded = ring.completed(_TICK)
            if decoded is None:
                continue
            under_way -= 1
            ring.release(decoded.block)
            if warming:  # the workers are still coming up
                warming -= 1
                if not warming:
                    began = time.monotonic()
                    deadline = began + seconds
            else:
                done += len(decoded.slices)
        return Rate(done, time.monotonic() - began)


def measure_host(settings: Settings, told: Told) -> None:
    """`benchmarks.host`, a program of its own: the pipeline on null models, and the host's parts."""
    folder = settings.folder / "host"
    minutes = max(_LEAST_HOST_MINUTES, settings.seconds / 60)
    words = ["--data", settings.data, "--bundle", settings.bundle, "--scratch", settings.scratch]
    words += ["--results", str(folder), "--minutes", f"{minutes:.1f}", "--repeats", str(settings.repeats)]
    words += ["--quick", "--cores", "1"] if settings.dry else []
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.host", *words],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = results.read("host", folder)
    if done.returncode or found is None:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise MachineError(f"benchmarks.host failed: {lines[-1] if lines else 'it does not say why'}")
    for row in found.rows:
        for name, series in row.series.items():
            for value in series.values:
                told.value(row.of, name, series.unit, value)
