"""How two models share a CPU's cores: one pool of requests, two queues, and more slices a request.

    python -m benchmarks.requests --data SLICES

Runner only, five times over: slices in memory, the gate's own outcome, masks kept. The pool is what a run has
(engine/runners/openvino.py); the queues are OpenVINO's own, one a model, each fed by a thread of its own, the
classifier's callback passing on what the gate lets through.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import numpy as np

from benchmarks.arguments import QUICK_SLICES, Common, Report, add_common, common, run, say
from benchmarks.slices import work_set
from engine.bench import PRECISIONS, Slices, Timed, load_slices, runner_only, warm_up
from engine.bundle import Model
from engine.cascade import Cascade
from engine.errors import TumorscanError
from engine.opening import scorers
from engine.run import Options, Plan
from engine.runners import graph_for
from engine.runners.base import INPUT, Precision
from engine.runners.openvino import OpenVinoRunner, compiled_for_throughput, tensor_over
from engine.scorer import HostScorer
from engine.scoring import survey

POOL: Final = "one pool"
QUEUES: Final = "two queues"
MORE: Final = (2, 4, 8)
"""Slices a request, beside the one of a run."""
SLICES: Final = 160

Way = Callable[[], Timed]


def main() -> None:
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requests", description=first)
    add_common(parser, minutes=8, repeats=5)
    parser.add_argument("--precision", action="append", help="may be repeated (else all that there are)")
    parser.add_argument("--slices", type=int, default=SLICES, help=f"how many (else {SLICES})")
    parsed = parser.parse_args()
    options = common(parsed)
    report = Report("requests", options)
    with options.folder() as folder:
        work = work_set(options.data, QUICK_SLICES if options.quick else parsed.slices, folder / "data")
        base = Options((str(work.folder),), folder / "out", options.bundle.folder, backend="openvino")
        slices = load_slices(base, len(work.files))
        for asked in parsed.precision or PRECISIONS:
            try:
                plan = survey(replace(base, precision=asked)).plan
                measure(asked, plan, slices, options, report)
            except TumorscanError as error:
                report.notes.append(f"{asked} left out: {error}")
        report.write(work, folder, {"slices": len(slices)})


def measure(asked: str, plan: Plan, slices: Slices, options: Common, report: Report) -> None:
    """Every way once a repeat, in turned order; shares are of the pool in the same repeat."""
    with ExitStack() as stack:
        ways: dict[str, Way] = {POOL: stack.enter_context(_pool(plan, slices, 1))}
        ways[QUEUES] = _two_queues(plan, slices)
        for count in MORE:
            ways[f"{POOL}, {count} slices a request"] = stack.enter_context(_pool(plan, slices, count))
        for repeat in range(options.repeats):
            say(f"{asked}, repeat {repeat + 1} of {options.repeats}")
            names = list(ways) if repeat % 2 == 0 else list(ways)[::-1]
            found = {name: ways[name]() for name in names}
            for name in ways:
                of = {"precision": asked, "way": name}
                report.rows.add(of, "rate", "slices/s", found[name].per_second)
                report.rows.add(of, "of the pool", "1", found[name].per_second / found[POOL].per_second)
                if found[name].passed != found[POOL].passed:
                    report.notes.append(f"{asked}: {name} had another gate outcome than {POOL}")


@contextmanager
def _pool(plan: Plan, slices: Slices, count: int) -> Iterator[Way]:
    """The engine's own cascade with `count` slices a request."""
    outputs = plan.operating.segmenter_outputs
    with (
        OpenVinoRunner(*_graph(plan, "classifier"), batch=count) as classifier,
        OpenVinoRunner(*_graph(plan, "segmenter"), batch=count, outputs=outputs) as segmenter,
    ):
        scorer = HostScorer(Cascade(classifier, segmenter, plan.operating), scorers(plan))
        warm_up(scorer, slices, plan.batch)
        yield lambda: runner_only(scorer, slices, plan.batch)


def _two_queues(plan: Plan, slices: Slices) -> Way:
    """OpenVINO's AsyncInferQueue for each model."""
    import openvino as ov

    outputs = plan.operating.segmenter_outputs
    classifier = ov.AsyncInferQueue(compiled_for_throughput(*_graph(plan, "classifier")))
    segmenter = ov.AsyncInferQueue(compiled_for_throughput(*_graph(plan, "segmenter"), outputs=outputs))
    gate = np.float32(plan.operating.gate_threshold)
    minimum = max(1, plan.operating.min_pixels)
    waiting: SimpleQueue[int | None] = SimpleQueue()
    masks: dict[int, Any] = {}
    passed: list[int] = []

    def classified(request: Any, place: int) -> None:
        if request.get_tensor("tumor_probability").data[0] >= gate:
            passed.append(place)
            waiting.put(place)

    def segmented(request: Any, place: int) -> None:
        if request.get_tensor("mask_pixels").data[0] >= minimum:
            masks[place] = request.get_tensor("mask").data[0].copy()

    classifier.set_callback(classified)
    segmenter.set_callback(segmented)

    def feed_segmenter() -> None:
        while (place := waiting.get()) is not None:
            segmenter.start_async({INPUT: tensor_over(slices.images[place : place + 1])}, place)

    def once() -> Timed:
        masks.clear()
        passed.clear()
        feeder = threading.Thread(target=feed_segmenter, name="segmenter's feeder")
        began = time.monotonic()
        feeder.start()
        for place in range(len(slices)):
            classifier.start_async({INPUT: tensor_over(slices.images[place : place + 1])}, place)
        classifier.wait_all()
        waiting.put(None)
        feeder.join()
        segmenter.wait_all()
        return Timed(len(slices), time.monotonic() - began, len(passed), len(masks))

    once()
    return once


def _graph(plan: Plan, model: Model) -> tuple[Path, Model, Precision]:
    """Graph, model and precision, as runners take them."""
    precision = plan.precision[0 if model == "classifier" else 1]
    return graph_for(plan.bundle, model, precision), model, precision


if __name__ == "__main__":
    run(main)
