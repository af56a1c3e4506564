"""What gpu_check stands on: operations counted, a paced model on the double, what sections tell, tables."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.gpu import tools
from benchmarks.gpu.clock import Mark
from benchmarks.gpu.data import entries, first_batch, resident
from benchmarks.gpu.feeds import ResidentRing
from benchmarks.gpu.operations import Cost, count
from benchmarks.gpu.overlap import Together, length, overlap
from benchmarks.gpu.section import SECTIONS
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.spin import KERNEL, PTX, PacedModel, answers, pace
from benchmarks.gpu.tables import tables
from benchmarks.gpu.told import Told, hear, reason
from benchmarks.machine import describe
from benchmarks.null import PASSES
from benchmarks.plots import draw
from benchmarks.results import Data, Result, Rows
from engine.bundle import Bundle, Model
from engine.errors import MachineError
from engine.gpu.device import open_device
from engine.gpu.start import Models
from engine.plans.half import PLAN_CONTRACT, half_graph
from tests.double import SCHEDULES
from tests.lanes import cut, run_lanes
from tests.runs import environment, write_slices
from tests.timeddouble import MILLISECONDS, TimedDouble
from tests.tinybundle import make_tiny_bundle, tiny_slices

# Operations


def test_the_shipped_classifier_has_five_billion_multiply_adds_and_the_segmenter_under_two() -> None:
    bundle = Bundle.load(Bundle.default_folder())
    costs: dict[Model, Cost] = {
        model: count(half_graph(bundle.graph(model).read_bytes(), model)) for model in PLAN_CONTRACT
    }
    assert 5.0e9 < costs["classifier"].multiply_adds < 5.1e9
    assert 1.6e9 < costs["segmenter"].multiply_adds < 1.9e9
    assert {cost.input for cost in costs.values()} == {256 * 256 * 3}
    assert (costs["classifier"].output, costs["segmenter"].output) == (4, 256 * 32)
    # Weights in float16: two bytes each.
    assert 50e6 < costs["classifier"].weights < 53e6
    assert 2.3e6 < costs["segmenter"].weights < 2.5e6


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], channels: int = 4) -> bytes:
    """A graph over x float16 [N,channels,8,8] whose last node gives y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", channels, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["N", None, None, None])
    tensors = [
        onnx.numpy_helper.from_array(np.zeros(shape, np.float16), name) for name, shape in weights.items()
    ]
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("kind", "weight", "attributes", "multiply_adds", "out"),
    [
        ("Conv", (6, 4, 3, 3), {"pads": [1, 1, 1, 1]}, 8 * 8 * 6 * 4 * 9, 8 * 8 * 6),
        ("Conv", (6, 4, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, 4 * 4 * 6 * 4 * 9, 4 * 4 * 6),
        ("Conv", (4, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 4}, 8 * 8 * 4 * 9, 8 * 8 * 4),
        ("ConvTranspose", (4, 5, 2, 2), {"strides": [2, 2]}, 8 * 8 * 4 * 5 * 4, 16 * 16 * 5),
        ("MatMul", (8, 3), {}, 4 * 8 * 3 * 8, 4 * 8 * 3),
    ],
)
def test_a_product_is_counted_by_what_it_multiplies(
    kind: str, weight: tuple[int, ...], attributes: dict[str, object], multiply_adds: int, out: int
) -> None:
    cost = count(graph_of([helper.make_node(kind, ["x", "w"], ["y"], **attributes)], {"w": weight}))
    assert cost.multiply_adds == multiply_adds
    assert cost.operations == 2 * multiply_adds
    assert cost.activations == 2 * (4 * 8 * 8 + out)
    assert cost.weights == 2 * int(np.prod(weight))
    assert cost.bytes_moved(4) == cost.activations + cost.weights / 4


# The paced model


