"""The models of a run, opened, and the ring that they score from: on the CPU, or on GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from engine.backend import Runtime
from engine.cascade import Cascade
from engine.cloud.addresses import Address, longest_name
from engine.errors import MachineError, UsageError
from engine.mask_processes import MaskProcesses
from engine.outputs.drawing import Drawer, DrawnHere
from engine.outputs.leftovers import FOLDERS
from engine.outputs.pseudonyms import Pseudonyms
from engine.pipeline import SCORED_AHEAD, WRITERS
from engine.ring import CHUNKS_AHEAD, Ring, chunk_files
from engine.rows import RowWriter
from engine.run import Options, Plan
from engine.runners import open_runner
from engine.scorer import HostScorer, Scorer
from engine.settle import settle, with_devices
from engine.stop import Stop

if TYPE_CHECKING:
    from engine.on_gpus import Listener, OnGpus

OPENVINO_SCORERS = 2
"""Threads that call the cascade: while one waits for its last slices the other keeps the cores busy."""
FILE_TIMEOUT = 60.0
"""Seconds that a worker may spend on one file."""
_CPU_WORKERS = 8
"""Decode processes at most, where the models need the cores."""
_GPU_WORKERS = 64
"""Where they do not."""
_ON_HOST, _ON_GPUS = 0, WRITERS
"""Processes that draw masks: where models take milliseconds a slice there is time for it in between."""
_OTHER_CORES = 2
"""Cores of a GPU's host that are left to lanes, writers and the ledger."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a run scores with. `plan` is the one that came up; `batch` are the slices of a ring's block.

    `drawer` makes masks into files.
    """

    plan: Plan
    ring: Ring
    scorer: Scorer
    batch: int
    gpus: OnGpus | None = None
    drawer: Drawer = field(default_factory=DrawnHere)


@contextmanager
def open_run(
    options: Options, plan: Plan, slices: Sequence[bytes], listener: Listener, stop: Stop
) -> Iterator[Opened]:
    """Everything that `plan` scores with, ready. `slices` are paths that a GPU's plans are proven on.

    A GPU that "auto" has chosen and that does not come up is done without, and `listener` hears so.

    Raises:
        StoppedError: the run was asked to stop before GPUs were ready.
        MachineError, UsageError: what `open_models` and `open_on_gpus` raise.
    """
    with ExitStack() as stack:
        plan, gpus = _came_up(options, plan, slices, listener, stop, stack)
        if gpus is None:
            yield _on_host(options, plan, stack)
        else:
            yield _on_gpus(options, plan, gpus, stack)


@contextmanager
def open_models(plan: Plan) -> Iterator[Cascade]:
    """Both models on the CPU as a run of this plan opens them. Raises what `open_runner` does."""
    outputs, flips = plan.operating.segmenter_outputs, plan.operating.flips
    on_classifier, on_segmenter = plan.precision
    with (
        open_runner(plan.backend, plan.bundle, "classifier", on_classifier) as classifier,
        open_runner(plan.backend, plan.bundle, "segmenter", on_segmenter, outputs=outputs) as segmenter,
    ):
        yield Cascade(
            flips.over(classifier, "classifier"), flips.over(segmenter, "segmenter"), plan.operating
        )


def writer_for(options: Options, drawer: Drawer) -> RowWriter:
    """What writes the files of slices, and their rows, in a run of these options."""
    return RowWriter(
        options.out,
        masks=options.masks == "png",
        overlays=options.overlays,
        probabilities=options.save_probabilities,
        tidy=any((options.out / name).exists() for name in FOLDERS),
        pseudonyms=pseudonyms_of(options),
        longest=None if options.store is None else longest_name(Address.parse(options.store)),
        drawer=drawer,
    )


def pseudonyms_of(options: Options) -> Pseudonyms | None:
    """Those that stand for names in what a run of these options writes; None for none."""
    return None if options.anonymise is None else Pseudonyms.open(options.anonymise)


def scorers(plan: Plan) -> int:
    """How many threads call the cascade in a run of this plan on the CPU."""
    # A call into OpenVINO fills every core by itself; one into ONNX Runtime fills one.
    return OPENVINO_SCORERS if plan.backend == "openvino" else max(2, len(os.sched_getaffinity(0)))


def _came_up(
    options: Options,
    plan: Plan,
    slices: Sequence[bytes],
    listener: Listener,
    stop: Stop,
    stack: ExitStack,
) -> tuple[Plan, OnGpus | None]:
    """The plan that works, and its GPUs."""
    failed: dict[Runtime, str] = {}
    while plan.gpus is not None:
        from engine.gpu.device import GpuMemoryError
        from engine.on_gpus import open_on_gpus

        use = with_devices(options, plan.gpus)
        try:
            plan = replace(plan, gpus=use)
            gpus = stack.enter_context(open_on_gpus(plan, slices, listener, stop))
        except (MachineError, UsageError) as error:
            if options.backend != "auto" or plan.continued or isinstance(error, GpuMemoryError):
                raise
            failed[use.runtime] = str(error)
            plan = settle(options, plan.bundle, None, failed)
            listener.says(f"{error}; going on with {plan.backend}")
        else:
            return replace(plan, gpus=replace(use, loaded=gpus.loaded)), gpus
    return plan, None


def _on_host(options: Options, plan: Plan, stack: ExitStack) -> Opened:
    """Start the workers, then load the models while those come up."""
    workers = options.workers or max(1, min(_CPU_WORKERS, len(os.sched_getaffinity(0)) // 2))
    callers = scorers(plan)
    blocks = callers + WRITERS + workers + 1
    ring = stack.enter_context(Ring(blocks, plan.batch, workers, FILE_TIMEOUT))
    cascade = stack.enter_context(open_models(plan))
    plan.bundle.expect_unchanged()
    return Opened(plan, ring, HostScorer(cascade, callers), plan.batch, drawer=_drawer(_ON_HOST, stack))


def _on_gpus(options: Options, plan: Plan, gpus: OnGpus, stack: ExitStack) -> Opened:
    """A ring that keeps the lanes supplied while it is decoded into."""
    plan.bundle.expect_unchanged()
    cores = len(os.sched_getaffinity(0))
    workers = options.workers or max(1, min(_GPU_WORKERS, cores - _OTHER_CORES))
    decoded_into = -(-workers * CHUNKS_AHEAD * chunk_files(gpus.batch) // gpus.batch) + 1
    written = SCORED_AHEAD + WRITERS if options.overlays else 0
    blocks = gpus.blocks(kept=options.overlays) + decoded_into + written + 1
    ring = stack.enter_context(Ring(blocks, gpus.batch, workers, FILE_TIMEOUT))
    drawer = _drawer(_ON_GPUS, stack)
    return Opened(plan, ring, gpus.scorer(ring.descriptor, ring.slots), gpus.batch, gpus, drawer)


def _drawer(processes: int, stack: ExitStack) -> Drawer:
    """What draws masks: so many processes, or without any the threads that write rows."""
    return stack.enter_context(MaskProcesses(processes)) if processes else DrawnHere()
