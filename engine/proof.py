"""The parity gate of plans: FP16 against float32 on slices, before a plan is made and where it first runs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from engine.bundle import Bundle, Model
from engine.cascade import Cascade, OperatingPoint
from engine.errors import Failure, MachineError, UsageError
from engine.parity import FP16_LIMITS, ParityReport, standing
from engine.plans.cache import CachedPlan, PlanCache
from engine.plans.sidecar import Proof
from engine.run import PROOF_SLICES as PROOF_SLICES
from engine.runners.half import HalfGraphRunner
from engine.text import shown
from engine.trial import Block, open_cascade, read_slices, trial

log = logging.getLogger(__name__)

Watch = Callable[[str, float | None], None]
"""Hears what is being done, and how much of it, 0 to 1, where that is known."""


def prove_plans(
    bundle: Bundle,
    plans: Sequence[CachedPlan],
    cache: PlanCache,
    running: Cascade,
    blocks: Iterable[Block],
    slices: str,
) -> tuple[CachedPlan, ...]:
    """Put both plans, which `running` runs ungated, through the parity gate, and write down what it says.

    `slices` says in words what `blocks` are of.

    Raises MachineError where they fail: both are then set aside, with the report, and never used again.
    """
    with open_cascade(bundle, "onnxruntime", "fp32", running.operating) as reference:
        report = trial(reference, running, blocks)
    hashes = [plan.record.plan_sha256 for plan in plans]
    proofs = [
        Proof(
            status=standing(report, FP16_LIMITS),
            partner_sha256=partner,
            slices=f"{report.slices} {slices}",
            date=datetime.now(UTC),
            report=report.record(FP16_LIMITS),
        )
        for partner in reversed(hashes)
    ]
    if proofs[0].status == "failed":
        kept = [shown(cache.set_aside(*each)) for each in zip(plans, proofs, strict=True)]
        raise MachineError(
            f"the plans fail their proof against float32 on {proofs[0].slices} "
            f"({'; '.join(report.broken(FP16_LIMITS)) or 'no slice was compared'}): they are set aside in "
            f"{' and '.join(kept)}; use --backend openvino or onnxruntime, or build with another TensorRT"
        )
    return tuple(cache.prove(*each) for each in zip(plans, proofs, strict=True))


def check_half_graphs(bundle: Bundle, graphs: Mapping[Model, bytes], blocks: Iterable[Block]) -> ParityReport:
    """Compare both FP16 graphs with float32 on slices, every one segmented, in ONNX Runtime on the CPU.

    Raises UsageError where they are too far apart for plans to be made of them, or where `blocks` is empty.
    """
    point = OperatingPoint.of(bundle, gated=False)
    with open_cascade(bundle, "onnxruntime", "fp32", point) as reference, ExitStack() as stack:
        half = [stack.enter_context(HalfGraphRunner(graphs[model], model)) for model in get_args(Model)]
        report = trial(reference, Cascade(half[0], half[1], point), blocks)
    if report.slices == 0:
        raise UsageError("no slice to check the models' FP16 form on could be read: name others")
    if broken := report.broken(FP16_LIMITS):
        raise UsageError(
            f"the FP16 form of {shown(bundle.folder)} is too far from float32 on {report.slices} slices "
            f"({'; '.join(broken)}): no plan is made of it; use it with --backend openvino or onnxruntime"
        )
    return report


@contextmanager
def proof_slices(inputs: tuple[str, ...], watch: Watch) -> Iterator[Iterator[Block]]:
    """The first PROOF_SLICES of `inputs`; drawn ones without any. Files that cannot be read are left out."""

    def on_bad(path: str, failure: Failure) -> None:
        log.warning("%s is left out: %s", path, failure.message)

    if inputs:
        yield _counted(read_slices(inputs, limit=PROOF_SLICES, on_bad=on_bad), watch)
        return
    from trainer.phantoms import write_phantoms

    with tempfile.TemporaryDirectory(prefix="tumorscan-") as folder:
        drawn = write_phantoms(Path(folder), PROOF_SLICES, seed=0)
        yield _counted(read_slices((str(drawn.root),), on_bad=on_bad), watch)


def _counted(blocks: Iterable[Block], watch: Watch) -> Iterator[Block]:
    done = 0
    for block in blocks:
        watch("comparing FP16 with float32", min(1.0, done / PROOF_SLICES))
        yield block
        done += len(block.images)
        if done >= PROOF_SLICES:  # a file may hold any number
            return