def test_the_kernel_assembles_for_every_gpu_that_the_assembler_knows(tmp_path: Path) -> None:
    ptxas = shutil.which("ptxas") or shutil.which(
        "ptxas", path="/usr/local/cuda/bin:/usr/local/cuda-13.0/bin"
    )
    if ptxas is None:
        pytest.skip("there is no ptxas here")
    source, made = tmp_path / "hold.ptx", tmp_path / "hold.cubin"
    source.write_bytes(PTX)
    assembled = []
    for target in ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"):
        words = [ptxas, f"-arch={target}", str(source), "-o", str(made)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "not defined for option" in done.stderr, done.stderr
        assembled += [target] if done.returncode == 0 else []
    assert assembled


def test_both_models_together_keep_the_pace() -> None:
    seconds = pace({"classifier": 5000, "segmenter": 1700}, 30_000)
    assert seconds["classifier"] + PASSES * seconds["segmenter"] == pytest.approx(1 / 30_000)
    assert seconds["classifier"] / seconds["segmenter"] == pytest.approx(5000 / 1700)


def test_the_answers_are_what_a_plan_gives_and_a_third_of_them_pass() -> None:
    probability = answers("classifier", 64)["tumor_probability"]
    assert set(np.unique(probability)) == {0, 1}
    assert int(probability.sum()) == round(64 * PASSES)
    bits = answers("segmenter", 3)["mask_bits"]
    spec = PLAN_CONTRACT["segmenter"]["mask_bits"]
    assert (bits.dtype, bits.shape) == (spec.dtype, (3, *spec.shape))
    assert 1000 < int(np.bitwise_count(bits[0]).sum()) < 2000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@contextmanager
def paced(batch: int) -> Iterator[Models]:
    with (
        PacedModel("classifier", batch, 1e-6) as classifier,
        PacedModel("segmenter", batch, 3e-6) as segmenter,
    ):
        yield classifier, segmenter


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("lanes", [1, 2])
def test_lanes_take_a_paced_model_for_a_real_one(schedule: str, lanes: int, bundle: Bundle) -> None:
    batch = 4
    blocks = cut(tiny_slices(14), batch)
    with TimedDouble(schedule) as double:
        ran = run_lanes(double, bundle, blocks, batch=batch, lanes=lanes, models=lambda: paced(batch))
        assert double.loaded == [PTX, PTX]
        assert b".entry " + KERNEL in PTX
        # In start-up each lane runs both once.
        assert double.launched.count(4000) == len(blocks) + lanes
        assert double.launched.count(12_000) > lanes
    assert ran.error is None
    assert sorted(ran.scored) == list(range(len(blocks)))
    mask = answers("segmenter", 1)["mask_bits"][0]
    for place, results in ran.results.items():
        passed = answers("classifier", batch)["tumor_probability"][: len(blocks[place].images)] > 0.5
        np.testing.assert_array_equal(results.passed, passed)
        for i in np.flatnonzero(passed):
            np.testing.assert_array_equal(results.bits[i], mask)


def test_a_refusal_of_the_driver_is_one_line(bundle: Bundle) -> None:
    with TimedDouble() as double, open_device(0):
        double.fail("cuModuleLoadData", error="out of memory")
        with pytest.raises(MachineError, match="cuModuleLoadData gives error 2"):
            PacedModel("classifier", 4, 1e-6)


def test_time_is_known_once_both_moments_have_passed() -> None:
    with TimedDouble("laziest"), open_device(0) as device:
        stream = device.stream()
        address = device.memory(256)
        begun = Mark(stream)
        stream.clear(address, 256)
        ended = Mark(stream)
        with pytest.raises(Exception, match="has not happened"):
            begun.until(ended)
        ended.wait()
        assert begun.until(ended) == MILLISECONDS / 1e3
        del begun, ended


LIBCUDA = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef unsigned long long u64;
int cuModuleLoadData(void **module, const char *image) {
    *module = (void *)0x10; return strstr(image, ".entry hold") ? 0 : 218;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)0x7f0000000020; return module == (void *)0x10 && !strcmp(name, "hold") ? 0 : 500;
}
int cuModuleUnload(void *module) { puts("unloaded"); return 0; }
int cuCtxGetDevice(int *device) { *device = 3; return 0; }
int cuDeviceGetAttribute(int *value, int key, int device) {
    *value = 132; return key == 16 && device == 3 ? 0 : 1;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, void *function, int threads, size_t shared) {
    *count = 2; return threads == 1024 && shared == 0 ? 0 : 1;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
    printf("%p %u %u %u %u %u %u %u %p %llu %p\n", f, gx, gy, gz, bx, by, bz, shared, stream,
           *(u64 *)parameters[0], (void *)extra);
    return 0;
}
int cuMemAlloc_v2(u64 *address, size_t size) { *address = (u64)malloc(size); return 0; }
int cuMemFree_v2(u64 address) { free((void *)address); puts("freed"); return 0; }
int cuMemcpyHtoD_v2(u64 to, const void *from, size_t size) { memcpy((void *)to, from, size); return 0; }
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t size, void *stream) {
    memcpy((void *)to, (void *)from, size); return stream == (void *)0x7f0000000040 ? 0 : 400;
}
"""


def test_a_driver_in_c_is_given_what_it_takes(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    (tmp_path / "driver.c").write_text(LIBCUDA)
    words = [compiler, "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "driver.c")]
    subprocess.run(words, check=True)
    program = """
import numpy as np
from benchmarks.gpu.spin import PacedModel, answers
out = np.full(64, -1, np.float32)
with PacedModel("classifier", 64, 1 / 30_000) as model:
    runner = model.make(0x7f0000000040, 64, 0)
    runner.enqueue({"images": 0, "tumor_probability": out.ctypes.data})
    runner.close()
