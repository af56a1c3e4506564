"""The models on a real GPU: within the parity gate, the same bits on any stream and in any company."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the gpu extra")

from engine.build import BuildOptions, build_plans, prove_plans
from engine.bundle import Bundle, Model
from engine.cascade import Cascade, OperatingPoint
from engine.driver import probe_driver
from engine.errors import MachineError, UsageError
from engine.gpu.device import Device, open_device
from engine.gpu.host import HostRunner
from engine.parity import FP16_LIMITS
from engine.plans.cache import CachedPlan, PlanCache
from engine.plans.half import half_graph
from engine.plans.sidecar import Flavour
from engine.plans.toolkit import load_toolkit
from engine.runners.base import Images
from engine.runners.cuda import CudaModel
from engine.runners.device import DeviceModel
from engine.runners.tensorrt import TensorRtModel
from engine.trial import Block, open_cascade, open_cuda, open_plans, trial
from trainer.phantoms import write_phantoms

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(3600)]

BATCH = 16
SLICES = 64
MODELS: tuple[Model, Model] = ("classifier", "segmenter")
DATA = os.environ.get("TUMORSCAN_LGG", "")
"""A kaggle_3m folder; without one, slices are drawn."""


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    try:
        probe_driver()
    except MachineError as error:
        pytest.skip(str(error))
    pytest.importorskip("pycuda.driver", reason="pycuda is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(Bundle.default_folder())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """uint8 [64,256,256,3]."""
    root = Path(DATA) if DATA else write_phantoms(tmp_path_factory.mktemp("phantoms"), SLICES, seed=3).root
    paths = sorted(path for path in root.rglob("*.tif") if not path.stem.endswith("_mask"))
    return np.stack([cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths[:SLICES]])


class Provider:
    """ONNX Runtime's CUDA provider, with channels first or last."""

    def __init__(self, bundle: Bundle, *, prefer_nhwc: bool) -> None:
        self._bundle = bundle
        self._prefer_nhwc = prefer_nhwc
        self._graphs = {model: half_graph(bundle.graph(model).read_bytes(), model) for model in MODELS}

    def load(self, model: Model) -> CudaModel:
        return CudaModel(self._graphs[model], model, prefer_nhwc=self._prefer_nhwc)

    def cascade(self, operating: OperatingPoint) -> AbstractContextManager[Cascade]:
        return open_cuda(self._bundle, operating, batch=BATCH, prefer_nhwc=self._prefer_nhwc)


class Plans:
    """TensorRT of one flavour, with plans built for this GPU."""

    def __init__(self, bundle: Bundle, flavour: Flavour, folder: Path) -> None:
        options = BuildOptions(bundle=bundle.folder, flavour=flavour, batch=BATCH, plan_cache=folder)
        outcome = build_plans(options, lambda text, done: None)
        self.plans: Mapping[Model, CachedPlan] = {made.plan.record.model: made.plan for made in outcome.plans}
        self.cache = PlanCache(folder)
        self._toolkit = load_toolkit(flavour)

    def load(self, model: Model) -> TensorRtModel:
        return TensorRtModel(self._toolkit, self.cache, self.plans[model])

    def cascade(self, operating: OperatingPoint) -> AbstractContextManager[Cascade]:
        return open_plans(self.cache, self.plans, operating)


def plans(bundle: Bundle, flavour: Flavour, folder: Path) -> Plans:
    try:
        load_toolkit(flavour)
    except MachineError as error:
        pytest.skip(str(error))
    return Plans(bundle, flavour, folder)


def provider(bundle: Bundle, *, prefer_nhwc: bool) -> Provider:
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")
    return Provider(bundle, prefer_nhwc=prefer_nhwc)


KINDS: Mapping[str, Callable[[Bundle, Path], Provider | Plans]] = {
    "cuda": lambda bundle, folder: provider(bundle, prefer_nhwc=False),
    "cuda, channels last": lambda bundle, folder: provider(bundle, prefer_nhwc=True),
    "tensorrt": lambda bundle, folder: plans(bundle, "tensorrt", folder),
    "tensorrt-rtx": lambda bundle, folder: plans(bundle, "tensorrt-rtx", folder),
}


