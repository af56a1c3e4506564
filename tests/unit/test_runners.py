from __future__ import annotations

import mmap
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from engine.bundle import Bundle, record_parity, with_graph
from engine.errors import MachineError, UsageError
from engine.runners import (
    BACKENDS,
    choose_backend,
    choose_int8,
    choose_precision,
    cpu_flags,
    open_runner,
    parity_key,
)
from engine.runners.base import CONTRACT, Outputs, Runner
from tests.tinybundle import make_tiny_bundle, segmenter_graph, tiny_slices

ALL = tuple(CONTRACT["segmenter"])
BF16 = frozenset({"avx512_bf16"})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny"))


def both_models(bundle: Bundle, backend: str, images: np.ndarray, batch: int = 1) -> Outputs:
    with (
        open_runner(backend, bundle, "classifier", batch=batch) as classifier,
        open_runner(backend, bundle, "segmenter", batch=batch, outputs=ALL) as segmenter,
    ):
        return {**classifier.infer(images), **segmenter.infer(images)}


def assert_equal(one: Outputs, two: Outputs) -> None:
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], strict=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_runner_gives_what_the_contract_says(bundle: Bundle, backend: str) -> None:
    results = both_models(bundle, backend, tiny_slices(3))
    for spec in CONTRACT.values():
        for name, output in spec.items():
            assert (results[name].dtype, results[name].shape) == (output.dtype, (3, *output.shape))
    assert (results["tumor_probability"] > 0.5).tolist() == [True, False, True]
    assert (results["mask_pixels"] > 1000).tolist() == [True, False, True]
    np.testing.assert_array_equal(results["mask"].sum((1, 2)), results["mask_pixels"])
    np.testing.assert_array_equal(results["mask_probability"] >= 128, results["mask"] == 1)


