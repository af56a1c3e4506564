"""A plan made, checked and placed in the cache: what `tumorscan build` and a first run on a GPU stand on."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, get_args

from engine.bundle import Bundle, Model
from engine.cascade import Cascade, OperatingPoint
from engine.disk import cannot_write
from engine.driver import Driver, probe_driver
from engine.errors import Failure, MachineError, UsageError
from engine.parity import FP16_LIMITS, ParityReport, standing
from engine.plans.builder import BuildRequest, Built, build_plan, refuse_nonsense
from engine.plans.cache import CachedPlan, PlanCache, PlanKey, cache_folder
from engine.plans.half import PLAN_CONTRACT, half_graph
from engine.plans.sidecar import Flavour, LayerRecord, PlanRecord, Proof
from engine.plans.toolkit import Toolkit, build_targets, load_toolkit
from engine.runners.half import HalfGraphRunner
from engine.text import shown
from engine.trial import Block, open_cascade, read_slices, trial

log = logging.getLogger(__name__)

BATCH: Final = 64
"""Slices a plan works on at a time."""
CHECKED_SLICES: Final = 64
"""On so many slices is an FP16 graph compared with float32 before a plan is built of it."""

MODELS: Final[tuple[Model, ...]] = get_args(Model)

Watch = Callable[[str, float | None], None]
"""Hears what is being done, and how much of it, 0 to 1, where that is known."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Which plans to make. The command's options of the same names explain each.

    `workspace` is in bytes. `inputs` are the slices that the models' FP16 form is checked on; without any,
    drawn ones are. `rebuild` builds what is cached already, and what failed its proof.
    """

    bundle: Path | None = None
    batch: int = BATCH
    workspace: int | None = None
    level: int | None = None
    flavour: Flavour = "tensorrt"
    plan_cache: Path | None = None
    inputs: tuple[str, ...] = ()
    rebuild: bool = False


@dataclass(frozen=True, slots=True)
class MadePlan:
    """A plan in the cache. `built` says whether this call built it; `log` has the builder's own messages."""

    plan: CachedPlan
    built: bool
    log: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """Both plans; and, where one was built, how the models' FP16 form compared with float32 on `slices`."""

    plans: tuple[MadePlan, ...]
    check: ParityReport | None
    slices: str


@dataclass(frozen=True, slots=True)
class _Workshop:
    """What both plans of a call have in common."""

    options: BuildOptions
    bundle: Bundle
    toolkit: Toolkit
    driver: Driver | None
    targets: tuple[str, ...]
    cache: PlanCache
    watch: Watch


def build_plans(options: BuildOptions, watch: Watch) -> Outcome:
    """The classifier's and the segmenter's plan, from the cache or built now.

    A plan built here is `unproven`: the parity gate runs where it is first used (`engine.parity`).

    Raises:
        UsageError: a batch, level or workspace that makes no sense; a bundle that is damaged or cannot be
            taken to FP16; a cached plan that is not to be trusted, or failed its proof before.
        MachineError: no TensorRT, no driver, no GPU where one is needed, no space.
    """
    refuse_nonsense(options.batch, options.workspace, options.level)
    toolkit = load_toolkit(options.flavour)
    shop = _Workshop(
        options=options,
        bundle=Bundle.load(options.bundle or Bundle.default_folder()),
        toolkit=toolkit,
        targets=build_targets(toolkit),
        driver=_driver(options.flavour),
        cache=PlanCache(cache_folder(options.plan_cache)),
        watch=watch,
    )
    keys = {model: _key(shop, model) for model in MODELS}
    if not options.rebuild:
        for key in keys.values():
            _refuse_failed(shop.cache, key)
    checked = _Checked()
    plans = tuple(_make(shop, model, keys[model], checked) for model in MODELS)
    slices = f"slices of {', '.join(options.inputs)}" if options.inputs else "drawn slices"
    return Outcome(plans, checked.report, slices)


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


def check_half_graphs(
    bundle: Bundle, graphs: Mapping[Model, bytes], blocks: Iterable[Block], watch: Watch
) -> ParityReport:
    """Compare both FP16 graphs with float32 on slices, every one segmented, in ONNX Runtime on the CPU.

    Raises UsageError where they are too far apart for plans to be made of them, or where `blocks` is empty.
    """
    point = OperatingPoint.of(bundle, gated=False)
    with open_cascade(bundle, "onnxruntime", "fp32", point) as reference, ExitStack() as stack:
        half = [stack.enter_context(HalfGraphRunner(graphs[model], model)) for model in MODELS]
        report = trial(reference, Cascade(half[0], half[1], point), _counted(blocks, watch))
    if report.slices == 0:
        raise UsageError("no slice to check the models' FP16 form on could be read: name others")
    if broken := report.broken(FP16_LIMITS):
        raise UsageError(
            f"the FP16 form of {shown(bundle.folder)} is too far from float32 on {report.slices} slices "
            f"({'; '.join(broken)}): no plan is made of it; use it with --backend openvino or onnxruntime"
        )
    return report


def _driver(flavour: Flavour) -> Driver | None:
    """The driver; TensorRT-RTX does without one, its plans are portable."""
    if flavour == "tensorrt":
        return probe_driver()
    return None