@pytest.fixture(scope="module", params=KINDS)
def runtime(
    request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Provider | Plans:
    return KINDS[request.param](bundle, tmp_path_factory.mktemp("cache") / "plans")


Opened = tuple[DeviceModel, Device]


@pytest.fixture(params=MODELS)
def opened(request: pytest.FixtureRequest, runtime: Provider | Plans) -> Iterator[Opened]:
    """A model, and the GPU that it is loaded on, its context current here."""
    with open_device(0) as device, runtime.load(request.param) as model:
        yield model, device


def test_the_cascade_is_within_the_parity_gate(
    runtime: Provider | Plans, bundle: Bundle, images: Images
) -> None:
    point = OperatingPoint.of(bundle, gated=False)
    with runtime.cascade(point) as other, open_cascade(bundle, "onnxruntime", "fp32", point) as reference:
        blocks = [Block(images[i : i + 32]) for i in range(0, len(images), 32)]
        report = trial(reference, other, blocks)
    assert report.slices == len(images)
    assert report.masks_reference > 0
    assert report.broken(FP16_LIMITS) == ()


@pytest.mark.parametrize("n", [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 3])
def test_tails_give_the_bits_that_full_batches_give(opened: Opened, images: Images, n: int) -> None:
    model, device = opened
    with HostRunner(model, BATCH, device) as runner:
        whole, tail = runner.infer(images), runner.infer(images[:n])
    for name, array in tail.items():
        np.testing.assert_array_equal(array, whole[name][:n])


def test_a_slice_gives_the_same_bits_wherever_it_stands(opened: Opened, images: Images) -> None:
    model, device = opened
    order = np.random.default_rng(5).permutation(len(images))
    with HostRunner(model, BATCH, device) as runner:
        whole, mixed = runner.infer(images), runner.infer(images[order])
    for name, array in mixed.items():
        np.testing.assert_array_equal(array, whole[name][order])


class Lane:
    """A stream with a runner, its buffers, and pagelocked memory for one batch."""

    def __init__(self, model: DeviceModel, stack: ExitStack) -> None:
        import pycuda.driver as cuda

        self._cuda = cuda
        self._outputs = model.outputs
        self.stream = cuda.Stream(flags=1)
        self._host = {"images": cuda.pagelocked_empty((BATCH, 256, 256, 3), np.uint8)}
        for name, spec in model.outputs.items():
            self._host[name] = cuda.pagelocked_empty((BATCH, *spec.shape), spec.dtype)
        self.buffers = {name: cuda.mem_alloc(array.nbytes) for name, array in self._host.items()}
        size = model.workspace(BATCH)
        self._scratch = cuda.mem_alloc(size) if size else None
        self._runner = model.make(self.stream.handle, BATCH, int(self._scratch or 0))
        stack.callback(self._close)

    def start(self, images: Images) -> None:
        """Put a batch and its way there and back on the stream."""
        self._host["images"][:] = images
        self._cuda.memcpy_htod_async(self.buffers["images"], self._host["images"], self.stream)
        self._runner.enqueue({name: int(buffer) for name, buffer in self.buffers.items()})
        for name in self._outputs:
            self._cuda.memcpy_dtoh_async(self._host[name], self.buffers[name], self.stream)

    def result(self) -> dict[str, Any]:
        self.stream.synchronize()
        return {name: self._host[name].copy() for name in self._outputs}

    def _close(self) -> None:
        self.stream.synchronize()
        self._runner.close()
        for buffer in self.buffers.values():
            buffer.free()
        if self._scratch is not None:
            self._scratch.free()


def test_streams_that_run_at_once_give_what_each_gives_alone(opened: Opened, images: Images) -> None:
    model, _ = opened
    batches = [np.ascontiguousarray(images[i : i + BATCH]) for i in range(0, SLICES, BATCH)]
    with ExitStack() as stack:
        lanes = [Lane(model, stack) for _ in range(3)]
        alone = []
        for batch in batches:
            lanes[0].start(batch)
            alone.append(lanes[0].result())
        for turn in range(12):
            for which, lane in enumerate(lanes):
                lane.start(batches[(turn + which) % len(batches)])
            for which, lane in enumerate(lanes):
                due = alone[(turn + which) % len(batches)]
                for name, array in lane.result().items():
                    np.testing.assert_array_equal(array, due[name])


def test_addresses_may_change_from_one_execution_to_the_next(opened: Opened, images: Images) -> None:
    import pycuda.driver as cuda

    model, device = opened
    with ExitStack() as stack, HostRunner(model, BATCH, device) as runner:
        lane = Lane(model, stack)
        due = runner.infer(images[: 2 * BATCH])
        for turn, start in enumerate((0, BATCH, 0, BATCH)):
            if turn % 2:
                lane.buffers["images"], spare = cuda.mem_alloc(BATCH * 256 * 256 * 3), lane.buffers["images"]
                stack.callback(spare.free)
            lane.start(np.ascontiguousarray(images[start : start + BATCH]))
            result = lane.result()
            if "tumor_probability" in result:
                expected = due["tumor_probability"][start : start + BATCH]
                np.testing.assert_array_equal(result["tumor_probability"], expected)
            else:
                expected = due["mask"][start : start + BATCH]
                np.testing.assert_array_equal(np.unpackbits(result["mask_bits"], axis=-1), expected)


def test_the_null_stream_and_other_batches_of_a_plan_are_refused(opened: Opened) -> None:
    model, _ = opened
    with pytest.raises(ValueError, match="null stream"):
        model.make(0, BATCH, 0)
    if model.name.startswith("tensorrt"):
        with pytest.raises(UsageError, match=f"for batches of {BATCH} slices, not of {BATCH + 1}"):
            model.workspace(BATCH + 1)


def test_what_is_closed_gives_its_memory_back(runtime: Provider | Plans) -> None:
    import pycuda.driver as cuda

    free = []
    with open_device(0) as device:
        for _ in range(4):
            with runtime.load("segmenter") as model, HostRunner(model, BATCH, device):
                pass
            del model
            gc.collect()
            free.append(cuda.mem_get_info()[0])
    assert free[-1] >= free[0] - (64 << 20)  # the first round's libraries stay


def test_plans_are_proven_on_the_gpu_they_were_built_for(
    runtime: Provider | Plans, bundle: Bundle, images: Images
) -> None:
    if not isinstance(runtime, Plans):
        pytest.skip("only plans are proven")
    point = OperatingPoint.of(bundle, gated=False)
    each = list(runtime.plans.values())
    with runtime.cascade(point) as cascade:
        proven = prove_plans(bundle, each, runtime.cache, cascade, [Block(images)], "slices of a test")
    assert {plan.record.proof.status for plan in proven} <= {"proven", "weakly proven"}


def test_kernels_of_tensorrt_rtx_are_compiled_once(runtime: Provider | Plans, images: Images) -> None:
    if not isinstance(runtime, Plans) or runtime.plans["segmenter"].record.flavour != "tensorrt-rtx":
        pytest.skip("only TensorRT-RTX compiles where it runs")
    with open_device(0) as device:
        for _ in range(2):
            with runtime.load("segmenter") as model, HostRunner(model, BATCH, device) as runner:
                runner.infer(images[:BATCH])
    assert runtime.cache.runtime_cache(runtime.plans["segmenter"], probe_driver().gpus[0])
