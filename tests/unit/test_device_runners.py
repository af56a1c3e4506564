"""The models on a GPU without one: TensorRT and pycuda by the double, the real packages as far as they go."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

onnx = pytest.importorskip("onnx", reason="needs the gpu extra")

import onnxruntime as ort  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

import engine.gpu.device  # noqa: E402
import engine.runners.cuda  # noqa: E402
import engine.runners.device  # noqa: E402
import engine.runners.tensorrt  # noqa: E402
from engine.bundle import Bundle, Model  # noqa: E402
from engine.cascade import OperatingPoint  # noqa: E402
from engine.driver import Gpu, probe_driver  # noqa: E402
from engine.errors import MachineError, UsageError  # noqa: E402
from engine.gpu.device import open_device  # noqa: E402
from engine.gpu.host import HostRunner  # noqa: E402
from engine.plans.cache import CachedPlan, PlanCache, PlanKey  # noqa: E402
from engine.plans.sidecar import PlanRecord, Proof  # noqa: E402
from engine.plans.toolkit import Toolkit, load_toolkit  # noqa: E402
from engine.runners.base import Images, Outputs  # noqa: E402
from engine.runners.cuda import CudaModel, CudaRunner, host_copy  # noqa: E402
from engine.runners.device import DeviceModel  # noqa: E402
from engine.runners.half import unpack_masks  # noqa: E402
from engine.runners.tensorrt import TensorRtModel  # noqa: E402
from engine.trial import open_cuda, open_plans  # noqa: E402
from tests.double import SCHEDULES, Double, bundle_graph, make_models, plan  # noqa: E402
from tests.tinybundle import make_tiny_bundle, tiny_slices  # noqa: E402

BATCH = 4
MODELS: tuple[Model, Model] = ("classifier", "segmenter")
OUTPUTS: Mapping[Model, tuple[str, ...]] = {"classifier": ("tumor_probability",), "segmenter": ("mask_bits",)}
GPU = Gpu(0, "NVIDIA H100", (9, 0), 80 << 30, "")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def images() -> Images:
    return tiny_slices(11)


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def placed(
    cache: PlanCache, bundle: Bundle, model: Model, content: bytes | None = None, **changes: Any
) -> CachedPlan:
    """A plan of the double in the cache."""
    made = plan(bundle_graph(bundle, model), BATCH) if content is None else content
    known: dict[str, Any] = {
        "model": model,
        "batch": BATCH,
        "flavour": "tensorrt",
        "tensorrt_version": "10.8.0.43",
        "cuda": "13.0",
        "driver": "580.65.06",
        "gpu": GPU.name,
        "compute_capabilities": ("9.0",),
        "onnx_sha256": "ab" * 32,
        "plan_sha256": hashlib.sha256(made).hexdigest(),
        "plan_size": len(made),
        "workspace": None,
        "level": None,
        "outputs": OUTPUTS[model],
        "layers_of": "engine",
        "layers": (),
        "built": NOW,
        "build_seconds": 1.0,
    }
    record = PlanRecord(**{**known, **changes})
    return cache.place(PlanKey.of(record), made, record)


def reference(bundle: Bundle, model: Model, images: Images) -> Outputs:
    """What the model's FP16 graph says on the CPU."""
    session = ort.InferenceSession(bundle_graph(bundle, model), providers=["CPUExecutionProvider"])
    given = session.run(list(OUTPUTS[model]), {"images": images})[0]
    if model == "classifier":
        return {"tumor_probability": given}
    masks, pixels = unpack_masks(given)
    return {"mask": masks, "mask_pixels": pixels}


def assert_same(found: Outputs, due: Outputs) -> None:
    assert found.keys() == due.keys()
    for name, array in due.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@contextmanager
def loaded(cache: PlanCache, each: CachedPlan) -> Iterator[TensorRtModel]:
    """A plan, in a context, by the `tensorrt` that is there."""
    with open_device(0), TensorRtModel(load_toolkit("tensorrt"), cache, each) as model:
        yield model


class Memory:
    """A stream and device memory for a model of the double; what `make` is given, and `enqueue`."""

    def __init__(self, model: DeviceModel) -> None:
        import pycuda.driver as cuda

        self.stream = cuda.Stream(flags=1)
        self.workspace = cuda.mem_alloc(model.workspace(BATCH))
        sizes = {"images": 256 * 256 * 3, "tumor_probability": 4, "mask_bits": 256 * 32}
        names = ("images", *model.outputs)
        self.buffers = {name: cuda.mem_alloc(BATCH * sizes[name]) for name in names}

    @property
    def pointers(self) -> dict[str, int]:
        return {name: int(buffer) for name, buffer in self.buffers.items()}