def _key(shop: _Workshop, model: Model) -> PlanKey:
    options, driver = shop.options, shop.driver
    return PlanKey(
        model=model,
        onnx_sha256=shop.bundle.manifest.models[model]["fp32"].sha256,
        precision="fp16",
        batch=options.batch,
        flavour=options.flavour,
        tensorrt_version=shop.toolkit.version,
        cuda=".".join(map(str, driver.cuda)) if driver else None,
        driver=driver.release if driver else None,
        gpu=driver.gpus[0].name if driver else None,
        compute_capabilities=shop.targets,
        workspace=options.workspace,
        level=options.level,
        outputs=tuple(name for name in PLAN_CONTRACT[model] if name != "mask_probability"),
    )


def _refuse_failed(cache: PlanCache, key: PlanKey) -> None:
    for entry in cache.plans():
        if entry.failed and entry.plan is not None and PlanKey.of(entry.plan.record) == key:
            raise UsageError(
                f"the {key.model}'s plan failed its proof here before (see tumorscan engines inspect "
                f"{entry.folder}): use another TensorRT, --batch or --level, or build it again with --rebuild"
            )


@dataclass(slots=True)
class _Checked:
    """Both FP16 graphs, once one of them is to be built."""

    graphs: dict[Model, bytes] = field(default_factory=dict)
    report: ParityReport | None = None


def _make(shop: _Workshop, model: Model, key: PlanKey, checked: _Checked) -> MadePlan:
    """One plan, from the cache or built under its lock, so that of two processes only one builds."""
    messages = shop.cache.log(key)
    if not shop.options.rebuild and (found := shop.cache.find(key)):
        return MadePlan(found, built=False, log=messages)
    if checked.report is None:
        _make_half_graphs(shop, checked)
    with shop.cache.lock(key, lambda holder: shop.watch(f"waiting for {holder}, which builds it", None)):
        if not shop.options.rebuild and (found := shop.cache.find(key)):
            return MadePlan(found, built=False, log=messages)
        try:
            messages.parent.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise cannot_write(messages, error) from error
        request = BuildRequest(
            model=model,
            graph=checked.graphs[model],
            batch=key.batch,
            workspace=key.workspace,
            level=key.level,
            timing_cache=shop.cache.timing_cache(key),
            log=messages,
        )
        built = build_plan(
            shop.toolkit, request, lambda phase, done: shop.watch(f"building the {model}: {phase}", done)
        )
        if built.timing_cache is not None:
            shop.cache.keep_timing_cache(key, built.timing_cache)
        return MadePlan(shop.cache.place(key, built.plan, _record(key, built)), built=True, log=messages)


def _make_half_graphs(shop: _Workshop, checked: _Checked) -> None:
    for model in MODELS:
        shop.watch(f"making the {model}'s FP16 graph", None)
        checked.graphs[model] = half_graph(_graph(shop.bundle, model), model)
    with _slices(shop.options.inputs) as blocks:
        checked.report = check_half_graphs(shop.bundle, checked.graphs, blocks, shop.watch)


def _graph(bundle: Bundle, model: Model) -> bytes:
    """The model's float graph, seen again to be the one that the plan will be cached by."""
    path = bundle.graph(model)
    graph = path.read_bytes()
    if hashlib.sha256(graph).hexdigest() != bundle.manifest.models[model]["fp32"].sha256:
        raise UsageError(f"{shown(path)} was changed while plans were made of it: build again")
    return graph


@contextmanager
def _slices(inputs: tuple[str, ...]) -> Iterator[Iterator[Block]]:
    """The first slices of `inputs`; drawn ones without any. Files that cannot be read are left out."""

    def on_bad(path: str, failure: Failure) -> None:
        log.warning("%s is left out: %s", path, failure.message)

    if inputs:
        yield read_slices(inputs, limit=CHECKED_SLICES, on_bad=on_bad)
        return
    from trainer.phantoms import write_phantoms

    with tempfile.TemporaryDirectory(prefix="tumorscan-") as folder:
        drawn = write_phantoms(Path(folder), CHECKED_SLICES, seed=0)
        yield read_slices((str(drawn.root),), on_bad=on_bad)


def _counted(blocks: Iterable[Block], watch: Watch) -> Iterator[Block]:
    done = 0
    for block in blocks:
        watch("comparing the FP16 graphs with float32", min(1.0, done / CHECKED_SLICES))
        yield block
        done += len(block.images)


def _record(key: PlanKey, built: Built) -> PlanRecord:
    return PlanRecord(
        model=key.model,
        batch=key.batch,
        flavour=key.flavour,
        tensorrt_version=key.tensorrt_version,
        cuda=key.cuda,
        driver=key.driver,
        gpu=key.gpu,
        compute_capabilities=built.targets,
        onnx_sha256=key.onnx_sha256,
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        plan_size=len(built.plan),
        workspace=key.workspace,
        level=key.level,
        outputs=key.outputs,
        layers_of=built.layers_of,
        layers=tuple(
            LayerRecord(name=layer.name, kind=layer.kind, precision=layer.precision) for layer in built.layers
        ),
        built=datetime.now(UTC),
        build_seconds=built.seconds,
    )
