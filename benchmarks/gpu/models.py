"""The runtimes that are compared, and both models of each as the lanes would load them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, get_args

from benchmarks.gpu import dry
from benchmarks.gpu.operations import Cost, count
from benchmarks.gpu.settings import PACE, Settings
from benchmarks.gpu.spin import PacedModel, pace
from engine.build import BuildOptions, build_plans
from engine.bundle import Bundle, Model
from engine.gpu.start import Graphs, Models, Plans
from engine.plans.cache import PlanCache, cache_folder
from engine.plans.half import half_graph
from engine.plans.toolkit import load_toolkit

MODELS: Final[tuple[Model, ...]] = get_args(Model)

Kind = Literal["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "channels last", "paced", "torch", "compiled"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """`module` is what has to be installed; a `laned` one stands behind the lanes."""

    kind: Kind
    title: str
    module: str
    laned: bool


RUNTIMES: Final[dict[Kind, Runtime]] = {
    each.kind: each
    for each in (
        Runtime("tensorrt", "TensorRT", "tensorrt", laned=True),
        Runtime("tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx", laned=True),
        Runtime("onnxruntime-cuda", "ONNX Runtime, CUDA", "onnxruntime", laned=True),
        Runtime("channels last", "ONNX Runtime, CUDA, channels last", "onnxruntime", laned=False),
        Runtime("torch", "PyTorch, float16, channels last", "torch", laned=False),
        Runtime("compiled", "PyTorch, torch.compile", "torch", laned=False),
        Runtime("paced", f"paced at {PACE:,} a second", "pycuda", laned=True),
    )
}


def laned(settings: Settings) -> tuple[Kind, ...]:
    """The installed runtimes for the lanes. On a double, where none of them runs, one stands for all."""
    if settings.dry:
        return ("onnxruntime-cuda",)
    return installed(*(kind for kind, runtime in RUNTIMES.items() if runtime.laned and kind != "paced"))


def installed(*kinds: Kind) -> tuple[Kind, ...]:
    """Those of the runtimes whose packages are here, whether they come up or not."""
    return tuple(kind for kind in kinds if find_spec(RUNTIMES[kind].module))


def bundle_of(settings: Settings) -> Bundle:
    return Bundle.load(Path(settings.bundle))


def graphs_of(settings: Settings) -> dict[Model, bytes]:
    """The FP16 graphs that all of the runtimes compute."""
    bundle = bundle_of(settings)
    return {model: half_graph(bundle.graph(model).read_bytes(), model) for model in MODELS}


def costs_of(settings: Settings) -> dict[Model, Cost]:
    return {model: count(graph) for model, graph in graphs_of(settings).items()}


def what_to_load(kind: Kind, settings: Settings, batch: int) -> Plans | Graphs:
    """What a GPU's process is told to load: plans, which are built where the cache has none."""
    if kind not in ("tensorrt", "tensorrt-rtx"):
        return Graphs(Path(settings.bundle))
    folder = cache_folder(settings.cache)
    options = BuildOptions(bundle=Path(settings.bundle), batch=batch, flavour=kind, plan_cache=folder)
    outcome = build_plans(options, quiet)
    plans = {made.plan.record.model: made.plan for made in outcome.plans}
    return Plans(folder, plans["classifier"], plans["segmenter"])


def quiet(text: str, done: float | None) -> None:
    """Hears how building goes on, and says nothing."""
    del text, done


@contextmanager
def open_kind(kind: Kind, settings: Settings, batch: int) -> Iterator[Models]:
    """Both models on the GPU whose context is current. Raises what the runtime's own class raises."""
    classifier, segmenter = (_paced if kind == "paced" else _loaded)(kind, settings, batch)
    with classifier, segmenter:
        yield classifier, segmenter


def _paced(kind: Kind, settings: Settings, batch: int) -> Models:
    del kind
    costs = {model: cost.operations or 1 for model, cost in costs_of(settings).items()}
    seconds = pace(costs, PACE)
    first, second = (PacedModel(model, batch, seconds[model]) for model in MODELS)
    return first, second


def _loaded(kind: Kind, settings: Settings, batch: int) -> Models:
    if settings.dry:
        from tests.double import make_models

        return make_models(dry.double(), bundle_of(settings), batch)
    found = what_to_load(kind, settings, batch)
    if isinstance(found, Plans):
        from engine.runners.tensorrt import TensorRtModel

        toolkit, cache = load_toolkit(found.classifier.record.flavour), PlanCache(found.cache)
        return (
            TensorRtModel(toolkit, cache, found.classifier),
            TensorRtModel(toolkit, cache, found.segmenter),
        )
    from engine.runners.cuda import CudaModel

    graphs = graphs_of(settings)
    first, second = (CudaModel(graphs[model], model, prefer_nhwc=kind == "channels last") for model in MODELS)
    return first, second