def made_and_run(model: DeviceModel, memory: Memory) -> None:
    runner = model.make(memory.stream.handle, BATCH, int(memory.workspace))
    try:
        runner.enqueue(memory.pointers)
    finally:
        memory.stream.synchronize()
        runner.close()


# Plans, by TensorRT


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n", [0, 1, BATCH, 2 * BATCH + 3])
def test_a_cascade_of_plans_gives_what_their_graphs_give(
    cache: PlanCache, bundle: Bundle, images: Images, schedule: str, n: int
) -> None:
    plans = {model: placed(cache, bundle, model) for model in MODELS}
    point = OperatingPoint.of(bundle)
    with Double(schedule), open_plans(cache, plans, point) as cascade:
        for runner, model in (cascade.classifier, "classifier"), (cascade.segmenter, "segmenter"):
            assert_same(runner.infer(images[:n]), reference(bundle, model, images[:n]))
        scores = cascade.score(images, np.ones(len(images), np.bool_))
    assert scores.has_mask.tolist() == [i % 3 != 1 for i in range(len(images))]


def test_a_plan_says_what_it_is(cache: PlanCache, bundle: Bundle) -> None:
    each = placed(cache, bundle, "segmenter")
    with Double(), loaded(cache, each) as model:
        assert (model.name, model.version, model.model, model.precision) == (
            "tensorrt",
            "10.8.0.43",
            "segmenter",
            "fp16",
        )
        assert model.identity == {"plan_sha256": each.record.plan_sha256}
        assert list(model.outputs) == ["mask_bits"]
        assert model.workspace(BATCH) > 0


def test_two_contexts_of_a_plan_share_a_stream_and_scratch_memory(cache: PlanCache, bundle: Bundle) -> None:
    each = placed(cache, bundle, "segmenter")
    with Double() as double, loaded(cache, each) as model:
        memory = Memory(model)
        runners = [model.make(memory.stream.handle, BATCH, int(memory.workspace)) for _ in range(2)]
        for runner in runners:
            runner.enqueue(memory.pointers)
        memory.stream.synchronize()
        for runner in runners:
            runner.close()
        del memory, runner, runners
        assert "set_optimization_profile_async" in double.steps  # of the second context alone
        assert double.steps.count("set_optimization_profile_async") == 1


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("create_execution_context", "TensorRT makes no execution context for the segmenter: create_exec"),
        ("set_input_shape", "TensorRT refuses a batch of 4 for the segmenter: set_input_shape"),
        (
            "set_device_memory",
            "TensorRT refuses 1,048,576 bytes of scratch memory for the segmenter: set",
        ),
        ("set_tensor_address", "TensorRT refuses the address of images: set_tensor_address"),
        ("execute_async_v3", "TensorRT cannot run on this GPU any more: execute_async_v3"),
    ],
)
def test_every_no_of_tensorrt_is_an_error_with_its_reason(
    cache: PlanCache, bundle: Bundle, step: str, said: str
) -> None:
    each = placed(cache, bundle, "segmenter")
    with Double() as double, loaded(cache, each) as model:
        memory = Memory(model)
        double.fail(step)
        with pytest.raises(MachineError, match=said) as caught:
            made_and_run(model, memory)
        assert "\n" not in str(caught.value)
        assert "invalid argument" in str(caught.value) or "out of memory" in str(caught.value)
        del memory, caught


def test_a_profile_that_the_second_context_does_not_get_is_an_error(cache: PlanCache, bundle: Bundle) -> None:
    each = placed(cache, bundle, "segmenter")
    with Double() as double, loaded(cache, each) as model:
        memory = Memory(model)
        first = model.make(memory.stream.handle, BATCH, int(memory.workspace))
        double.fail("set_optimization_profile_async")
        with pytest.raises(MachineError, match="refuses the plan's profile for the segmenter: set_opt"):
            model.make(memory.stream.handle, BATCH, int(memory.workspace))
        first.close()
        del memory


def test_a_plan_that_tensorrt_cannot_load_is_an_error_with_its_reason(
    cache: PlanCache, bundle: Bundle
) -> None:
    each = placed(cache, bundle, "segmenter", b"of another TensorRT")
    with (
        Double(),
        pytest.raises(MachineError, match=r"cannot load .*segmenter\.plan: .*the plan is corrupt; build it"),
        loaded(cache, each),
    ):
        pass


