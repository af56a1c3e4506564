"""A plan made, checked and placed in the cache: what `tumorscan build` and a first run on a GPU stand on."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, get_args

from engine.bundle import Bundle, Model
from engine.cascade import OperatingPoint
from engine.disk import cannot_write
from engine.driver import Driver, probe_driver
from engine.errors import MachineError, UsageError
from engine.parity import ParityReport
from engine.plans.builder import BuildRequest, Built, build_plan, refuse_nonsense
from engine.plans.cache import CachedPlan, PlanCache, PlanKey, cache_folder
from engine.plans.half import PLAN_CONTRACT, half_graph
from engine.plans.sidecar import Flavour, LayerRecord, PlanRecord
from engine.plans.toolkit import Toolkit, build_targets, load_toolkit
from engine.proof import Watch, check_half_graphs, proof_slices, prove_plans
from engine.text import shown
from engine.trial import open_plans

BATCH: Final = 64
"""Slices a plan works on at a time."""

MODELS: Final[tuple[Model, ...]] = get_args(Model)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Which plans to make. The command's options of the same names explain each.

    `workspace` is in bytes. `inputs` are the slices that the models' FP16 form is checked on, and the plans
    where they run; without any, drawn ones are, and the plans only with `prove`, which does not let them be
    `unproven`. `called` is what messages call the inputs, "" for their names. `rebuild` builds what is cached
    already, and what failed its proof; `only_cached` builds nothing.
    """

    bundle: Path | None = None
    batch: int = BATCH
    workspace: int | None = None
    level: int | None = None
    flavour: Flavour = "tensorrt"
    plan_cache: Path | None = None
    inputs: tuple[str, ...] = ()
    called: str = ""
    prove: bool = False
    rebuild: bool = False
    only_cached: bool = False


@dataclass(frozen=True, slots=True)
class MadePlan:
    """A plan in the cache. `built` says whether this call built it; `log` has the builder's own messages."""

    plan: CachedPlan
    built: bool
    log: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """Both plans; and, where one was built, how the models' FP16 form compared with float32 on `slices`.

    `unproven` says why the parity gate was not run on them, where it was asked for and could not be.
    """

    plans: tuple[MadePlan, ...]
    check: ParityReport | None
    slices: str
    unproven: str = ""


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

    With `inputs` and a GPU that the plans run on, the parity gate is run on these slices at once; otherwise
    they are `unproven` until they are first used. Two plans are proven together, or not at all.

    Raises:
        UsageError: a batch, level or workspace that makes no sense; a bundle that is damaged or cannot be
            taken to FP16; a cached plan that is not to be trusted, or failed its proof before.
        MachineError: no TensorRT, no driver, no GPU where one is needed, no space; plans that fail
            their proof.
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
    slices = f"slices of {options.called or ', '.join(options.inputs)}" if options.inputs else "drawn slices"
    if (options.inputs or options.prove) and not _proven_together(plans):
        try:
            plans = _proven(shop, plans, slices)
        except _CannotRunHereError as error:
            return Outcome(plans, checked.report, slices, unproven=str(error))
    return Outcome(plans, checked.report, slices)


def _proven_together(made: tuple[MadePlan, ...]) -> bool:
    first, second = (each.plan.record for each in made)
    return all(
        one.proof.status in ("proven", "weakly proven") and one.proof.partner_sha256 == other.plan_sha256
        for one, other in ((first, second), (second, first))
    )


def _driver(flavour: Flavour) -> Driver | None:
    """The driver; TensorRT-RTX does without one, its plans are portable."""
    if flavour == "tensorrt":
        return probe_driver()
    return None


def _proven(shop: _Workshop, made: tuple[MadePlan, ...], slices: str) -> tuple[MadePlan, ...]:
    """Put the plans through the parity gate; _CannotRunHereError where they cannot be run."""
    point = OperatingPoint.of(shop.bundle, gated=False)
    by_model = {each.plan.record.model: each.plan for each in made}
    with ExitStack() as stack:
        try:
            running = stack.enter_context(open_plans(shop.cache, by_model, point))
        except MachineError as error:
            if shop.options.prove:
                raise
            raise _CannotRunHereError(str(error)) from error
        blocks = stack.enter_context(proof_slices(shop.options.inputs, shop.watch))
        proven = prove_plans(shop.bundle, [each.plan for each in made], shop.cache, running, blocks, slices)
    return tuple(replace(each, plan=plan) for each, plan in zip(made, proven, strict=True))


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


class _CannotRunHereError(MachineError):
    """This machine lacks what the plans run on."""


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
    if shop.options.only_cached:
        raise UsageError(
            f"the {model}'s plan for batches of {key.batch} slices is not in {shown(shop.cache.folder)}, or "
            "is of another TensorRT, driver or GPU than are here: restore it, or start over with --fresh"
        )
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
    with proof_slices(shop.options.inputs, shop.watch) as blocks:
        checked.report = check_half_graphs(shop.bundle, checked.graphs, blocks)


def _graph(bundle: Bundle, model: Model) -> bytes:
    """The model's float graph, seen again to be the one that the plan will be cached by."""
    path = bundle.graph(model)
    graph = path.read_bytes()
    if hashlib.sha256(graph).hexdigest() != bundle.manifest.models[model]["fp32"].sha256:
        raise UsageError(f"{shown(path)} was changed while plans were made of it: build again")
    return graph


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