@pytest.mark.parametrize("batch", [1, 3])
def test_openvino_and_onnx_runtime_agree(bundle: Bundle, batch: int) -> None:
    images = tiny_slices(7)
    one, two = (both_models(bundle, backend, images, batch) for backend in BACKENDS)
    np.testing.assert_allclose(one["tumor_probability"], two["tumor_probability"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(one["mask"], two["mask"])
    np.testing.assert_array_equal(one["mask_pixels"], two["mask_pixels"])
    assert np.abs(one["mask_probability"].astype(int) - two["mask_probability"]).max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_batch_gives_the_same_results(bundle: Bundle, backend: str) -> None:
    images = tiny_slices(10)
    results = {batch: both_models(bundle, backend, images, batch) for batch in (1, 3, 8)}
    assert_equal(results[3], results[1])
    assert_equal(results[8], results[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_result_depends_on_no_neighbour_position_or_padding(
    bundle: Bundle, backend: str, batch: int
) -> None:
    images = tiny_slices(7)
    together = both_models(bundle, backend, images, batch)
    backwards = both_models(bundle, backend, np.ascontiguousarray(images[::-1]), batch)
    assert_equal({name: array[::-1] for name, array in backwards.items()}, together)
    for i in (0, 4, 6):
        alone = both_models(bundle, backend, images[i : i + 1], batch)
        assert_equal(alone, {name: array[i : i + 1] for name, array in together.items()})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 4])
def test_four_threads_get_what_one_gets(bundle: Bundle, backend: str, batch: int) -> None:
    images = tiny_slices(12)
    spans = [(a, b) for a in range(0, 12, 2) for b in (a + 1, a + 5, 12) if b <= 12] * 3
    with open_runner(backend, bundle, "segmenter", batch=batch) as runner:
        serial = [runner.infer(images[a:b]) for a, b in spans]
        with ThreadPoolExecutor(4) as pool:
            parallel = list(pool.map(lambda span: runner.infer(images[slice(*span)]), spans))
    for one, two in zip(serial, parallel, strict=True):
        assert_equal(one, two)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_input_is_read_where_it_lies(bundle: Bundle, backend: str) -> None:
    images = tiny_slices(24)
    images.flags.writeable = False
    with open_runner(backend, bundle, "classifier", batch=4) as runner:
        runner.infer(images)
        tracemalloc.start()
        runner.infer(images)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < images[0].nbytes / 2


def test_an_openvino_tensor_stands_on_the_arrays_own_memory() -> None:
    from engine.runners.openvino import tensor_over

    images = np.zeros((4, 256, 256, 3), np.uint8)
    assert np.shares_memory(tensor_over(images[1:3]).data, images[1:3])


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_may_be_unmapped_once_its_slices_are_scored(bundle: Bundle, backend: str) -> None:
    images = tiny_slices(2)
    with open_runner(backend, bundle, "classifier", batch=2) as runner:
        expected = runner.infer(images)
        memory = mmap.mmap(-1, images.nbytes)
        view = np.frombuffer(memory, np.uint8).reshape(images.shape)
        view[:] = images
        assert_equal(runner.infer(view), expected)
        del view
        memory.close()
        assert_equal(runner.infer(images), expected)
        assert_equal(runner.infer(images[:1]), {"tumor_probability": expected["tumor_probability"][:1]})


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_belong_to_the_caller(bundle: Bundle, backend: str) -> None:
    images = tiny_slices(2)
    with open_runner(backend, bundle, "segmenter") as runner:
        first = runner.infer(images[:1])
        kept = {name: array.copy() for name, array in first.items()}
        runner.infer(images[1:])
    assert_equal(first, kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_slices_give_empty_results(bundle: Bundle, backend: str) -> None:
    with open_runner(backend, bundle, "segmenter") as runner:
        results = runner.infer(np.empty((0, 256, 256, 3), np.uint8))
    assert {name: array.shape for name, array in results.items()} == {
        "mask": (0, 256, 256),
        "mask_pixels": (0,),
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_array_that_would_have_to_be_copied_is_refused(bundle: Bundle, backend: str) -> None:
    good = np.zeros((4, 256, 256, 3), np.uint8)
    with open_runner(backend, bundle, "classifier") as runner:
        for bad in (good[::2], good.astype(np.float32), good[0], good[:, :128]):
            with pytest.raises(ValueError, match=r"C-contiguous uint8 \[n,256,256,3\]"):
                runner.infer(bad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_runner_says_so(bundle: Bundle, backend: str) -> None:
    with open_runner(backend, bundle, "classifier") as runner:
        pass
    with pytest.raises(ValueError, match="closed runner"):
        runner.infer(tiny_slices(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_call_starves_beside_busy_ones_and_all_end_with_their_runner(bundle: Bundle, backend: str) -> None:
    images = tiny_slices(12)

    def score_for_ever(runner: Runner) -> None:
        while True:
            runner.infer(images)

    with ThreadPoolExecutor(4) as pool:
        with open_runner(backend, bundle, "segmenter") as runner:
            scoring = [pool.submit(score_for_ever, runner) for _ in range(4)]
            runner.infer(images)
        assert ["closed runner" in str(call.exception(timeout=60)) for call in scoring] == [True] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_runner_describes_itself(bundle: Bundle, backend: str) -> None:
    with open_runner(backend, bundle, "segmenter", batch=2) as runner:
        assert (runner.name, runner.precision, runner.options["batch"]) == (backend, "fp32", 2)
        assert runner.version
        assert runner.outputs == ("mask", "mask_pixels")
        assert runner.concurrency >= 1


def test_openvino_keeps_at_least_two_requests_in_flight(bundle: Bundle) -> None:
    with open_runner("openvino", bundle, "classifier", threads=1) as runner:
        assert runner.concurrency >= 2


def test_bfloat16_is_computed_where_the_cpu_has_it_and_refused_elsewhere(bundle: Bundle) -> None:
    images = tiny_slices(3)
    if not cpu_flags() & {"avx512_bf16", "amx_bf16"}:
        with pytest.raises(MachineError, match="bfloat16"):
            open_runner("openvino", bundle, "segmenter", "bf16")
        return
    with open_runner("openvino", bundle, "segmenter", "bf16") as runner:
        assert runner.precision == "bf16"
        assert (runner.infer(images)["mask_pixels"] > 1000).tolist() == [True, False, True]


def test_onnx_runtime_refuses_bfloat16(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="fp32 only"):
        open_runner("onnxruntime", bundle, "classifier", "bf16")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_runtime_is_named_with_how_to_install_it(
    bundle: Bundle, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(MachineError, match=f"pip install {backend}"):
        open_runner(backend, bundle, "classifier")


def drop_output(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def retype_output(model: onnx.ModelProto) -> None:
    cast = next(node for node in model.graph.node if node.output[0] == "mask")
    cast.attribute[0].i = TensorProto.INT32
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32


def reshape_output(model: onnx.ModelProto) -> None:
    total = next(node for node in model.graph.node if node.output[0] == "mask_pixels")
    total.attribute[0].i = 1  # keepdims
    for size in (1, 1):
        model.graph.output[1].type.tensor_type.shape.dim.add().dim_value = size


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "complaint"),
    [(drop_output, "mask_pixels"), (retype_output, "int32"), (reshape_output, r"1, 1, 1\]")],
)
def test_a_graph_that_breaks_the_contract_is_refused(
    tmp_path: Path, backend: str, change: Callable[[onnx.ModelProto], None], complaint: str
) -> None:
    bundle = make_tiny_bundle(tmp_path)
    model = segmenter_graph()
    change(model)
    onnx.save(model, bundle.graph("segmenter"))
    with pytest.raises(UsageError, match=rf"segmenter.onnx.*{complaint}"):
        open_runner(backend, bundle, "segmenter")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_that_is_none_is_refused_in_one_line(tmp_path: Path, backend: str) -> None:
    bundle = make_tiny_bundle(tmp_path)
    bundle.graph("classifier").write_bytes(b"no graph at all")
    with pytest.raises(UsageError, match=r"classifier.onnx") as caught:
        open_runner(backend, bundle, "classifier")
    assert "\n" not in str(caught.value)


def test_auto_takes_openvino_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("auto") == "openvino"
    monkeypatch.setattr("engine.runners.find_spec", lambda name: None)
    assert choose_backend("auto") == "onnxruntime"


def test_an_unknown_backend_is_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match="auto, openvino, onnxruntime"):
        choose_backend("tflite")


def test_bfloat16_is_chosen_only_where_its_recorded_parity_holds(tmp_path: Path) -> None:
    unmeasured = make_tiny_bundle(tmp_path)
    assert choose_precision(unmeasured, "openvino", BF16) == ("fp32", "fp32")
    failed = record_parity(unmeasured, "openvino:bf16", {"holds": False})
    assert choose_precision(failed, "openvino", BF16) == ("fp32", "fp32")
    held = record_parity(unmeasured, "openvino:bf16", {"holds": True})
    assert choose_precision(held, "openvino", BF16) == ("bf16", "bf16")
    assert choose_precision(held, "openvino", frozenset({"amx_bf16"})) == ("bf16", "bf16")
    assert choose_precision(held, "openvino", frozenset({"avx2"})) == ("fp32", "fp32")
    assert choose_precision(held, "onnxruntime", BF16) == ("fp32", "fp32")


def with_int8(folder: Path, **holds: bool) -> Bundle:
    """A bundle with an int8 graph of the classifier, and parity under keys such as `int8_bf16`."""
    bundle = make_tiny_bundle(folder)
    bundle = with_graph(bundle, "classifier", "int8", bundle.graph("classifier").read_bytes())
    for pair, holds_it in holds.items():
        bundle = record_parity(bundle, f"openvino:{pair.replace('_', '+')}", {"holds": holds_it})
    return bundle


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        ({"avx512_vnni", "avx512_bf16"}, ("int8", "bf16")),
        ({"avx_vnni"}, ("int8", "fp32")),
        ({"avx512_bf16"}, ("bf16", "bf16")),
        ({"avx2"}, ("fp32", "fp32")),
    ],
)
def test_auto_is_the_fastest_pair_that_the_cpu_has_and_that_holds(
    tmp_path: Path, flags: set[str], chosen: tuple[str, str]
) -> None:
    bundle = with_int8(tmp_path, int8=False, int8_bf16=True, int8_fp32=True, bf16=True)
    assert choose_precision(bundle, "openvino", frozenset(flags)) == chosen
    assert choose_precision(bundle, "onnxruntime", frozenset(flags)) == ("fp32", "fp32")


def test_int8_takes_the_segmenter_in_the_lowest_precision_that_holds(tmp_path: Path) -> None:
    every = frozenset({"avx512_vnni", "avx512_bf16"})
    assert choose_int8(with_int8(tmp_path / "a", int8=True), "openvino", every) == ("int8", "int8")
    mixed = with_int8(tmp_path / "b", int8=False, int8_bf16=True, int8_fp32=True)
    assert choose_int8(mixed, "openvino", every) == ("int8", "bf16")
    assert choose_int8(mixed, "openvino", frozenset({"avx_vnni"})) == ("int8", "fp32")


def test_int8_that_cannot_be_says_what_is_missing(tmp_path: Path) -> None:
    vnni = frozenset({"avx_vnni"})
    with pytest.raises(UsageError, match="tumorscan quantise"):
        choose_int8(make_tiny_bundle(tmp_path / "a"), "openvino", vnni)
    bundle = with_int8(tmp_path / "b", int8_fp32=True)
    with pytest.raises(UsageError, match="--backend openvino"):
        choose_int8(bundle, "onnxruntime", vnni)
    with pytest.raises(MachineError, match="VNNI"):
        choose_int8(bundle, "openvino", frozenset({"avx2"}))
    with pytest.raises(UsageError, match="no parity of its int8 graphs that holds"):
        choose_int8(with_int8(tmp_path / "c", int8_fp32=False), "openvino", vnni)


def test_a_pair_is_recorded_under_one_name_where_both_are_alike() -> None:
    assert parity_key("openvino", ("int8", "bf16")) == "openvino:int8+bf16"
    assert parity_key("openvino", ("bf16", "bf16")) == "openvino:bf16"