def test_errors_of_one_plan_do_not_explain_the_next(cache: PlanCache, bundle: Bundle) -> None:
    bad = placed(cache, bundle, "classifier", b"of another TensorRT")
    good = placed(cache, bundle, "segmenter")
    with Double() as double:
        with pytest.raises(MachineError, match="corrupt"), loaded(cache, bad):
            pass
        double.fail("create_execution_context")
        with loaded(cache, good) as model:
            memory = Memory(model)
            with pytest.raises(MachineError, match="no execution context") as caught:
                model.make(memory.stream.handle, BATCH, int(memory.workspace))
            del memory
    assert "corrupt" not in str(caught.value)


def test_another_batch_than_the_plans_is_refused(cache: PlanCache, bundle: Bundle) -> None:
    each = placed(cache, bundle, "segmenter")
    with Double(), loaded(cache, each) as model:
        for use in (lambda: model.workspace(BATCH + 1), lambda: model.make(1, BATCH + 1, 0)):
            with pytest.raises(UsageError, match="for batches of 4 slices, not of 5: use --batch 4, or"):
                use()


def test_the_null_stream_and_crooked_memory_are_refused(cache: PlanCache, bundle: Bundle) -> None:
    each = placed(cache, bundle, "segmenter")
    with Double(), loaded(cache, each) as model:
        with pytest.raises(ValueError, match="null stream"):
            model.make(0, BATCH, 256)
        with pytest.raises(ValueError, match="no multiple of 256"):
            model.make(1, BATCH, 128)


def test_a_closed_runner_says_so(cache: PlanCache, bundle: Bundle) -> None:
    each = placed(cache, bundle, "segmenter")
    with Double(), loaded(cache, each) as model:
        memory = Memory(model)
        runner = model.make(memory.stream.handle, BATCH, int(memory.workspace))
        runner.close()
        with pytest.raises(ValueError, match="closed runner"):
            runner.enqueue(memory.pointers)
        del memory


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("segmenter", {"batch": 8}, "is for other batches than of 8 slices"),
        ("classifier", {}, "has 'mask_bits' as OUTPUT UINT8 .* where nothing is due"),
        ("segmenter", {"outputs": ("mask_bits", "mask_probability")}, "has 'mask_probability' as nothing"),
    ],
)
def test_a_plan_that_is_not_what_its_record_says_is_refused(
    cache: PlanCache, bundle: Bundle, model: Model, changes: dict[str, Any], said: str
) -> None:
    content = plan(bundle_graph(bundle, "segmenter"), BATCH)
    each = placed(cache, bundle, model, content, **changes)
    with Double(), pytest.raises(UsageError, match=said), loaded(cache, each):
        pass


def test_a_plan_whose_bytes_were_changed_never_reaches_tensorrt(cache: PlanCache, bundle: Bundle) -> None:
    each = placed(cache, bundle, "segmenter")
    content = bytearray(each.path.read_bytes())
    content[-1] ^= 1
    each.path.write_bytes(content)
    with Double() as double:
        with pytest.raises(UsageError, match="has sha256"), loaded(cache, each):
            pass
        assert "deserialize_cuda_engine" not in double.steps


def test_a_plan_that_failed_its_proof_is_never_loaded(cache: PlanCache, bundle: Bundle) -> None:
    each = placed(cache, bundle, "segmenter")
    cache.set_aside(each, Proof(status="failed", date=NOW, report={"flips": 9}))
    with Double(), pytest.raises(UsageError, match="was removed or replaced"), loaded(cache, each):
        pass


def test_a_plan_of_the_other_flavour_is_a_mistake(cache: PlanCache, bundle: Bundle) -> None:
    each = placed(cache, bundle, "segmenter", flavour="tensorrt-rtx")
    with Double(), pytest.raises(ValueError, match="a plan of tensorrt-rtx"), loaded(cache, each):
        pass


def test_plans_without_probabilities_refuse_another_mask_threshold(cache: PlanCache, bundle: Bundle) -> None:
    plans = {model: placed(cache, bundle, model) for model in MODELS}
    point = OperatingPoint.of(bundle, mask_threshold=0.7)
    with (
        Double(),
        pytest.raises(UsageError, match=r"gives no mask_probability, .*: leave --mask-threshold out"),
        open_plans(cache, plans, point),
    ):
        pass


def test_a_gpu_that_is_not_there_is_said(cache: PlanCache, bundle: Bundle) -> None:
    each = placed(cache, bundle, "segmenter")
    with Double():
        toolkit = load_toolkit("tensorrt")
        with pytest.raises(MachineError, match="there is no GPU 3: the driver shows 1, counted from 0"):
            TensorRtModel(toolkit, cache, each, 3)


