"""What a GPU's process is told when it starts, and the models that this means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.bundle import Bundle, Model
from engine.plans.cache import CachedPlan, PlanCache
from engine.plans.half import half_graph
from engine.plans.sidecar import PlanRecord
from engine.plans.toolkit import load_toolkit
from engine.runners.device import DeviceModel

Models = tuple[DeviceModel, DeviceModel]
"""The classifier and the segmenter."""


@dataclass(frozen=True, slots=True)
class Plans:
    """Two plans of one flavour in the plan cache in folder `cache`."""

    cache: Path
    classifier: CachedPlan
    segmenter: CachedPlan


@dataclass(frozen=True, slots=True)
class Graphs:
    """A bundle's FP16 graphs, by ONNX Runtime's CUDA provider."""

    bundle: Path


@dataclass(frozen=True, slots=True)
class Start:
    """Lanes to open on GPU `device` of those visible. `gate` is as in `open_lanes`."""

    device: int
    lanes: int
    batch: int
    gate: float | None
    models: Plans | Graphs

    def encode(self) -> bytes:
        """As a message, which `decode` takes."""
        models: dict[str, Any]
        if isinstance(self.models, Graphs):
            models = {"bundle": str(self.models.bundle)}
        else:
            plans = [self.models.classifier, self.models.segmenter]
            pairs = [[str(plan.path), plan.record.model_dump(mode="json")] for plan in plans]
            models = {"cache": str(self.models.cache), "plans": pairs}
        return json.dumps([self.device, self.lanes, self.batch, self.gate, models]).encode()

    @classmethod
    def decode(cls, message: bytes) -> Start:
        """The start that was encoded."""
        device, lanes, batch, gate, models = json.loads(message)
        if "bundle" in models:
            return cls(device, lanes, batch, gate, Graphs(Path(models["bundle"])))
        classifier, segmenter = (
            CachedPlan(Path(path), PlanRecord.model_validate(record)) for path, record in models["plans"]
        )
        return cls(device, lanes, batch, gate, Plans(Path(models["cache"]), classifier, segmenter))


@contextmanager
def open_models(start: Start) -> Iterator[Models]:
    """Load both models on the GPU whose context is current; to be left when all of their runners are closed.

    Raises MachineError for what is not installed or does not fit, UsageError for files that are refused.
    """
    classifier, segmenter = (_load(start, model) for model in _MODELS)
    with classifier, segmenter:
        yield classifier, segmenter


_MODELS: tuple[Model, Model] = ("classifier", "segmenter")


def _load(start: Start, model: Model) -> DeviceModel:
    models = start.models
    if isinstance(models, Plans):
        from engine.runners.tensorrt import TensorRtModel

        plan = models.classifier if model == "classifier" else models.segmenter
        return TensorRtModel(load_toolkit(plan.record.flavour), PlanCache(models.cache), plan, start.device)
    from engine.runners.cuda import CudaModel

    graph = Bundle.load(models.bundle).graph(model).read_bytes()
    return CudaModel(half_graph(graph, model), model, device=start.device)