np.testing.assert_array_equal(out, answers("classifier", 64)["tumor_probability"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment(), "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"0x7f0000000020 264 1 1 1024 1 1 0 0x7f0000000040 {round(64 / 30_000 * 1e9)} (nil)",
        "freed",
        "unloaded",
    ]


# What sections tell


def test_what_was_told_stands_and_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "told"
    told = Told(path, "chip", dry=False)
    told.value({"copy": "in"}, "rate", "GB/s", 50.0)
    told.known("matrix", 7e14)
    with told.left_out("a product by X"):
        raise MachineError("X is not installed")
    with path.open("a") as file:
        file.write('["value", {"copy": "ou')
    heard = hear(path)
    assert heard.values == [({"section": "chip", "copy": "in"}, "rate", "GB/s", 50.0)]
    assert heard.known == {"matrix": 7e14}
    assert heard.notes == ["chip: a product by X is left out: X is not installed"]


def test_a_dry_run_tells_no_figure(tmp_path: Path) -> None:
    told = Told(tmp_path / "told", "chip", dry=True)
    told.value({}, "rate", "GB/s", 50.0)
    told.known("matrix", 7e14)
    heard = hear(tmp_path / "told")
    assert [value for *_, value in heard.values] == [None]
    assert heard.known == {}


def test_a_section_that_told_nothing_is_heard_as_nothing(tmp_path: Path) -> None:
    assert hear(tmp_path / "nowhere").values == []


def test_any_error_is_one_line() -> None:
    assert reason(MachineError("no GPU")) == "no GPU"
    assert reason(ValueError("first\nsecond")) == "ValueError: first"
    assert reason(AssertionError()) == "AssertionError"


def settings(tmp_path: Path, **given: object) -> Settings:
    plain: dict[str, object] = {
        "data": "data", "links": "links", "bundle": "bundle", "scratch": str(tmp_path), "batch": 4,
        "lanes": 2, "seconds": 60.0, "repeats": 3, "quick": False, "dry": False, "workers": 2, "most": 8,
    }  # fmt: skip
    return Settings(**{**plain, **given})  # type: ignore[arg-type]


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    given = settings(tmp_path, known={"matrix": 1e12})
    assert Settings.decode(given.encode()) == given


def test_the_time_is_shared_among_measurements_and_their_repeats(tmp_path: Path) -> None:
    assert settings(tmp_path).seconds_each(10) == 2.0
    assert settings(tmp_path, seconds=0.0).seconds_each(10) == 0.3
    assert settings(tmp_path, dry=True).seconds_each(10) < 0.1


def test_the_sections_share_all_of_the_minutes() -> None:
    assert sum(section.share for section in SECTIONS.values()) == pytest.approx(1)


# Slices


def test_slices_fill_whole_blocks_from_the_start_again(tmp_path: Path) -> None:
    write_slices(tmp_path, 5)
    assert first_batch(tmp_path, 7).shape == (7, 256, 256, 3)
    with resident(tmp_path, 4, 100) as memory:
        assert (memory.blocks, len(memory.images)) == (2, 8)
        np.testing.assert_array_equal(memory.images[5:], memory.images[:3])
        np.testing.assert_array_equal(memory.block(3), memory.block(1))
        ring = ResidentRing(memory, 2)
        files = list(entries(7))
        assert len({file.order for file in files}) == 7
        for start in range(0, 8, 4):
            assert ring.acquire(0.1) == 0
            ring.submit(0, files[start : start + 4])
        assert ring.acquire(0.01) is None
        first, second = ring.completed(0.1), ring.completed(0.1)
        assert first is not None
        assert second is not None
        assert (first.block, second.block, len(first.slices), len(second.slices)) == (0, 1, 4, 3)
        np.testing.assert_array_equal(second.images, memory.block(1))
        ring.release(0)
        assert ring.acquire(0.1) == 0
        del first, second, ring


# Overlap


def test_spans_are_joined_where_they_overlap() -> None:
    assert length([(0, 2), (1, 3), (5, 6)]) == 4
    assert length([]) == 0
    assert overlap((1, 4), [(0, 2), (3, 9), (10, 11)]) == 2


def test_what_the_longer_hid_of_the_shorter() -> None:
    assert Together(copies=1.0, batches=4.0, both=4.0).hidden == 1
    assert Together(copies=1.0, batches=4.0, both=5.0).hidden == 0
    assert Together(copies=4.0, batches=1.0, both=4.5).hidden == 0.5


# NVIDIA's tools


def command(folder: Path, name: str, says: str, status: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {status}\n")
    program.chmod(0o755)


TRTEXEC = """[I] === Performance summary ===
[I] Throughput: 311.5 qps
[I] Latency: min = 3.2 ms, max = 4.0 ms, mean = 3.3 ms, median = 3.25 ms, percentile(99%) = 3.9 ms
[I] GPU Compute Time: min = 3.1 ms, max = 3.9 ms, mean = 3.2 ms, median = 3.125 ms"""
POLYGRAPHY = "[I] trt-runner | Completed 50 iteration(s) in 165 ms | Average inference time: 3.3 ms."


def test_figures_are_read_off_what_the_tools_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path / "bin", "trtexec", TRTEXEC)
    command(tmp_path / "bin", "polygraphy", POLYGRAPHY)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    queries, compute = tools.trtexec(tmp_path / "classifier.plan", 2.0)
    assert (queries, compute) == pytest.approx((311.5, 3.125e-3))
    assert tools.polygraphy(tmp_path / "classifier.plan", 50) == pytest.approx(3.3e-3)


def test_a_tool_that_is_absent_fails_or_says_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(MachineError, match="polygraphy is not installed"):
        tools.polygraphy(tmp_path / "classifier.plan", 50)
    command(tmp_path / "bin", "polygraphy", "[I] Loading\n[!] Engine deserialization failed", status=1)
    with pytest.raises(MachineError, match=r"status 1: \[!\] Engine deserialization failed"):
        tools.polygraphy(tmp_path / "classifier.plan", 50)
    command(tmp_path / "bin", "polygraphy", "nothing of use")
    with pytest.raises(MachineError, match="polygraphy says no average inference time"):
        tools.polygraphy(tmp_path / "classifier.plan", 50)


# Tables


@pytest.fixture
def result(tmp_path: Path) -> Result:
    rows = Rows()
    for runtime, rate in (("tensorrt", 20_000.0), ("paced", 30_000.0)):
        for name, share in (("runner only", 1.0), ("into the lanes", 0.95)):
            of = {"section": "rates", "runtime": runtime, "rate": name, "lanes": "2", "batch": "64"}
            rows.add(of, "rate", "slices/s", rate * share)
            rows.add(of, "of runner only", "1", share)
    rows.add(
        {"section": "rates", "runtime": "tensorrt", "the ring's memory": "registered"},
        "passes the gate",
        "1",
        0.3,
    )
    of = {"section": "models", "runtime": "torch", "model": "classifier", "batch": "64"}
    rows.add(of, "rate", "slices/s", 9000.0)
    rows.add(of, "of the matrix rate", "1", 0.13)
    rows.add({"section": "tools", "tool": "trtexec", "model": "segmenter"}, "rate", "slices/s", 30_000.0)
    rows.add({"section": "chip", "copy": "host to GPU, pagelocked"}, "rate", "GB/s", 55.0)
    rows.add({"section": "chip", "matrix product": "PyTorch"}, "rate", "TFLOP/s", 700.0)
    of = {"section": "overlap", "runtime": "tensorrt", "what": "lanes at work", "lanes": "2"}
    rows.add(of, "time with a model at work", "1", 0.97)
    for lanes in ("1", "2"):
        of = {"section": "scaling", "runtime": "tensorrt", "by": "lanes", "lanes": lanes, "batch": "64"}
        rows.add(of, "rate", "slices/s", 10_000.0 * int(lanes))
    rows.add({"section": "scaling", "by": "decode workers", "workers": "8"}, "rate", "slices/s", 26_000.0)
    rows.add({"section": "parity", "runtime": "tensorrt", "standing": "proven"}, "mask Dice", "1", 0.9991)
    return Result(
        benchmark="gpu_check",
        quick=False,
        revision="abc",
        bundle_sha256="0" * 64,
        started=datetime(2026, 1, 1, tzinfo=UTC),
        minutes=1.0,
        settings={"repeats": 3},
        machine=describe(tmp_path, 0.1),
        data=Data(name="lgg", files=10, bytes=2_000_000),
        rows=rows.gathered(),
    )


def test_tables_show_what_there_is_and_leave_out_what_there_is_not(result: Result) -> None:
    text = "\n\n".join(tables(result))
    assert "| TensorRT | 20,000 (1.00) | 19,000 (0.95) |  |  |" in text
    assert "| PyTorch, float16, channels last | 9,000 (0.13) |  |  |" in text
    assert "| trtexec |  | 30,000 |  |" in text
    assert "| float16 matrix product, PyTorch | 700 | TFLOP/s |" in text
    assert "| TensorRT, lanes at work, 2 lanes | time with a model at work 0.97 |" in text
    assert "| 8 | 26,000 |" in text
    assert "proven" in text
    assert "The host without a GPU" not in text


def test_the_picture_can_be_drawn_of_few_figures_and_of_none(result: Result, tmp_path: Path) -> None:
    for name, each in (("some", result), ("none", result.model_copy(update={"rows": ()}))):
        draw(each, tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