def test_whatever_fails_in_a_cascade_of_plans_is_one_line_and_nothing_leaks(
    cache: PlanCache, bundle: Bundle, images: Images
) -> None:
    plans = {model: placed(cache, bundle, model) for model in MODELS}
    with Double() as double:
        score_by_plans(cache, plans, bundle, images[:2])
        steps = list(double.steps)
    for number, step in enumerate(steps):
        if step == "Stream.synchronize" and "memcpy_dtoh_async" not in steps[number:]:
            continue  # before all is freed: if it fails, it is too late to mind
        with Double() as double:  # which looks for leaks at its end
            double.fail("*", at=number)
            with pytest.raises(MachineError) as caught:
                score_by_plans(cache, plans, bundle, images[:2])
            assert "\n" not in str(caught.value), step
            del caught


def score_by_plans(
    cache: PlanCache, plans: Mapping[Model, CachedPlan], bundle: Bundle, images: Images
) -> None:
    with open_plans(cache, plans, OperatingPoint.of(bundle)) as cascade:
        cascade.score(images, np.ones(len(images), np.bool_))


# TensorRT-RTX


class RuntimeCache:
    """TensorRT-RTX's IRuntimeCache: takes only what it gave."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        if blob == b"of another driver":
            return False
        self.content = bytes(blob)
        return True

    def serialize(self) -> bytes | None:
        return self.content or None


class RuntimeConfig:
    """TensorRT-RTX's IRuntimeConfig."""

    cuda_graph_strategy = "disabled"
    dynamic_shapes_kernel_specialization_strategy: Any = "lazy"
    strategy: Any = None
    runtime_cache: Any = None
    takes = True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.runtime_cache = cache
        return self.takes and cache is not None


@contextmanager
def rtx(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Toolkit, list[RuntimeConfig]]]:
    """The double's TensorRT with what TensorRT-RTX has besides; and the configurations that were made."""
    made: list[RuntimeConfig] = []
    with Double(), open_device(0), monkeypatch.context() as patch:
        module = load_toolkit("tensorrt").module
        create = module.ICudaEngine.create_execution_context

        def configured(engine: Any) -> RuntimeConfig:
            made.append(RuntimeConfig())
            return made[-1]

        def compiling(engine: Any, config: RuntimeConfig) -> Any:
            config.runtime_cache.content = config.runtime_cache.content or b"kernels"
            return create(engine, config.strategy)

        patch.setattr(module.ICudaEngine, "create_runtime_config", configured, raising=False)
        patch.setattr(module.ICudaEngine, "create_execution_context", compiling)
        module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
        yield Toolkit("tensorrt-rtx", "1.7.1.116", module), made


def made_and_closed(model: TensorRtModel, times: int = 1) -> None:
    memory = Memory(model)
    for _ in range(times):
        made_and_run(model, memory)


