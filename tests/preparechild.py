"""The process that prepares a GPU, whose GPU and TensorRT are doubles, as `python -m tests.preparechild`.

See engine.prepare. TensorRT's builder is none of the double's: a plan is made of the graph as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import engine.build
import engine.trial
from engine import prepare
from engine.bundle import Bundle
from engine.cascade import Cascade, OperatingPoint
from engine.gpu.device import open_device
from engine.gpu.host import HostRunner
from engine.plans.builder import BuildRequest, Built
from engine.plans.toolkit import Toolkit, build_targets
from tests.double import Double, bundle_graph, make_models, plan
from tests.doublesettings import settings_of

MODULE = "tests.preparechild"


def main() -> None:
    _, settings = settings_of(Path())
    double = Double("eager", memory=settings.get("memory", 8 << 30))

    def build_plan(toolkit: Toolkit, request: BuildRequest, progress: Callable[[str, float], None]) -> Built:
        progress("halfway", 0.5)
        time.sleep(settings.get("patience", 0))
        other = settings.get("plans_of")
        graph = bundle_graph(Bundle.load(Path(other)), request.model) if other else request.graph
        content = plan(graph, request.batch)
        return Built(content, (), "network", build_targets(toolkit), None, 0.1)

    @contextmanager
    def open_cuda(bundle: Bundle, operating: OperatingPoint, *, batch: int) -> Iterator[Cascade]:
        models: Any = make_models(double, bundle, batch)
        with (
            open_device(0) as device,
            models[0],
            models[1],
            HostRunner(models[0], batch, device) as classifier,
            HostRunner(models[1], batch, device) as segmenter,
        ):
            yield Cascade(classifier, segmenter, operating)

    with (
        double,
        mock.patch.object(engine.build, "build_plan", build_plan),
        mock.patch.object(engine.trial, "open_cuda", open_cuda),
    ):
        prepare.main()


if __name__ == "__main__":
    main()
