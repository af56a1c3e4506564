"""Plans built by a real TensorRT-RTX, which needs no GPU, and every way in which a TensorRT says no."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import engine.plans.toolkit
from engine.bundle import Bundle, Model
from engine.driver import Driver, Gpu, probe_driver
from engine.errors import MachineError, UsageError
from engine.plans.builder import MAX_BATCH, BuildRequest, Built, build_plan
from engine.plans.half import half_graph
from engine.plans.layers import Layer, engine_layers
from engine.plans.messages import Messages, Progress
from engine.plans.toolkit import Toolkit, build_targets, load_toolkit

PORTABLE = {"8.0", "8.6", "8.9", "12.0"}


@pytest.fixture(scope="module")
def rtx() -> Toolkit:
    pytest.importorskip("tensorrt_rtx", reason="the rtx extra is not installed")
    return load_toolkit("tensorrt-rtx")


@pytest.fixture
def no_gpu() -> None:
    try:
        probe_driver()
    except MachineError:
        return
    pytest.skip("this machine has a GPU")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Put a module `tensorrt` of this source before all others."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    real = sys.modules.pop("tensorrt", None)

    def write(source: str) -> None:
        (folder / "tensorrt.py").write_text(source)

    yield write
    sys.modules.pop("tensorrt", None)
    if real is not None:
        sys.modules["tensorrt"] = real


def graph(*, kernels: Any = np.float16, activation: str = "Relu", side: int = 256) -> bytes:
    """A classifier of one convolution, named `stem`, behind a cast, named `to_half`."""
    number = TensorProto.FLOAT16 if kernels is np.float16 else TensorProto.FLOAT
    kernel = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(kernels)
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], "to_half", to=number),
        helper.make_node("Transpose", ["numbers"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["features"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node(activation, ["features"], ["active"], "activation"),
        helper.make_node("ReduceMean", ["active"], ["logit"], "pool", axes=[1, 2, 3], keepdims=0),
        helper.make_node("Cast", ["logit"], ["logit32"], "to_float", to=TensorProto.FLOAT),
        helper.make_node("Sigmoid", ["logit32"], ["tumor_probability"], "probability"),
    ]
    model = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", side, side, 3])],
        [helper.make_tensor_value_info("tumor_probability", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return bytes(
        onnx.ModelProto.SerializeToString(helper.make_model(model, opset_imports=opsets, ir_version=8))
    )


def request(folder: Path, **changes: Any) -> BuildRequest:
    fields: dict[str, Any] = {
        "model": "classifier",
        "graph": graph(),
        "batch": 4,
        "workspace": None,
        "level": None,
        "timing_cache": None,
        "log": folder / "build.log",
    }
    return BuildRequest(**{**fields, **changes})


def convolutions(built: Built) -> list[Layer]:
    return [layer for layer in built.layers if layer.kind == "CONVOLUTION"]


# What is installed.


def test_a_missing_tensorrt_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        MachineError, match=r"^TensorRT is not installed: pip install 'tumorscan\[tensorrt\]'$"
    ):
        load_toolkit("tensorrt")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise OSError('libnvinfer.so.10: cannot open shared object file')", "OSError: libnvinfer.so.10"),
        ("raise ImportError('undefined symbol: cudaMallocAsync')", "ImportError: undefined symbol"),
        ("import tensorrt_libs_that_are_not_there", "No module named 'tensorrt_libs_that_are_not_there'"),
        ("raise RuntimeError('CUDA\\nmismatch')", r"RuntimeError: CUDA\)"),
        ("x = 1", "no version, so it is a remnant"),
    ],
)
def test_a_half_installed_tensorrt_is_one_line(
    install: Callable[[str], None], source: str, said: str
) -> None:
    install(source)
    with pytest.raises(MachineError, match=f"^TensorRT cannot be loaded .*{said}") as raised:
        load_toolkit("tensorrt")
    assert "\n" not in str(raised.value)
    assert "pip install" in str(raised.value)


@pytest.mark.parametrize("version", ["8.6.1", "10.7.0.post1", "12.0.0.1"])
def test_a_version_nobody_looked_at_is_refused(install: Callable[[str], None], version: str) -> None:
    install(f"__version__ = {version!r}")
    with pytest.raises(MachineError, match=rf"TensorRT {version} is installed, .* 10\.8 to below 12"):
        load_toolkit("tensorrt")


@pytest.mark.parametrize("version", ["10.8.0.43", "11.4.0.106"])
def test_the_versions_we_are_written_for_load(install: Callable[[str], None], version: str) -> None:
    install(f"__version__ = {version!r}")
    assert load_toolkit("tensorrt").version == version


def test_without_a_driver_no_object_of_tensorrt_is_made(
    no_gpu: None, install: Callable[[str], None], tmp_path: Path
) -> None:
    install("__version__ = '10.8.0.43'")  # it has no Builder to be made
    toolkit = load_toolkit("tensorrt")
    with pytest.raises(MachineError, match="driver"):
        build_plan(toolkit, request(tmp_path))
    assert not (tmp_path / "build.log").exists()


def test_a_portable_plan_is_for_ampere_and_later(no_gpu: None, rtx: Toolkit) -> None:
    targets = build_targets(rtx)
    assert set(targets) >= PORTABLE
    assert "7.5" not in targets


def test_on_a_turing_gpu_the_plan_is_for_turing(
    rtx: Toolkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = Gpu(0, "NVIDIA GeForce RTX 2080 Ti", (7, 5), 11 << 30, "")
    monkeypatch.setattr(engine.plans.toolkit, "probe_driver", lambda: Driver((13, 0), "", (gpu,)))
    assert build_plan(rtx, request(tmp_path)).targets == ("7.5",)


# What is built.


@pytest.mark.parametrize("model", ["classifier", "segmenter"])
def test_both_models_of_the_bundle_become_fp16_plans(
    no_gpu: None, rtx: Toolkit, tmp_path: Path, model: Model
) -> None:
    floats = Bundle.load(Bundle.default_folder()).graph(model)
    half = half_graph(floats.read_bytes(), model)
    built = build_plan(rtx, request(tmp_path, model=model, graph=half))
    assert len(built.plan) > 1 << 20
    assert {layer.precision for layer in convolutions(built)} == {"FP16"}
    assert len(convolutions(built)) == {"classifier": 53, "segmenter": 35}[model]
    assert set(built.targets) >= PORTABLE


def test_the_parsed_network_is_read_back_with_its_precisions(
    no_gpu: None, rtx: Toolkit, tmp_path: Path
) -> None:
    built = build_plan(rtx, request(tmp_path))
    layers = {layer.name: (layer.kind, layer.precision) for layer in built.layers}
    assert layers["stem"] == ("CONVOLUTION", "FP16")
    assert layers["to_float"] == ("CAST", "FP32")
    assert layers["probability"] == ("ACTIVATION", "FP32")


def test_a_portable_plan_waits_for_its_gpu(no_gpu: None, rtx: Toolkit, tmp_path: Path) -> None:
    trt = rtx.module
    plan = build_plan(rtx, request(tmp_path)).plan
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    assert runtime.deserialize_cuda_engine(plan) is None


def test_numbers_for_the_builder_are_taken(rtx: Toolkit, tmp_path: Path) -> None:
    built = build_plan(rtx, request(tmp_path, workspace=1 << 30, level=0, batch=1))
    assert built.plan
    assert built.seconds > 0


def test_the_log_file_takes_what_the_builder_says(rtx: Toolkit, tmp_path: Path) -> None:
    build_plan(rtx, request(tmp_path))
    assert "INFO: Engine generation completed" in (tmp_path / "build.log").read_text()


def test_progress_names_its_phases_and_rises_to_one(rtx: Toolkit, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    build_plan(rtx, request(tmp_path), lambda phase, fraction: seen.append((phase, fraction)))
    fractions = [fraction for _, fraction in seen]
    assert len({phase for phase, _ in seen}) > 2
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
@pytest.mark.parametrize("kept", [None, b""])
def test_tensorrt_itself_is_given_a_timing_cache_that_is_kept(
    no_gpu: None, rtx: Toolkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: bytes | None
) -> None:
    gpu = Gpu(0, "NVIDIA H100", (9, 0), 80 << 30, "")
    monkeypatch.setattr(engine.plans.toolkit, "probe_driver", lambda: Driver((13, 0), "", (gpu,)))
    tensorrt = Toolkit("tensorrt", rtx.version, rtx.module)  # the same interface; RTX's cache stays empty
    built = build_plan(tensorrt, request(tmp_path, timing_cache=kept))
    assert built.targets == ("9.0",)
    assert built.timing_cache is not None
    again = build_plan(tensorrt, request(tmp_path, timing_cache=built.timing_cache))
    assert again.timing_cache is not None


def test_layers_of_an_engine_are_read_from_its_inspector() -> None:
    texts = [
        '{"Name": "stem + activation", "LayerType": "CaskConvolution",'
        ' "Outputs": [{"Name": "active", "Format/Datatype": "Half"}]}',
        '{"Name": "pool", "LayerType": "Reduce",'
        ' "Outputs": [{"Name": "logit", "Format/Datatype": "Row major linear FP16 format"}]}',
        '{"Name": "shape", "LayerType": "kgen", "Outputs": []}',
        '{"Name": "a "quoted" name", "LayerType": "kgen"}',
        "only a name",
    ]
    inspector = SimpleNamespace(get_layer_information=lambda index, form: texts[index])
    made = SimpleNamespace(num_layers=len(texts), create_engine_inspector=lambda: inspector)
    module = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=1))
    assert engine_layers(made, Toolkit("tensorrt", "10.8.0.43", module)) == (
        Layer("stem + activation", "CaskConvolution", "FP16"),
        Layer("pool", "Reduce", "FP16"),
        Layer("shape", "unknown", "unknown"),
        Layer('{"Name": "a "quoted" name", "LayerType": "kgen"}', "unknown", "unknown"),
        Layer("only a name", "unknown", "unknown"),
    )


# What is refused.


@pytest.mark.parametrize("batch", [-1, 0, MAX_BATCH + 1, 2**31])
def test_a_batch_that_makes_no_sense_is_refused(tmp_path: Path, batch: int) -> None:
    with pytest.raises(UsageError, match=f"a batch of {batch} slices cannot be built: choose 1 to"):
        request(tmp_path, batch=batch)


@pytest.mark.parametrize("changes", [{"level": -1}, {"level": 6}, {"workspace": 0}, {"workspace": 2**64}])
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="choose"):
        request(tmp_path, **changes)


def test_a_broken_graph_names_its_node(rtx: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"cannot parse the classifier: node activation \(Reloo\): ."
    ) as raised:
        build_plan(rtx, request(tmp_path, graph=graph(activation="Reloo")))
    assert "\n" not in str(raised.value)


def test_what_is_no_graph_is_refused(rtx: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot parse the classifier: .*Failed to parse the ONNX model"):
        build_plan(rtx, request(tmp_path, graph=b"not ONNX"))


def test_an_empty_graph_is_refused(rtx: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the graph of the classifier takes nothing where images UINT8"):
        build_plan(rtx, request(tmp_path, graph=b""))


def test_a_graph_for_slices_of_another_size_is_refused(rtx: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"takes images UINT8 \(-1, 128, 128, 3\) where images UINT8 \(N, 256"
    ):
        build_plan(rtx, request(tmp_path, graph=graph(side=128)))


def test_a_graph_that_is_not_fp16_is_refused_by_its_convolution(rtx: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 of its convolutions are not, the first is stem in FP32"):
        build_plan(rtx, request(tmp_path, graph=graph(kernels=np.float32)))


def test_a_workspace_too_small_is_said_in_the_builders_words(rtx: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(
        MachineError, match=r"cannot build the classifier for 4 slices: .*workspace.*build\.log"
    ):
        build_plan(rtx, request(tmp_path, workspace=1))


def test_a_log_that_cannot_be_opened_is_said(rtx: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"build\.log cannot be written: No such file"):
        build_plan(rtx, request(tmp_path / "absent"))


def test_a_log_on_a_full_disk_ends_the_build(rtx: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="/dev/full cannot be written: No space left"):
        build_plan(rtx, request(tmp_path, log=Path("/dev/full")))


def test_an_error_in_progress_ends_the_build_and_comes_through(rtx: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Building engine"):
        build_plan(rtx, request(tmp_path), fail)


def test_ctrl_c_ends_the_build_and_the_next_one_works(
    rtx: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed = []
    noticed = threading.Event()
    stop = Messages.stop

    def hear(messages: Messages, error: BaseException) -> None:
        stop(messages, error)
        noticed.set()

    def press(phase: str, fraction: float) -> None:
        if not pressed:
            pressed.append(phase)
            os.kill(os.getpid(), signal.SIGINT)
            assert noticed.wait(60.0)  # by the main thread, or this build would be done before

    monkeypatch.setattr(Messages, "stop", hear)
    # Who starts the tests in the background may have the key ignored.
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_plan(rtx, request(tmp_path), press)
    finally:
        signal.signal(signal.SIGINT, kept)
    assert "Build canceled" in (tmp_path / "build.log").read_text()
    later = request(tmp_path, log=tmp_path / "later.log")
    assert build_plan(rtx, later).plan
    assert "Engine generation completed" in later.log.read_text()


def fail(phase: str, fraction: float) -> None:
    raise ValueError(phase)


@pytest.mark.parametrize(
    ("source", "progress", "kind"), [(b"not ONNX", None, UsageError), (graph(), fail, ValueError)]
)
def test_an_error_that_is_kept_does_not_keep_the_builder(
    rtx: Toolkit, tmp_path: Path, source: bytes, progress: Progress | None, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as kept:
        build_plan(rtx, request(tmp_path, graph=source), progress)
    later = request(tmp_path, log=tmp_path / "later.log")
    assert build_plan(rtx, later).plan
    assert "logger" not in later.log.read_text()  # TensorRT warns where another one is registered
    assert kept.value.__traceback__ is not None
