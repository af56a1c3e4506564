"""The double's models, its TensorRT and its ring memory: what they compute, and what they refuse."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from engine.bundle import Bundle, Model
from engine.plans.half import half_graph
from engine.ring import Ring
from engine.runners.device import DeviceModel
from engine.runners.half import HalfGraphRunner
from engine.sources.discovery import Discovery, SourceFile
from tests.double import SCHEDULES, Double, Slots, bundle_graph, make_models, plan, watch_ring
from tests.double.models import WORKSPACE
from tests.double.programs import found, register, unregister
from tests.tinybundle import make_tiny_bundle, tiny_slices

N = 3
OUTPUT_BYTES: dict[str, int] = {"tumor_probability": 4, "mask_bits": 256 * 32}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    return tiny_slices(N)


def expected(bundle: Bundle, images: npt.NDArray[np.uint8]) -> tuple[list[float], list[int]]:
    """Probabilities and mask pixels by the graphs themselves, on the host."""
    given = {}
    for model in ("classifier", "segmenter"):
        name: Model = model  # type: ignore[assignment]
        with HalfGraphRunner(half_graph(bundle.graph(name).read_bytes(), name), name) as runner:
            given |= runner.infer(images)
    return given["tumor_probability"].tolist(), given["mask_pixels"].tolist()


class Bench:
    """A stream, ring memory, and a buffer for everything that two models take and give."""

    def __init__(self, cuda: Any, double: Double) -> None:
        self.cuda = cuda
        self.slots = Slots(double, 1, N)
        register(self.slots.memory)
        self.stream = cuda.Stream(flags=1)
        sizes = {"images": N * 256 * 256 * 3, "workspace": WORKSPACE}
        sizes |= {name: N * size for name, size in OUTPUT_BYTES.items()}
        self.buffers = {name: cuda.mem_alloc(size) for name, size in sizes.items()}
        self.at = {name: int(buffer) for name, buffer in self.buffers.items()}
        self.probability = cuda.pagelocked_empty(N, np.float32)
        self.bits = cuda.pagelocked_empty((N, 256, 32), np.uint8)

    def copy_in(self, images: npt.NDArray[np.uint8]) -> None:
        self.cuda.memcpy_htod_async(self.buffers["images"], self.slots.fill(0, images), self.stream)

    def copy_out(self) -> None:
        self.cuda.memcpy_dtoh_async(self.probability, self.buffers["tumor_probability"], self.stream)
        self.cuda.memcpy_dtoh_async(self.bits, self.buffers["mask_bits"], self.stream)

    def results(self) -> tuple[list[float], list[int]]:
        return self.probability.tolist(), np.bitwise_count(self.bits).sum(axis=(1, 2)).tolist()

    def close(self) -> None:
        with suppress(self.cuda.LogicError):  # what ran on something freed has broken the context
            self.stream.synchronize()
        unregister(self.slots.memory)
        for buffer in self.buffers.values():
            buffer.free()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_models_compute_what_their_graphs_compute(
    bundle: Bundle, images: npt.NDArray[np.uint8], schedule: str
) -> None:
    def body(cuda: Any, double: Double) -> None:
        bench = Bench(cuda, double)
        with ExitStack() as stack:
            stack.callback(bench.close)
            models: list[DeviceModel] = [stack.enter_context(m) for m in make_models(double, bundle, N)]
            runners = [model.make(bench.stream.handle, N, bench.at["workspace"]) for model in models]
            for _ in range(2):
                bench.copy_in(images)
                for runner in runners:
                    runner.enqueue(bench.at)
                bench.copy_out()
                bench.stream.synchronize()
                results.append(bench.results())
            for runner in runners:
                runner.close()

    results: list[Any] = []
    assert found(body, schedule) == []
    assert results == [expected(bundle, images)] * 2


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "fault", ["one runner on two streams", "one workspace on two streams", "closed early", "none"]
)
def test_what_two_executions_share_is_used_by_one_at_a_time(
    bundle: Bundle, fault: str, schedule: str
) -> None:
    def body(cuda: Any, double: Double) -> None:
        bench, other = Bench(cuda, double), Bench(cuda, double)
        classifier, _ = make_models(double, bundle, N)
        with classifier:
            here, there = bench.at, other.at
            shared = here if fault == "one workspace on two streams" else there
            runners = [
                classifier.make(bench.stream.handle, N, here["workspace"]),
                classifier.make(other.stream.handle, N, shared["workspace"]),
            ]
            runners[0].enqueue(here)
            runners[1].enqueue(there)
            if fault == "one runner on two streams":
                runners[1]._stream = bench.stream.handle
                runners[1].enqueue(there)
            if fault != "closed early":
                bench.stream.synchronize()
                other.stream.synchronize()
            for runner in runners:
                runner.close()
        bench.close()
        other.close()

    kinds = found(body, schedule)
    assert "race" in kinds if fault != "none" else not kinds


def test_addresses_for_a_model_are_aligned_plain_ints_of_live_memory(bundle: Bundle) -> None:
    def body(cuda: Any, double: Double) -> None:
        bench = Bench(cuda, double)
        classifier, _ = make_models(double, bundle, N)
        with classifier:
            runner = classifier.make(bench.stream.handle, N, bench.at["workspace"])
            with pytest.raises(TypeError, match="not an int"):
                runner.enqueue({**bench.at, "images": bench.buffers["images"]})
            with pytest.raises(Exception, match="invalid argument"):
                runner.enqueue({**bench.at, "images": bench.at["images"] + 256})
            assert [finding.kind for finding in double.found()] == ["address"]
            runner.enqueue({**bench.at, "tumor_probability": bench.at["mask_bits"] + 4})
            bench.stream.synchronize()
            runner.close()
            with pytest.raises(ValueError, match="closed"):
                runner.enqueue(bench.at)
        bench.close()

    assert found(body) == ["refusal"]


class Heard:
    """What TensorRT says; to be asked once."""

    def __init__(self, trt: Any) -> None:
        self.lines: list[str] = []
        heard = self.lines

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                heard.append(f"{severity.name} {msg}")

        self.logger = Logger()

    def last(self) -> str:
        line = self.lines[-1]
        self.lines.clear()
        return line


def test_tensorrt_says_no_in_its_own_way(bundle: Bundle) -> None:
    def body(cuda: Any, double: Double) -> None:
        import tensorrt as trt

        heard, bench = Heard(trt), Bench(cuda, double)
        runtime = trt.Runtime(heard.logger)
        assert runtime.deserialize_cuda_engine(b"nonsense") is None
        assert heard.last() == "ERROR deserialize_cuda_engine: the plan is corrupt"
        engine = runtime.deserialize_cuda_engine(plan(bundle_graph(bundle, "classifier"), N))
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        first, second = (engine.create_execution_context(managed) for _ in range(2))
        assert (first.active_optimization_profile, second.active_optimization_profile) == (0, -1)
        assert not second.set_input_shape("images", (N, 256, 256, 3))
        assert "no optimization profile is set" in heard.last()
        assert second.set_optimization_profile_async(0, bench.stream.handle)
        assert second.set_input_shape("images", (N, 256, 256, 3))
        assert not first.set_input_shape("images", (N + 1, 256, 256, 3))
        assert "outside the profile" in heard.last()
        assert not first.execute_async_v3(bench.stream.handle)
        assert "no address is set for images, tumor_probability" in heard.last()
        for name in ("images", "tumor_probability"):
            assert first.set_tensor_address(name, bench.at[name])
        assert not first.execute_async_v3(bench.stream.handle)
        assert "no input shape" in heard.last()
        assert first.set_input_shape("images", (N, 256, 256, 3))
        first.set_device_memory(bench.at["workspace"], 5)
        assert "too few" in heard.last()
        first.set_device_memory(bench.at["workspace"], engine.device_memory_size_v2)
        assert not heard.lines
        assert first.execute_async_v3(bench.stream.handle)
        assert not double.findings.found
        assert not first.execute_async_v3(0)
        assert not first.set_tensor_address("mask", bench.at["images"])
        with pytest.raises(TypeError):
            first.set_tensor_address("images", bench.buffers["images"])
        bench.close()

    assert found(body) == ["refusal"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_context_that_goes_while_it_runs_is_a_race(bundle: Bundle, schedule: str) -> None:
    def body(cuda: Any, double: Double) -> None:
        import tensorrt as trt

        bench = Bench(cuda, double)
        runtime = trt.Runtime(Heard(trt).logger)
        engine = runtime.deserialize_cuda_engine(plan(bundle_graph(bundle, "classifier"), N))
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context.set_input_shape("images", (N, 256, 256, 3))
        context.set_device_memory(bench.at["workspace"], WORKSPACE)
        for name in ("images", "tumor_probability"):
            context.set_tensor_address(name, bench.at[name])
        assert context.execute_async_v3(bench.stream.handle)
        del context
        bench.close()

    assert "race" in found(body, schedule)


@pytest.fixture
def files(tmp_path: Path, images: npt.NDArray[np.uint8]) -> list[SourceFile]:
    folder = tmp_path / "slices"
    folder.mkdir()
    for i, image in enumerate(images):
        cv2.imwrite(str(folder / f"{i}.png"), image[..., ::-1])
    entries = Discovery([str(folder)], None, Path("/nowhere/out"))
    return [entry for entry in entries if isinstance(entry, SourceFile)]


@pytest.mark.parametrize("early", [False, True])
def test_a_real_ring_is_watched(
    bundle: Bundle, images: npt.NDArray[np.uint8], files: list[SourceFile], early: bool
) -> None:
    def body(cuda: Any, double: Double) -> None:
        stream, device = cuda.Stream(flags=1), cuda.mem_alloc(images.nbytes)
        back = cuda.pagelocked_empty(images.shape, np.uint8)
        with Ring(1, N, 1, 60.0) as ring, watch_ring(double, ring):
            memory = ring._mapped().slots
            register(memory)
            block = ring.acquire(60)
            assert block is not None
            ring.submit(block, files)
            done = ring.completed(60)
            assert done is not None
            cuda.memcpy_htod_async(device, done.images, stream)
            cuda.memcpy_dtoh_async(back, device, stream)
            if not early:
                stream.synchronize()
                assert (back == images).all()
            ring.release(block)
            stream.synchronize()
            unregister(memory)
        device.free()

    assert found(body) == (["race"] if early else [])