def test_kernels_are_compiled_for_the_batch_alone_and_kept_for_the_next_time(
    cache: PlanCache, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = placed(cache, bundle, "segmenter", flavour="tensorrt-rtx")
    with rtx(monkeypatch) as (toolkit, made):
        with TensorRtModel(toolkit, cache, each) as model:
            made_and_closed(model, 2)
        gpu = probe_driver().gpus[0]
        assert [config.dynamic_shapes_kernel_specialization_strategy for config in made] == ["eager"] * 2
        assert {config.strategy.name for config in made} == {"USER_MANAGED"}
        assert made[0].runtime_cache is made[1].runtime_cache
        assert cache.runtime_cache(each, gpu) == b"kernels"
        with TensorRtModel(toolkit, cache, each) as model:
            made_and_closed(model)
        assert made[2].runtime_cache.content == b"kernels"


def test_kernels_of_another_driver_are_compiled_anew(
    cache: PlanCache, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = placed(cache, bundle, "segmenter", flavour="tensorrt-rtx")
    with rtx(monkeypatch) as (toolkit, _):
        gpu = probe_driver().gpus[0]
        cache.keep_runtime_cache(each, gpu, b"of another driver")
        with TensorRtModel(toolkit, cache, each) as model:
            made_and_closed(model)
        assert cache.runtime_cache(each, gpu) == b"kernels"


def makes_and_fails(toolkit: Toolkit, cache: PlanCache, each: CachedPlan) -> None:
    with TensorRtModel(toolkit, cache, each) as model:
        made_and_closed(model)
        raise MachineError("the GPU is gone")


def test_kernels_of_a_run_that_failed_are_not_kept(
    cache: PlanCache, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = placed(cache, bundle, "segmenter", flavour="tensorrt-rtx")
    with rtx(monkeypatch) as (toolkit, _):
        with pytest.raises(MachineError, match="the GPU is gone"):
            makes_and_fails(toolkit, cache, each)
        assert cache.runtime_cache(each, probe_driver().gpus[0]) is None


def test_a_cache_that_takes_no_kernels_ends_no_run(
    cache: PlanCache, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    each = placed(cache, bundle, "segmenter", flavour="tensorrt-rtx")

    def full(*_: object) -> None:
        raise MachineError("the disk or quota is full")

    monkeypatch.setattr(cache, "keep_runtime_cache", full)
    with rtx(monkeypatch) as (toolkit, _), TensorRtModel(toolkit, cache, each) as model:
        made_and_closed(model)
    assert "kernels are compiled again next time: the disk or quota is full" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("create_runtime_cache", lambda config: None, "takes no runtime cache"),
        ("takes", False, "takes no runtime cache"),
    ],
)
def test_a_runtime_cache_that_is_refused_is_an_error(
    cache: PlanCache, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, said: str
) -> None:
    each = placed(cache, bundle, "segmenter", flavour="tensorrt-rtx")
    monkeypatch.setattr(RuntimeConfig, name, value)
    with (
        rtx(monkeypatch) as (toolkit, _),
        TensorRtModel(toolkit, cache, each) as model,
        pytest.raises(MachineError, match=f"TensorRT-RTX {said} for the segmenter: it does not say why"),
    ):
        made_and_closed(model)


def test_what_stands_in_for_tensorrt_rtx_has_its_names() -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="the rtx extra is not installed")
    for ours, theirs in (RuntimeConfig, real.IRuntimeConfig), (RuntimeCache, real.IRuntimeCache):
        names = [name for name in vars(ours) if not name.startswith("_")]
        own = {"strategy", "runtime_cache", "takes"}
        assert [name for name in names if name not in own and not hasattr(theirs, name)] == []
    assert "EAGER" in real.DynamicShapesKernelSpecializationStrategy.__members__
    for name in ("create_runtime_config", "create_execution_context", "device_memory_size_v2"):
        assert hasattr(real.ICudaEngine, name)
    for name in (
        "set_optimization_profile_async",
        "set_input_shape",
        "set_device_memory",
        "execute_async_v3",
    ):
        assert hasattr(real.IExecutionContext, name)


def test_the_real_tensorrt_rtx_says_why_it_loads_no_plan_here(
    cache: PlanCache, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the rtx extra is not installed")
    each = placed(cache, bundle, "segmenter", b"of nobody", flavour="tensorrt-rtx")
    monkeypatch.setattr(engine.runners.tensorrt, "visible_gpu", lambda device: GPU)
    with pytest.raises(
        MachineError, match=r"^TensorRT-RTX \d\S* cannot load .*segmenter\.plan: .*Error Code"
    ) as caught:
        TensorRtModel(load_toolkit("tensorrt-rtx"), cache, each)
    assert "\n" not in str(caught.value)


@pytest.fixture
def no_gpu() -> None:
    try:
        probe_driver()
    except MachineError:
        return
    pytest.skip("this machine has a GPU")


def test_without_a_driver_no_object_of_tensorrt_is_made(
    no_gpu: None, cache: PlanCache, bundle: Bundle
) -> None:
    each = placed(cache, bundle, "segmenter")
    toolkit = Toolkit("tensorrt", "10.8.0.43", ModuleType("tensorrt"))  # which has no Runtime to be made
    with pytest.raises(MachineError, match="driver"):
        TensorRtModel(toolkit, cache, each)


# A model behind the host's protocol


@contextmanager
def hosted(double: Double, bundle: Bundle, which: int = 1) -> Iterator[HostRunner]:
    model = make_models(double, bundle, BATCH)[which]
    with open_device(0) as device, model, HostRunner(model, BATCH, device) as runner:
        yield runner


def test_calls_of_many_threads_take_turns(bundle: Bundle, images: Images) -> None:
    due = reference(bundle, "segmenter", images)
    with Double("random 7") as double, hosted(double, bundle) as runner:
        pieces = [slice(start, start + 3) for start in range(8)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(runner.infer, [images[piece] for piece in pieces]))
        for piece, each in zip(pieces, found, strict=True):
            assert_same(each, {name: array[piece] for name, array in due.items()})


def test_a_result_does_not_depend_on_the_neighbours_and_the_images_stay(
    bundle: Bundle, images: Images
) -> None:
    before = images.copy()
    with Double() as double, hosted(double, bundle, 0) as runner:
        together = runner.infer(images)["tumor_probability"]
        alone = [runner.infer(images[i : i + 1])["tumor_probability"][0] for i in range(len(images))]
    assert together.tolist() == alone
    np.testing.assert_array_equal(images, before)


def test_a_runner_says_what_its_model_is(bundle: Bundle) -> None:
    with Double() as double, hosted(double, bundle) as runner:
        assert (runner.name, runner.precision, runner.concurrency) == ("double", "fp16", 1)
        assert runner.outputs == ("mask", "mask_pixels")
        assert runner.options == {"plan_sha256": "0" * 64, "batch": BATCH}


def test_images_of_another_form_are_refused(bundle: Bundle, images: Images) -> None:
    with (
        Double() as double,
        hosted(double, bundle) as runner,
        pytest.raises(ValueError, match="C-contiguous"),
    ):
        runner.infer(images[:, ::-1])


def test_a_closed_host_runner_says_so(bundle: Bundle, images: Images) -> None:
    with Double() as double:
        with hosted(double, bundle) as runner:
            pass
        with open_device(0), pytest.raises(ValueError, match="closed runner"):
            runner.infer(images)


def test_a_gpu_with_too_little_memory_is_said_with_the_batch(bundle: Bundle) -> None:
    with (
        Double(memory=1 << 20) as double,
        pytest.raises(
            MachineError,
            match=r"no room for the segmenter at batches of 4 slices \(the GPU has too little memory \(",
        ),
        hosted(double, bundle),
    ):
        pass


def steps_of_a_call(bundle: Bundle, images: Images) -> list[str]:
    with Double() as double:
        opened_and_run(double, bundle, images)
        return list(double.steps)


def opened_and_run(double: Double, bundle: Bundle, images: Images) -> None:
    with hosted(double, bundle) as runner:
        runner.infer(images)


def test_whatever_fails_the_user_reads_one_line_and_nothing_leaks(bundle: Bundle, images: Images) -> None:
    *steps, last = steps_of_a_call(bundle, images[:6])
    assert last == "Stream.synchronize"  # before all is freed: if it fails, it is too late to mind
    for number, step in enumerate(steps):
        with Double() as double:  # which looks for leaks at its end
            double.fail("*", at=number)
            with pytest.raises(MachineError) as caught:
                opened_and_run(double, bundle, images[:6])
            assert "\n" not in str(caught.value), step
            del caught


def test_pycuda_that_is_missing_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.gpu.device, "visible_gpu", lambda device: GPU)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    with (
        pytest.raises(
            MachineError, match=r"^pycuda cannot be loaded \(.*\): pip install 'tumorscan\[gpu\]'$"
        ),
        open_device(0),
    ):
        pass


def test_without_a_driver_pycuda_is_not_asked(no_gpu: None, bundle: Bundle) -> None:
    point = OperatingPoint.of(bundle)
    with pytest.raises(MachineError, match="driver"), open_cuda(bundle, point, batch=BATCH):
        pass


# ONNX Runtime's CUDA provider


class Disguise:
    """The real ONNX Runtime on the CPU, called as if it had the CUDA provider; keeps what it was asked."""

    SessionOptions = ort.SessionOptions
    GraphOptimizationLevel = ort.GraphOptimizationLevel
    __version__ = "1.99.0"

    def __init__(self, providers: tuple[str, ...] = ("CUDAExecutionProvider",)) -> None:
        self.providers = providers
        self.options: list[dict[str, str]] = []
        self.run_entries: dict[str, str] = {}
        self.bound: list[str] = []

    def RunOptions(self) -> Any:  # noqa: N802 - ONNX Runtime's name
        entries = self.run_entries

        class RunOptions(ort.RunOptions):  # type: ignore[misc]
            def add_run_config_entry(self, key: str, value: str) -> None:
                entries[key] = value
                super().add_run_config_entry(key, value)

        return RunOptions()

    def InferenceSession(  # noqa: N802 - ONNX Runtime's name
        self, graph: bytes, settings: Any, *, providers: list[Any], enable_fallback: int
    ) -> Any:
        ((name, options),) = providers
        assert (name, enable_fallback) == ("CUDAExecutionProvider", 0)
        self.options.append(options)
        session = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"], enable_fallback=0)
        return SimpleNamespace(
            get_providers=lambda: list(self.providers),
            get_outputs=session.get_outputs,
            io_binding=lambda: Binding(session, self.bound),
            run_with_iobinding=lambda binding, run: session.run_with_iobinding(binding.real, run),
        )


class Binding:
    """An IO binding of the CPU that takes the addresses of "cuda"."""

    def __init__(self, session: Any, bound: list[str]) -> None:
        self.real = session.io_binding()
        self._bound = bound

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        self._note(name, device_type, buffer_ptr)
        self.real.bind_input(name, "cpu", device_id, element_type, shape, buffer_ptr)

    def bind_output(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        self._note(name, device_type, buffer_ptr)
        self.real.bind_output(name, "cpu", device_id, element_type, shape, buffer_ptr)

    def _note(self, name: str, device_type: str, buffer_ptr: int) -> None:
        assert (device_type, type(buffer_ptr)) == ("cuda", int)
        self._bound.append(name)


@pytest.fixture
def disguise(monkeypatch: pytest.MonkeyPatch) -> Disguise:
    return disguised(monkeypatch, Disguise())


def disguised(monkeypatch: pytest.MonkeyPatch, disguise: Disguise, unloaded: str = "") -> Disguise:
    monkeypatch.setattr(engine.runners.cuda, "visible_gpu", lambda device: GPU)
    monkeypatch.setattr(engine.runners.cuda, "_load", lambda: (disguise, unloaded))
    return disguise


def address(array: npt.NDArray[Any]) -> int:
    return array.ctypes.data


@pytest.mark.parametrize("model", MODELS)
def test_the_cuda_provider_is_given_the_stream_the_options_and_raw_addresses(
    disguise: Disguise, bundle: Bundle, images: Images, model: Model
) -> None:
    graph = bundle_graph(bundle, model)
    batch = np.ascontiguousarray(images[:BATCH])
    with CudaModel(graph, model, device=0, prefer_nhwc=True) as loaded_model:
        name, spec = next(iter(loaded_model.outputs.items()))
        result = np.zeros((BATCH, *spec.shape), spec.dtype)
        runner = loaded_model.make(12_345, BATCH, loaded_model.workspace(BATCH))
        assert disguise.options == [
            {
                "cudnn_conv_algo_search": "HEURISTIC",
                "do_copy_in_default_stream": "1",
                "prefer_nhwc": "1",
                "device_id": "0",
                "user_compute_stream": "12345",
            }
        ]
        runner.enqueue({"images": address(batch), name: address(result)})
        runner.close()
        assert disguise.run_entries == {"disable_synchronize_execution_providers": "1"}
        assert loaded_model.identity == {
            "graph_sha256": hashlib.sha256(graph).hexdigest(),
            "cudnn_conv_algo_search": "HEURISTIC",
            "do_copy_in_default_stream": "1",
            "prefer_nhwc": "1",
        }
    due = reference(bundle, model, batch)
    found = {name: result} if model == "classifier" else dict(zip(due, unpack_masks(result), strict=True))
    assert_same(found, due)


def test_only_addresses_that_change_are_bound_again(
    disguise: Disguise, bundle: Bundle, images: Images
) -> None:
    first, second = (np.ascontiguousarray(images[i : i + 2]) for i in (0, 2))
    result = np.zeros((2, 256, 32), np.uint8)
    with CudaModel(bundle_graph(bundle, "segmenter"), "segmenter") as model:
        runner = model.make(1, 2, 0)
        for batch in (first, first, second):
            runner.enqueue({"images": address(batch), "mask_bits": address(result)})
            assert_same(
                dict(zip(("mask", "mask_pixels"), unpack_masks(result), strict=True)),
                reference(bundle, "segmenter", batch),
            )
    assert disguise.bound == ["images", "mask_bits", "images"]
    runner.close()
    with pytest.raises(ValueError, match="closed runner"):
        runner.enqueue({})


def test_each_runner_is_a_session_on_its_own_stream(disguise: Disguise, bundle: Bundle) -> None:
    with CudaModel(bundle_graph(bundle, "segmenter"), "segmenter") as model:
        runners = [model.make(stream, BATCH, 0) for stream in (5, 6)]
    assert [options["user_compute_stream"] for options in disguise.options] == ["5", "6"]
    assert [runner.batch for runner in runners] == [BATCH, BATCH]
    assert all(isinstance(runner, CudaRunner) for runner in runners)


def test_the_null_stream_and_a_batch_of_none_are_refused(disguise: Disguise, bundle: Bundle) -> None:
    with CudaModel(bundle_graph(bundle, "segmenter"), "segmenter") as model:
        with pytest.raises(ValueError, match="null stream"):
            model.make(0, BATCH, 0)
        with pytest.raises(UsageError, match="a batch of 0 slices cannot be computed"):
            model.make(1, 0, 0)


def test_a_provider_that_was_left_out_in_silence_is_found(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    disguised(monkeypatch, Disguise(("CPUExecutionProvider",)), "Failed to load libcudnn.so.9")
    with (
        CudaModel(bundle_graph(bundle, "segmenter"), "segmenter") as model,
        pytest.raises(
            MachineError, match=r"cannot load its CUDA provider \(Failed to load libcudnn.so.9\): pip"
        ),
    ):
        model.make(1, BATCH, 0)


def test_what_the_session_says_reaches_the_user(
    monkeypatch: pytest.MonkeyPatch, disguise: Disguise, bundle: Bundle
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0\nmore")

    monkeypatch.setattr(disguise, "InferenceSession", refuse, raising=False)
    with (
        CudaModel(bundle_graph(bundle, "segmenter"), "segmenter") as model,
        pytest.raises(MachineError, match=r"of 4 on the GPU \(CUDA failure 2: out of memory ; GPU=0\):"),
    ):
        model.make(1, BATCH, 0)


def test_a_run_that_fails_is_one_line(disguise: Disguise, bundle: Bundle, images: Images) -> None:
    result = np.zeros((BATCH, 256, 32), np.uint8)
    with CudaModel(bundle_graph(bundle, "segmenter"), "segmenter") as model:
        runner = model.make(1, BATCH, 0)
        runner._session.run_with_iobinding = fail_with_two_lines
        with pytest.raises(MachineError, match=r"^ONNX Runtime cannot run on the GPU: CUDA failure 700$"):
            runner.enqueue({"images": address(images), "mask_bits": address(result)})


def fail_with_two_lines(*_: object) -> None:
    raise RuntimeError("CUDA failure 700\nat line 5")


@pytest.mark.parametrize(
    ("model", "graph_of", "said"),
    [
        ("classifier", "segmenter", "of the classifier gives mask_bits where tumor_probability are due"),
        ("segmenter", "classifier", "of the segmenter gives tumor_probability where mask_bits"),
    ],
)
def test_a_graph_of_the_other_model_is_refused(
    disguise: Disguise, bundle: Bundle, model: Model, graph_of: Model, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        CudaModel(bundle_graph(bundle, graph_of), model)


def test_what_is_no_graph_is_refused(disguise: Disguise) -> None:
    with pytest.raises(UsageError, match="of the segmenter is no ONNX"):
        CudaModel(b"junk", "segmenter")


def copying_graph(kind: str) -> bytes:
    """A graph as ONNX Runtime writes it where a part of it is computed on the CPU."""
    nodes = [
        helper.make_node(kind, ["x"], ["y"], "Memcpy_token_3"),
        helper.make_node("Relu", ["y"], ["z"], "late"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "z")]
    graph = helper.make_graph(nodes, "copies", ends[:1], ends[1:])
    return bytes(onnx.ModelProto.SerializeToString(helper.make_model(graph)))


@pytest.mark.parametrize("kind", ["MemcpyToHost", "MemcpyFromHost"])
def test_a_detour_over_the_host_is_found_by_its_node(
    monkeypatch: pytest.MonkeyPatch, disguise: Disguise, bundle: Bundle, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "optimised.onnx"
    path.write_bytes(copying_graph(kind))
    assert host_copy(path) == f"node Memcpy_token_3: {kind} of x, for Relu late"
    monkeypatch.setattr(engine.runners.cuda, "host_copy", lambda _: host_copy(path))
    with (
        CudaModel(bundle_graph(bundle, "segmenter"), "segmenter") as model,
        pytest.raises(
            MachineError, match=r"computes a part of the segmenter on the CPU \(node Memcpy_token_3"
        ),
    ):
        model.make(1, BATCH, 0)


def test_a_graph_that_stays_in_one_place_has_no_detour(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(bundle_graph(bundle, "segmenter"))
    assert host_copy(path) == ""


def test_an_onnx_runtime_without_the_cuda_provider_is_said_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    monkeypatch.setattr(engine.runners.cuda, "visible_gpu", lambda device: GPU)
    with pytest.raises(
        MachineError,
        match=r"has no CUDA provider: pip uninstall onnxruntime, then pip install 'onnxruntime-gpu",
    ):
        CudaModel(bundle_graph(bundle, "segmenter"), "segmenter")


def test_a_context_is_popped_also_after_an_error() -> None:
    with Double(), pytest.raises(RuntimeError, match="inside"):  # which looks for contexts that are left
        fail_inside()


def fail_inside() -> None:
    with open_device(0) as device, device.current():
        raise RuntimeError("inside")
