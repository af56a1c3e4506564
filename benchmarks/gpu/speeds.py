"""Sections `models`, `rates` and `tools`: how fast each runtime is alone, and what a host leaves of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.gpu import tools
from benchmarks.gpu.alone import Rate
from benchmarks.gpu.commands import BACKENDS, by_command, by_torch
from benchmarks.gpu.contender import Contender, contenders
from benchmarks.gpu.data import Resident, resident
from benchmarks.gpu.feeds import (
    Laned,
    Wanted,
    from_disk,
    from_ram,
    into_lanes,
    open_laned,
    open_ring,
)
from benchmarks.gpu.models import MODELS, RUNTIMES, Kind, costs_of, installed, laned, what_to_load
from benchmarks.gpu.operations import Cost
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.told import Told
from benchmarks.null import PASSES
from benchmarks.slices import warm
from engine.bundle import Model
from engine.errors import MachineError
from engine.gpu.lane import SLICE_BYTES
from engine.gpu.start import Plans

POINTS: Final = 6
"""Times that the rates of a runtime are measured for, about: four rates, of which two take longer."""

DISK_REPEATS: Final = 3
"""Disk to disk starts processes that load models and compile, which takes longer than the scoring."""
MOST_FROM_RAM: Final = 40_000
"""Slices that a repeat takes from RAM: a third of them is written as masks."""


def measure_models(settings: Settings, told: Told) -> None:
    """Each model alone and both together on every runtime, in turn; as shares of what the chip can do."""
    everything: tuple[Kind, ...] = (*laned(settings), "channels last", "torch", "compiled", "paced")
    kinds = (*laned(settings), "paced", "torch") if settings.dry else everything
    costs = costs_of(settings)
    for model, cost in costs.items():
        of = {"model": model, "counted": "from its FP16 graph"}
        told.value(of, "multiply-adds", "10^9/slice", cost.multiply_adds / 1e9)
        told.value(of, "weights", "MB", cost.weights / 1e6)
        told.value(of, "tensors read and written", "MB/slice", cost.bytes_moved(settings.batch) / 1e6)
    seconds = settings.seconds_each(3 * len(kinds))
    with contenders(kinds, settings, told, batch=settings.batch, lanes=settings.lanes) as ready:
        for repeat in range(settings.repeats):
            for contender in ready if repeat % 2 == 0 else reversed(ready):
                with told.left_out(f"{RUNTIMES[contender.kind].title}, repeat {repeat + 1}"):
                    for model in MODELS:
                        rate = contender.model(model, seconds)
                        _tell_model(settings, told, contender.kind, model, costs[model], rate)
                    both = contender.cascade(PASSES, seconds)
                    of = {"runtime": contender.kind, "model": "both", "batch": str(settings.batch)}
                    of |= {"lanes": str(settings.lanes), "passes the gate": f"{PASSES:g}"}
                    told.value(of, "rate", "slices/s", both.per_second)


def _tell_model(settings: Settings, told: Told, kind: Kind, model: Model, cost: Cost, rate: Rate) -> None:
    of = {"runtime": kind, "model": model, "batch": str(settings.batch)}
    told.value(of, "rate", "slices/s", rate.per_second)
    if kind == "paced":
        return
    if matrix := settings.known.get("matrix"):
        told.value(of, "of the matrix rate", "1", rate.per_second * cost.operations / matrix)
    if memory := settings.known.get("memory"):
        moved = cost.bytes_moved(settings.batch)
        told.value(of, "of the memory's bandwidth", "1", rate.per_second * moved / memory)


def measure_rates(settings: Settings, told: Told) -> None:
    """Runner only, into the lanes, from RAM, disk to disk: every runtime with lanes, and the paced one."""
    kinds = (*laned(settings), "paced")
    wanted = [Wanted(kind, settings.lanes, settings.batch) for kind in kinds]
    most = settings.batch * 2 if settings.dry else settings.most
    found: dict[Kind, float] = {}
    with (
        resident(settings.slices, settings.batch, most) as memory,
        open_laned(wanted, settings, told, memory) as ready,
        contenders(
            tuple(each.kind for each in ready), settings, told, batch=settings.batch, lanes=settings.lanes
        ) as alone,
    ):
        passing = {each.kind: _warmed(each, memory, settings) for each in ready.values()}
        for each in ready.values():
            registered = {
                "runtime": each.kind,
                "the ring's memory": "registered" if not each.refused else f"refused, {each.refused}",
            }
            told.value(registered, "passes the gate", "1", passing[each.kind])
        for repeat in range(settings.repeats):
            for contender in alone if repeat % 2 == 0 else reversed(alone):
                lane = next(each for each in ready.values() if each.kind == contender.kind)
                with told.left_out(f"{RUNTIMES[lane.kind].title}, repeat {repeat + 1}"):
                    found[lane.kind] = _one_round(contender, lane, memory, passing[lane.kind], settings, told)
    others = () if settings.dry else installed("torch", "compiled")
    _measure_disk((*kinds, *others), settings, told, found)


def _warmed(lane: Laned, memory: Resident, settings: Settings) -> float:
    """The share that passes the gate, once every seat has scored something."""
    fed = into_lanes(lane.scorer, memory, settings.seconds_each(4, most=1.0))
    return fed.passed / fed.rate.slices


def _one_round(
    contender: Contender, lane: Laned, memory: Resident, passing: float, settings: Settings, told: Told
) -> float:
    """Three rates one behind the other; the first."""
    seconds = settings.seconds_each(POINTS)
    alone = contender.cascade(passing, seconds)
    lanes = into_lanes(lane.scorer, memory, seconds)
    count = min(MOST_FROM_RAM, max(20 * settings.batch, round(lanes.rate.per_second * seconds)))
    count = 3 * settings.batch if settings.dry else count
    ram = from_ram(lane.scorer, memory, settings.folder / "ram", count)
    rates = {"runner only": alone, "into the lanes": lanes.rate, "from RAM": ram.rate}
    for name, rate in rates.items():
        _tell_rate(settings, told, lane.kind, name, rate, alone.per_second)
    return alone.per_second


def _measure_disk(
    kinds: tuple[Kind, ...], settings: Settings, told: Told, alone: Mapping[Kind, float]
) -> None:
    """Files in the page cache to masks and committed rows, a process and a ring a repeat."""
    files = [path for path in settings.slices.rglob("*") if path.is_file()]  # to which the others are links
    for repeat in range(1 if settings.quick else min(settings.repeats, DISK_REPEATS)):
        for kind in kinds if repeat % 2 == 0 else reversed(kinds):
            with told.left_out(f"{RUNTIMES[kind].title}, disk to disk"):
                warm(files)
                rate = _one_disk(kind, settings, told)
                _tell_rate(settings, told, kind, "disk to disk", rate, alone.get(kind))


def _one_disk(kind: Kind, settings: Settings, told: Told) -> Rate:
    """By the command where there is one for the runtime, else by the same parts."""
    out = settings.folder / "disk"
    if kind in ("torch", "compiled"):
        return by_torch(kind, out)
    if kind in BACKENDS and not settings.dry:
        return by_command(BACKENDS[kind], settings, out)
    wanted = [Wanted(kind, settings.lanes, settings.batch)]
    with open_ring(settings, settings.lanes) as ring, open_laned(wanted, settings, told, ring) as ready:
        lane = next(iter(ready.values()), None)
        if lane is None:
            raise MachineError("its process did not come up")
        return from_disk(settings.many, ring, lane.scorer, out, settings.batch).rate


def _tell_rate(
    settings: Settings, told: Told, kind: Kind, name: str, rate: Rate, alone: float | None
) -> None:
    of = {"runtime": kind, "rate": name, "lanes": str(settings.lanes), "batch": str(settings.batch)}
    told.value(of, "rate", "slices/s", rate.per_second)
    if alone:
        told.value(of, "of runner only", "1", rate.per_second / alone)
    copy = settings.known.get("copy in")
    if name == "into the lanes" and copy:
        told.value(of, "of the copy bandwidth", "1", rate.per_second * SLICE_BYTES / copy)


def measure_tools(settings: Settings, told: Told) -> None:
    """What trtexec and Polygraphy say of the same plans."""
    plans = what_to_load("tensorrt", settings, settings.batch)
    assert isinstance(plans, Plans)
    seconds = settings.seconds_each(4, least=1.0)
    for repeat in range(settings.repeats):
        for model, plan in (("classifier", plans.classifier), ("segmenter", plans.segmenter)):
            of = {"model": model, "batch": str(settings.batch)}
            with told.left_out(f"trtexec, {model}, repeat {repeat + 1}"):
                queries, compute = tools.trtexec(Path(plan.path), seconds)
                told.value({**of, "tool": "trtexec"}, "rate", "slices/s", queries * settings.batch)
                told.value({**of, "tool": "trtexec"}, "a batch computes", "ms", compute * 1e3)
            with told.left_out(f"Polygraphy, {model}, repeat {repeat + 1}"):
                mean = tools.polygraphy(Path(plan.path), 50)
                told.value(
                    {**of, "tool": "Polygraphy, with copies"}, "rate", "slices/s", settings.batch / mean
                )
