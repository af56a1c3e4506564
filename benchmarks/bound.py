"""What OpenVINO can do at most with the same graphs: its benchmark_app's loop, with nothing around it.

Requests are filled once and then started again as soon as they are idle. Where the share p of all slices
passes the gate, the bound is 1 / (1/c + p/s): c and s are the rates of each model alone.
"""

from __future__ import annotations

import time

import numpy as np

from engine.bundle import Model
from engine.run import Plan
from engine.runners import graph_for
from engine.runners.base import DEFAULT_OUTPUTS, INPUT, Images
from engine.runners.openvino import compiled_for_throughput, tensor_over


def model_rate(plan: Plan, model: Model, images: Images, seconds: float, batch: int = 1) -> float:
    """Slices a second of one model alone, on all cores; `images` [n,256,256,3] fill the requests once."""
    import openvino as ov

    precision = plan.precision[0 if model == "classifier" else 1]
    outputs = DEFAULT_OUTPUTS["classifier"] if model == "classifier" else plan.operating.segmenter_outputs
    graph = graph_for(plan.bundle, model, precision)
    compiled = compiled_for_throughput(graph, model, precision, batch=batch, outputs=outputs)
    queue = ov.AsyncInferQueue(compiled, compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    inputs = [np.take(images, range(i, i + batch), axis=0, mode="wrap") for i in range(len(queue))]
    for request, filled in zip(queue, inputs, strict=True):
        request.set_tensor(INPUT, tensor_over(filled))
    for _ in range(2 * len(queue)):
        queue.start_async()
    queue.wait_all()
    count, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        queue.start_async()
        count += batch
    queue.wait_all()
    return count / (time.monotonic() - began)


def mixed_rate(classifier: float, segmenter: float, passing: float) -> float:
    """Slices a second where the share `passing` of what is classified is segmented as well."""
    return 1 / (1 / classifier + passing / segmenter)
