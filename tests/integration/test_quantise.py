"""`tumorscan quantise` as a user types it, and a bundle with int8 graphs in all that reads one."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

onnx = pytest.importorskip("onnx", reason="needs the train extra")
pytest.importorskip("keras", reason="needs the train extra")

from engine.bundle import Bundle, record_parity  # noqa: E402
from engine.errors import MachineError, UsageError  # noqa: E402
from engine.plans.builder import BuildRequest, build_plan  # noqa: E402
from engine.plans.half import half_graph  # noqa: E402
from engine.plans.toolkit import load_toolkit  # noqa: E402
from engine.runners import BF16_FLAGS, INT8_FLAGS, cpu_flags, open_runner  # noqa: E402
from engine.runners.half import HalfGraphRunner  # noqa: E402
from engine.runners.openvino import unsign  # noqa: E402
from tests.int8bundle import make_int8_bundle, write_patients  # noqa: E402
from tests.runs import Ran, table, tumorscan  # noqa: E402
from tests.tinybundle import tiny_slices  # noqa: E402
from trainer import quantise as module  # noqa: E402
from trainer.dataset import Split  # noqa: E402
from trainer.int8_check import expect_int8  # noqa: E402
from trainer.quantise import quantise  # noqa: E402

pytestmark = pytest.mark.skipif(
    not cpu_flags() & INT8_FLAGS, reason="this CPU has no int8 dot products: nothing can be judged on it"
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients and a bundle with int8 graphs, never changed; what the command printed lies beside them."""
    folder = tmp_path_factory.mktemp("original")
    make_int8_bundle(folder / "bundle", write_patients(folder / "data"))
    shutil.copytree(folder / "bundle", folder / "float")
    ran = tumorscan("quantise", "data", "--bundle", "bundle", cwd=folder)
    assert ran.status == 0, ran.err
    (folder / "printed").write_text(ran.err)
    return folder


@pytest.fixture
def folder(tmp_path: Path, original: Path) -> Path:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(folder: Path, *words: str | Path) -> Ran:
    return tumorscan(*words, cwd=folder)


def report(folder: Path, out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / out / "run.json").read_text())
    return found


def test_both_graphs_and_the_parity_of_every_pair_come_into_the_bundle(original: Path) -> None:
    bundle = Bundle.load(original / "bundle")
    assert {model: set(graphs) for model, graphs in bundle.manifest.models.items()} == {
        "classifier": {"fp32", "int8"},
        "segmenter": {"fp32", "int8"},
    }
    floats = {"openvino:int8+fp32"} | ({"openvino:int8+bf16"} if cpu_flags() & BF16_FLAGS else set())
    assert set(bundle.manifest.parity) == {"openvino:int8", *floats}
    for record in bundle.manifest.parity.values():
        assert record["holds"] is True
        assert (record["slices"], record["volumes"]) == (12, 2)  # the validation patients alone
        assert record["calibration"] == {"slices": 18, "float": {"classifier": [], "segmenter": []}}
    assert "parity holds" in (original / "printed").read_text()


def test_the_float_graphs_stay_as_they_were(original: Path) -> None:
    for name in ("classifier.onnx", "segmenter.onnx", "split.json"):
        assert (original / "bundle" / name).read_bytes() == (original / "float" / name).read_bytes()


def test_once_more_gives_the_same_bytes(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "bundle").iterdir()}
    quantise(folder / "data", folder / "bundle", None, lambda text: None)
    assert {path.name: path.read_bytes() for path in (folder / "bundle").iterdir()} == before


def test_a_run_takes_int8_by_itself_and_says_so(folder: Path) -> None:
    ran = run(folder, "score", "data", "--out", "out", "--bundle", "bundle")
    assert ran.status == 0, ran.err
    assert report(folder, "out")["precision"] == {"classifier": "int8", "segmenter": "int8"}
    in_float = run(folder, "score", "data", "--out", "float32", "--bundle", "bundle", "--precision", "fp32")
    assert in_float.status == 0, in_float.err
    assert table(folder / "out")["has_mask"].equals(table(folder / "float32")["has_mask"])


def test_precision_int8_is_what_was_asked_for_or_a_reason(folder: Path) -> None:
    ran = run(folder, "score", "data", "--out", "out", "--bundle", "bundle", "--precision", "int8")
    assert ran.status == 0, ran.err
    ran = run(folder, "score", "data", "--out", "no", "--bundle", "float", "--precision", "int8")
    assert (ran.status, "tumorscan quantise" in ran.err) == (2, True)
    bundle = Bundle.load(folder / "bundle")
    for key in bundle.manifest.parity:
        bundle = record_parity(bundle, key, {"holds": False})
    ran = run(folder, "score", "data", "--out", "no", "--bundle", "bundle", "--precision", "int8")
    assert (ran.status, "no parity of its int8 graphs that holds" in ran.err) == (2, True)


def test_parity_takes_pairs_of_precisions(folder: Path) -> None:
    ran = run(folder, "parity", "data", "--bundle", "bundle", "--against", "openvino:int8+fp32")
    assert ran.status == 0, ran.err
    assert "openvino:int8+fp32: parity holds" in ran.out


def test_a_slice_in_int8_depends_on_no_neighbour(original: Path) -> None:
    images = tiny_slices(5)
    with open_runner("openvino", Bundle.load(original / "bundle"), "classifier", "int8") as runner:
        together = runner.infer(images)["tumor_probability"]
        alone = [runner.infer(images[i : i + 1])["tumor_probability"][0] for i in range(5)]
    np.testing.assert_array_equal(together, alone)


