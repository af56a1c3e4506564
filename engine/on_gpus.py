"""Both models of a run, in lanes on every GPU that it uses: prepared, started, told of in run.json."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from pydantic import JsonValue

from engine.backend import Device
from engine.build import BATCH
from engine.cascade import OperatingPoint
from engine.errors import MachineError, UsageError
from engine.gpu import process
from engine.gpu.lane import INPUTS
from engine.gpu.process import GpuProcess, open_gpus
from engine.gpu.start import Start
from engine.outputs.runjson import GpuReport
from engine.prepare import Prepared, Request, prepare
from engine.run import GpuUse, Plan
from engine.scorer import GpuScorer, gate_for_gpu
from engine.stop import Stop

# Estimated from the models' largest tensors, and not measured: what a lane takes a slice of its batch (its
# buffers, and scratch memory of which the segmenter's first and last layers need the most), and what the
# context, the libraries and the weights take once. Both in bytes.
_A_SLICE: Final = 32 << 20
_ONCE: Final = 1 << 30
_SMALLEST: Final = 8


class Listener(Protocol):
    """Who hears how the GPUs come up, and go."""

    def prepares(self, text: str, done: float | None) -> None:
        """What is being done, and how much of it, 0 to 1, where that is known."""

    def says(self, line: str) -> None:
        """A line for the user; from any thread."""


@dataclass(slots=True)
class OnGpus:
    """The processes of all GPUs, ready for `scorer`. `batch` is what they came up with."""

    use: GpuUse
    operating: OperatingPoint
    processes: Sequence[GpuProcess]
    proof: str
    listener: Listener
    refused: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def batch(self) -> int:
        """Slices a batch, and a block of the ring."""
        return self.processes[0].start.batch

    @property
    def loaded(self) -> dict[str, JsonValue]:
        """What of a run's identity the loaded models decide (see `GpuUse.loaded`)."""
        assert self.processes[0].loaded is not None
        classifier, segmenter = self.processes[0].loaded
        return {
            "backend_version": f"{classifier.name} {classifier.version}",
            "batch": self.batch,
            "models": {"classifier": dict(classifier.identity), "segmenter": dict(segmenter.identity)},
        }

    def blocks(self, *, kept: bool) -> int:
        """How many blocks of a ring the lanes use; `kept` ones stay until their masks are written."""
        if kept or len(self.processes) > 1:
            return sum(process.seats for process in self.processes)
        return self.use.lanes * (INPUTS + 1)

    def scorer(self, ring: int, slots: int) -> GpuScorer:
        """On the ring's memory, of so many slots behind the descriptor `ring`. Raises MachineError."""
        self.refused = [each.open(ring, slots) for each in self.processes]
        return GpuScorer(self.processes, self.operating, self._lose)

    def _lose(self, gone: GpuProcess, error: MachineError) -> None:
        self.lost.append(str(error))
        self.listener.says(f"{error}; the other GPUs go on, GPU {gone.start.device} is left out")

    def report(self) -> GpuReport:
        """What run.json says of it."""
        return GpuReport(
            model=self.use.devices[0].name,
            indexes=[device.index for device in self.use.devices],
            lanes=self.use.lanes,
            batch=self.batch,
            proof=self.proof,
            ring_pagelocked=not any(self.refused),
            lost=self.lost,
        )


@contextmanager
def open_on_gpus(plan: Plan, slices: Sequence[bytes], listener: Listener, stop: Stop) -> Iterator[OnGpus]:
    """Prepare the models on `slices` (see `engine.prepare`) and start a process a GPU.

    Where a GPU has too little memory for the batch that was chosen by it, half of that is tried once.

    Raises:
        StoppedError: the run was asked to stop before they were ready.
        GpuMemoryError: too little memory on one of them.
        MachineError, UsageError: what `prepare` and `GpuProcess.ready` raise, and a continued run whose
            runtime is another now.
    """
    use = plan.gpus
    assert use is not None
    last: list[Prepared] = []

    def starts(batch: int) -> list[Start]:
        last[:] = [prepare(_request(plan, use, slices, batch), listener.prepares, stop)]
        listener.prepares("loading the models", None)
        gate, models = gate_for_gpu(plan.operating), last[0].models
        return [Start(device.index, use.lanes, batch, gate, models) for device in use.devices]

    batch = use.batch or batch_for(use.devices, use.lanes)
    with open_gpus(
        starts,
        batch,
        smaller=use.batch is None,
        say=listener.says,
        module=process.WORKER,
        over=stop.asked,
    ) as processes:
        opened = OnGpus(use, plan.operating, processes, last[0].proof, listener)
        if use.loaded is not None:
            _expect_same(use.loaded, opened.loaded)
        _tell(opened)
        yield opened


def batch_for(devices: Sequence[Device], lanes: int) -> int:
    """The largest batch, at most the usual one, for which all GPUs have memory free; at least a small one."""
    free = min(device.free for device in devices)
    batch = BATCH
    while batch > _SMALLEST and _ONCE + lanes * batch * _A_SLICE > free:
        batch //= 2
    return batch


def _request(plan: Plan, use: GpuUse, slices: Sequence[bytes], batch: int) -> Request:
    return Request(
        bundle=str(plan.bundle.folder),
        runtime=use.runtime,
        visible=_visible(use.devices[0]),
        batch=batch,
        plan_cache=None if use.plan_cache is None else str(use.plan_cache),
        slices=tuple(path.decode("latin-1") for path in slices),
        continued=plan.continued,
    )


def _visible(device: Device) -> str:
    """One GPU of those that this process sees, as CUDA_VISIBLE_DEVICES names it."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(device.index) if named is None else named.split(",")[device.index].strip()


def _expect_same(begun: Mapping[str, JsonValue], now: Mapping[str, JsonValue]) -> None:
    for name, value in now.items():
        if begun.get(name) != value:
            raise UsageError(
                f"the run was begun with {name} {begun.get(name)}, here is {value}: results would differ; "
                "restore that, give another --out, or start over with --fresh"
            )


def _tell(opened: OnGpus) -> None:
    use, count = opened.use, len(opened.use.devices)
    opened.listener.says(
        f"{count} x {use.devices[0].name}, lanes: {use.lanes} each, batches of {opened.batch}; FP16 is "
        f"{opened.proof}"
    )
