"""Sections `plans` and `parity`: the plans, and whether each runtime draws the reference's masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from benchmarks.gpu import dry
from benchmarks.gpu.models import MODELS, RUNTIMES, Kind, bundle_of, installed, laned, quiet, what_to_load
from benchmarks.gpu.settings import GPU, Settings
from benchmarks.gpu.told import Told
from engine.build import BuildOptions, build_plans
from engine.bundle import Model
from engine.cascade import Cascade, OperatingPoint
from engine.gpu.device import open_device
from engine.gpu.host import HostRunner
from engine.gpu.start import Plans
from engine.parity import FP16_LIMITS, ParityReport, standing
from engine.plans.cache import CachedPlan, PlanCache, cache_folder
from engine.plans.sidecar import Flavour
from engine.proof import PROOF_SLICES
from engine.trial import open_cascade, open_cuda, open_plans, read_slices, trial

FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")


def measure_plans(settings: Settings, told: Told) -> None:
    """Build both plans of each TensorRT that is here, or take them from the cache, proven on the slices."""
    if settings.dry:
        told.note("plans are left out: a double builds none")
        return
    for flavour in FLAVOURS:
        with told.left_out(f"plans of {RUNTIMES[cast('Kind', flavour)].title}"):
            outcome = build_plans(
                BuildOptions(
                    bundle=Path(settings.bundle),
                    batch=settings.batch,
                    flavour=flavour,
                    plan_cache=cache_folder(settings.cache),
                    inputs=(settings.data,),
                ),
                quiet,
            )
            for made in outcome.plans:
                record = made.plan.record
                of = {
                    "runtime": record.flavour,
                    "model": record.model,
                    "batch": str(record.batch),
                    "version": record.tensorrt_version,
                    "proof": record.proof.status,
                    "from": "built" if made.built else "the cache",
                }
                told.value(of, "building", "s", record.build_seconds)
                told.value(of, "size", "MB", record.plan_size / 1e6)
            if outcome.unproven:
                told.note(f"plans of {flavour} are not proven: {outcome.unproven}")


def measure_parity(settings: Settings, told: Told) -> None:
    """Each runtime beside ONNX Runtime in float32 on the CPU, every slice segmented."""
    bundle = bundle_of(settings)
    point = OperatingPoint.of(bundle, gated=False)
    others: tuple[Kind, ...] = ("torch",) if settings.quick else ("channels last", "torch", "compiled")
    for kind in laned(settings) if settings.dry else (*laned(settings), *installed(*others)):
        title = RUNTIMES[kind].title
        with (
            told.left_out(title),
            open_cascade(bundle, "onnxruntime", "fp32", point) as reference,
            _cascade(kind, settings, point) as other,
        ):
            limit = 4 if settings.dry else PROOF_SLICES
            blocks = read_slices((settings.data,), limit=limit, on_bad=lambda *_: None)
            _tell(told, kind, trial(reference, other, blocks))


def _tell(told: Told, kind: Kind, report: ParityReport) -> None:
    of: dict[str, str] = {"runtime": kind, "standing": standing(report, FP16_LIMITS)}
    figures = {
        "slices": (float(report.slices), "1"),
        "probability error": (report.probability_error_max, "1"),
        "has_mask flips": (float(report.flips), "1"),
        "masks of both": (float(report.masks_both), "1"),
        "mask Dice": (report.mask_dice, "1"),
    }
    for name, (value, unit) in figures.items():
        if value is not None:
            told.value(of, name, unit, value)
    for broken in report.broken(FP16_LIMITS):
        told.note(f"{RUNTIMES[kind].title}: parity does not hold, {broken}")


@contextmanager
def _cascade(kind: Kind, settings: Settings, point: OperatingPoint) -> Iterator[Cascade]:
    """Both models on the GPU behind the host's protocol."""
    if settings.dry:
        with _on_double(settings, point) as cascade:
            yield cascade
    elif kind in ("torch", "compiled"):
        yield _torch_cascade(kind, settings, point)
    elif kind in FLAVOURS:
        plans = what_to_load(kind, settings, settings.batch)
        assert isinstance(plans, Plans)
        both: dict[Model, CachedPlan] = {"classifier": plans.classifier, "segmenter": plans.segmenter}
        with open_plans(PlanCache(plans.cache), both, point, device=GPU) as cascade:
            yield cascade
    else:
        last, bundle = kind == "channels last", bundle_of(settings)
        with open_cuda(bundle, point, batch=settings.batch, device=GPU, prefer_nhwc=last) as cascade:
            yield cascade


@contextmanager
def _on_double(settings: Settings, point: OperatingPoint) -> Iterator[Cascade]:
    from tests.double import make_models

    models = make_models(dry.double(), bundle_of(settings), settings.batch)
    with (
        open_device(GPU) as device,
        models[0],
        models[1],
        HostRunner(models[0], settings.batch, device) as classifier,
        HostRunner(models[1], settings.batch, device) as segmenter,
    ):
        yield Cascade(classifier, segmenter, point)


def _torch_cascade(kind: Kind, settings: Settings, point: OperatingPoint) -> Cascade:
    from benchmarks.gpu.torch_rates import TorchRunner, cuda_device, load_networks

    device = cuda_device()
    networks = load_networks(bundle_of(settings), settings.folder, device, compiled=kind == "compiled")
    runners = [TorchRunner(networks[model], model, device, point.mask_threshold) for model in MODELS]
    return Cascade(runners[0], runners[1], point)