def test_what_a_relu_gives_is_uint8_on_the_cpu_and_all_else_stays_signed(original: Path) -> None:
    network = ov.Core().read_model(Bundle.load(original / "bundle").graph("classifier", "int8"))
    unsign(network)
    kinds: dict[str, set[str]] = {}
    for node in network.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            stored = next(iter(node.output(0).get_target_inputs())).get_node().get_element_type()
            kinds.setdefault(stored.get_type_name(), set()).add(
                node.input_value(0).get_node().get_type_name()
            )
    assert kinds.pop("u8") == {"Relu"}
    assert "Relu" not in kinds.pop("i8")
    assert not kinds


def test_patients_kept_for_testing_are_never_read(folder: Path) -> None:
    split = Split.load(folder / "bundle" / "split.json")
    shutil.rmtree(folder / "data" / split.test[0])
    quantise(folder / "data", folder / "bundle", None, lambda text: None)


def test_another_split_than_the_bundles_own_is_refused(folder: Path) -> None:
    own = Split.load(folder / "bundle" / "split.json")
    Split("patient", 0, own.train + own.test, own.validation, ()).save(folder / "other.json")
    ran = run(folder, "quantise", "data", "--bundle", "bundle", "--split", "other.json")
    assert (ran.status, "trained on another split" in ran.err) == (2, True)


def test_a_bundle_without_a_split_needs_one(folder: Path) -> None:
    split = Split.load(folder / "bundle" / "split.json")
    split.save(folder / "split.json")
    make_int8_bundle(folder / "bare")
    with pytest.raises(UsageError, match="--split FILE"):
        quantise(folder / "data", folder / "bare", None, lambda text: None)
    made = quantise(folder / "data", folder / "bare", folder / "split.json", lambda text: None)
    assert set(made.floats) == {"classifier", "segmenter"}


def test_what_does_not_hold_is_taken_out_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "trainer.quantise.CPU_LIMITS", module.CPU_LIMITS.__class__(dice_fall=-2, flip_fraction=0, mask_dice=0)
    )
    made = quantise(folder / "data", folder / "bundle", None, said.append)
    assert not made.reports
    assert made.bundle.manifest.models == Bundle.load(folder / "float").manifest.models
    assert not (folder / "bundle" / "classifier_int8.onnx").exists()
    assert said[-1] == "the classifier does not hold in int8"
    assert sum("2 convolutions of the classifier in float" in line for line in said) >= 1


def test_wrong_use_is_one_line(folder: Path) -> None:
    ran = run(folder, "quantise", "data", "--bundle", "nowhere")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    (folder / "data" / "TCGA_CS_0000_19990101" / "TCGA_CS_0000_19990101_1.tif").write_bytes(b"II*\0")
    ran = run(folder, "quantise", "data", "--bundle", "float")
    assert (ran.status, "TCGA_CS_0000_19990101_1.tif" in ran.err) == (2, True)


def test_a_convolution_that_openvino_would_compute_in_float_is_an_error(tmp_path: Path) -> None:
    """Behind a weight that is not shifted to the stride, OpenVINO leaves int8."""
    from tests.int8bundle import residual_classifier
    from trainer.int8_graph import IR_VERSION, OPSET
    from trainer.quantise import calibrate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.int8_graph.hoist_strides", lambda model: 0)
        graph = calibrate(residual_classifier().SerializeToString(), tiny_slices(4)).graph(())
    model = onnx.load_model_from_string(graph)
    assert (model.opset_import[0].version, model.ir_version) == (OPSET, IR_VERSION)
    (tmp_path / "late.onnx").write_bytes(graph)
    with pytest.raises(MachineError, match=r"2 of the 9 int8 convolutions of .*late.onnx"):
        expect_int8(tmp_path / "late.onnx")


def test_tensorrt_rtx_builds_both_graphs_with_every_convolution_between_int8(
    original: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the rtx extra is not installed")
    bundle = Bundle.load(original / "bundle")
    for model, convolutions in (("classifier", 9), ("segmenter", 1)):
        graph = half_graph(bundle.graph(model, "int8").read_bytes(), model)
        request = BuildRequest(
            model=model,
            graph=graph,
            batch=2,
            workspace=None,
            level=0,
            timing_cache=None,
            log=tmp_path / "log",
        )
        built = build_plan(load_toolkit("tensorrt-rtx"), request)
        kinds = Counter((layer.kind, layer.precision) for layer in built.layers)
        if built.layers_of == "network":
            assert kinds[("CONVOLUTION", "FP16")] == convolutions
            assert kinds[("QUANTIZE", "INT8")] == sum(
                node.op_type == "QuantizeLinear" for node in onnx.load_model_from_string(graph).graph.node
            )
            assert kinds[("CONSTANT", "INT8")] == convolutions


def test_the_graph_for_plans_says_what_the_int8_graph_says(original: Path) -> None:
    bundle, images = Bundle.load(original / "bundle"), tiny_slices(6)
    graph = half_graph(bundle.graph("classifier", "int8").read_bytes(), "classifier")
    with (
        HalfGraphRunner(graph, "classifier", threads=1) as half,
        open_runner("onnxruntime", bundle, "classifier") as reference,
    ):
        np.testing.assert_allclose(
            half.infer(images)["tumor_probability"], reference.infer(images)["tumor_probability"], atol=0.03
        )
