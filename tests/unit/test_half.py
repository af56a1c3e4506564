from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

onnx = pytest.importorskip("onnx", reason="needs the gpu extra")

import onnxruntime as ort  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from engine.bundle import Bundle, Model  # noqa: E402
from engine.errors import UsageError  # noqa: E402
from engine.plans.half import PLAN_CONTRACT, half_graph  # noqa: E402
from engine.runners.base import Images, Outputs  # noqa: E402
from tests.tinybundle import classifier_graph, segmenter_graph, tiny_slices  # noqa: E402

ROOT = Path(__file__).parents[2]
CONVOLUTIONS: Mapping[Model, int] = {"classifier": 53, "segmenter": 35}
Constants = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def shipped() -> dict[Model, bytes]:
    bundle = Bundle.load(Bundle.default_folder())
    return {model: bundle.graph(model).read_bytes() for model in CONVOLUTIONS}


@pytest.fixture(scope="module")
def halves(shipped: dict[Model, bytes]) -> dict[Model, bytes]:
    return {model: half_graph(graph, model, probabilities=True) for model, graph in shipped.items()}


def types_of(graph: bytes) -> dict[str, str]:
    """The element type of every tensor, constants among them."""
    whole = onnx.load_model_from_string(graph)
    found = onnx.shape_inference.infer_shapes(whole, strict_mode=True).graph
    values = [*found.input, *found.value_info, *found.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds.update({tensor.name: tensor.data_type for tensor in found.initializer})
    return {name: TensorProto.DataType.Name(kind) for name, kind in kinds.items()}


def nodes_of(graph: bytes) -> list[Any]:
    return list(onnx.load_model_from_string(graph).graph.node)


def casts_of(graph: bytes) -> Counter[tuple[str, str]]:
    kinds = types_of(graph)
    casts = [node for node in nodes_of(graph) if node.op_type == "Cast"]
    return Counter((kinds[node.input[0]], kinds[node.output[0]]) for node in casts)


def constants_of(graph: bytes) -> Constants:
    tensors = onnx.load_model_from_string(graph).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def answer(graph: bytes, images: Images, *more: str) -> Outputs:
    """All outputs, and the inner bool tensors named `more`."""
    whole = onnx.load_model_from_string(graph)
    whole.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.BOOL, None) for name in more)
    session = ort.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def segmenter(
    *steps: tuple[str, list[str], str, dict[str, Any]],
    constants: Mapping[str, npt.NDArray[Any]] | None = None,
    change: Callable[[Any], None] | None = None,
) -> bytes:
    """The tiny segmenter with `steps` from its convolution's output `first` on to `logits`, then changed."""
    whole = segmenter_graph()
    nodes = list(whole.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    if steps:
        nodes[at].output[0] = "first"
        nodes[at + 1 : at + 1] = [
            helper.make_node(kind, inputs, [output], name=f"the_{output}", **attributes)
            for kind, inputs, output, attributes in steps
        ]
    whole.graph.ClearField("node")
    whole.graph.node.extend(nodes)
    whole.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in (constants or {}).items())
    if change:
        change(whole)
    made: bytes = whole.SerializeToString()
    return made


@pytest.mark.parametrize("model", CONVOLUTIONS)
def test_the_only_casts_are_those_at_the_borders(halves: dict[Model, bytes], model: Model) -> None:
    normalisation_and_network = [("UINT8", "FLOAT"), ("FLOAT", "FLOAT16"), ("FLOAT16", "FLOAT")]
    outputs = [("BOOL", "FLOAT16"), ("FLOAT16", "UINT8"), ("FLOAT", "UINT8")]
    expected = normalisation_and_network + (outputs if model == "segmenter" else [])
    assert casts_of(halves[model]) == Counter(expected)


def test_without_probabilities_their_cast_is_cut_off_too(shipped: dict[Model, bytes]) -> None:
    graph = half_graph(shipped["segmenter"], "segmenter")
    assert [output.name for output in onnx.load_model_from_string(graph).graph.output] == ["mask_bits"]
    assert ("FLOAT", "UINT8") not in casts_of(graph)
    assert not {"Floor", "ReduceSum"} & {node.op_type for node in nodes_of(graph)}


@pytest.mark.parametrize("model", CONVOLUTIONS)
def test_the_network_computes_in_float16_and_what_is_around_it_in_float32(
    halves: dict[Model, bytes], model: Model
) -> None:
    kinds = types_of(halves[model])
    computed: dict[str, set[str]] = {}
    for node in nodes_of(halves[model]):
        computed.setdefault(node.op_type, set()).add(kinds[node.output[0]])
    half = ("Conv", "Relu", "MaxPool", "MatMul", "Resize", "Concat", "AveragePool", "Pad")
    whole = ("ReduceMean", "Sub", "Sqrt", "Max", "Div", "Sigmoid", "Softmax", "Slice", "Floor")
    assert {kind for op in half for kind in computed.get(op, ())} == {"FLOAT16"}
    assert {kind for op in whole for kind in computed.get(op, ())} == {"FLOAT"}
    assert sum(node.op_type == "Conv" for node in nodes_of(halves[model])) == CONVOLUTIONS[model]


@pytest.mark.parametrize("model", CONVOLUTIONS)
def test_uint8_stands_only_at_inputs_and_outputs(halves: dict[Model, bytes], model: Model) -> None:
    names = {name for name, kind in types_of(halves[model]).items() if kind == "UINT8"}
    assert names <= {"images", "mask_bits", "mask_probability"}


@pytest.mark.parametrize("model", CONVOLUTIONS)
def test_the_graph_gives_what_the_plan_contract_says_for_any_number_of_slices(
    halves: dict[Model, bytes], model: Model
) -> None:
    graph = onnx.load_model_from_string(halves[model]).graph
    for value in [*graph.input, *graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "N"
    for n in (1, 3):
        results = answer(halves[model], tiny_slices(n))
        described = {name: (array.dtype, array.shape) for name, array in results.items()}
        assert described == {
            name: (spec.dtype, (n, *spec.shape)) for name, spec in PLAN_CONTRACT[model].items()
        }


@pytest.mark.parametrize("model", CONVOLUTIONS)
def test_kernels_are_the_bundles_own_float16_numbers(
    shipped: dict[Model, bytes], halves: dict[Model, bytes], model: Model
) -> None:
    stored = {
        name: values for name, values in constants_of(shipped[model]).items() if values.dtype == np.float16
    }
    made = constants_of(halves[model])
    assert len(stored) >= 20
    for name, values in stored.items():
        np.testing.assert_array_equal(made[name.removesuffix("_float16")], values, strict=True)


@pytest.mark.parametrize("model", CONVOLUTIONS)
def test_the_same_graph_gives_the_same_bytes_in_any_process(
    shipped: dict[Model, bytes], halves: dict[Model, bytes], model: Model, tmp_path: Path
) -> None:
    assert half_graph(shipped[model], model, probabilities=True) == halves[model]
    (tmp_path / "graph").write_bytes(shipped[model])
    code = (
        "import hashlib, pathlib, sys; from engine.plans.half import half_graph; "
        "made = half_graph(pathlib.Path(sys.argv[1]).read_bytes(), sys.argv[2], probabilities=True); "
        "print(hashlib.sha256(made).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "graph", model],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == hashlib.sha256(halves[model]).hexdigest()


def test_the_bits_are_numpys_packed_mask(shipped: dict[Model, bytes]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    images = np.concatenate([tiny_slices(3), noise])
    for graph in (segmenter(), shipped["segmenter"]):
        half = half_graph(graph, "segmenter")
        compared = next(node.output[0] for node in nodes_of(half) if node.op_type == "GreaterOrEqual")
        results = answer(half, images, compared)
        assert results["mask_bits"].any()
        np.testing.assert_array_equal(
            results["mask_bits"], np.packbits(results[compared].astype(np.uint8), axis=-1), strict=True
        )


def test_a_graph_without_any_convolution_stays_in_float32_and_answers_alike() -> None:
    graph = classifier_graph(0.5).SerializeToString()
    half = half_graph(graph, "classifier")
    assert "FLOAT16" not in types_of(half).values()
    images = tiny_slices(3)
    np.testing.assert_array_equal(
        answer(half, images)["tumor_probability"], answer(graph, images)["tumor_probability"]
    )


def test_the_tiny_segmenter_has_one_convolution_in_float16_and_nearly_the_same_mask() -> None:
    half = half_graph(segmenter(), "segmenter", probabilities=True)
    assert casts_of(half).total() == 6
    whole, other = answer(segmenter(), tiny_slices(3)), answer(half, tiny_slices(3))
    flips = np.unpackbits(other["mask_bits"], axis=-1) != whole["mask"]
    assert flips.sum() <= 3
    assert np.abs(other["mask_probability"].astype(int) - whole["mask_probability"]).max() <= 2


def test_a_batch_normalisation_whose_variances_leave_float16_becomes_its_scale_and_shift() -> None:
    kernel = np.ones((4, 1, 1, 1), np.float32)
    variance = np.array([4e8, 1e-12, 1.0, 70000.0], np.float32)
    vectors = {
        "bn_gamma": np.sqrt(variance + np.float32(1e-6)),
        "bn_beta": np.array([0, 1, -1, 0.5], np.float32),
        "bn_mean": np.array([0.5, -0.25, 0, 1], np.float32),
        "bn_variance": variance,
    }
    graph = segmenter(
        ("Conv", ["first", "spread"], "four", {}),
        ("BatchNormalization", ["four", *vectors], "normal", {"epsilon": 1e-6}),
        ("Conv", ["normal", "gather"], "logits", {}),
        constants={"spread": kernel, "gather": kernel.reshape(1, 4, 1, 1) / 4, **vectors},
    )
    half = half_graph(graph, "segmenter", probabilities=True)
    assert "BatchNormalization" not in {node.op_type for node in nodes_of(half)}
    made = constants_of(half)
    scale, shift = made["the_normal_Mul"], made["the_normal_Add"]
    assert scale.dtype == shift.dtype == np.float16
    np.testing.assert_allclose(scale.ravel(), 1, rtol=1e-3)
    np.testing.assert_allclose(shift.ravel(), vectors["bn_beta"] - vectors["bn_mean"], rtol=1e-3)
    whole, other = answer(graph, tiny_slices(2)), answer(half, tiny_slices(2))
    assert np.abs(other["mask_probability"].astype(int) - whole["mask_probability"]).max() <= 3


def test_convolutions_merged_into_one_are_split_in_float16() -> None:
    graph = segmenter(
        ("Conv", ["first", "merged"], "both", {}),
        ("Split", ["both"], "main", {"axis": 1, "num_outputs": 2}),
        ("Add", ["main", "short"], "sum", {}),
        ("Mul", ["sum", "quarter"], "logits", {}),
        constants={"merged": np.full((2, 1, 1, 1), 2, np.float32), "quarter": np.array(0.25, np.float32)},
        change=lambda whole: next(n for n in whole.graph.node if n.op_type == "Split").output.append("short"),
    )
    half = half_graph(graph, "segmenter")
    assert casts_of(half).total() == 5
    kinds = types_of(half)
    assert [kinds[name] for name in ("both", "main", "short", "sum")] == ["FLOAT16"] * 4


def test_what_the_network_shares_with_the_normalisation_is_float16_only_inside() -> None:
    # `one` bounds the deviation from below, and `planes` enters the network twice.
    graph = segmenter(
        ("Mul", ["first", "one"], "same", {}),
        ("Conv", ["planes", "blur", "bias"], "again", {"pads": [1, 1, 1, 1]}),
        ("Add", ["same", "again"], "sum", {}),
        ("Relu", ["sum"], "logits", {}),
    )
    half = half_graph(graph, "segmenter")
    assert casts_of(half).total() == 5
    kinds = types_of(half)
    assert (kinds["one"], kinds["one_half"]) == ("FLOAT", "FLOAT16")
    assert (kinds["planes"], kinds["planes_half"]) == ("FLOAT", "FLOAT16")


def renamed_domain(whole: Any) -> None:
    whole.opset_import.append(helper.make_opsetid("com.example", 1))
    whole.graph.node[1].domain, whole.graph.node[1].name = "com.example", "odd_one"


def without_sigmoid(whole: Any) -> None:
    for node in whole.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type, node.name = "Relu", "no_sigmoid"


def mask_by_another_way(whole: Any) -> None:
    last = next(node for node in whole.graph.node if "mask" in node.output)
    last.name, last.input[0] = "odd_mask", "p"


def without_pixels(whole: Any) -> None:
    del whole.graph.output[1]


def one_slice_only(whole: Any) -> None:
    whole.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def broken_order(whole: Any) -> None:
    whole.graph.node.insert(0, whole.graph.node.pop())


REFUSED = {
    "an operator that is not ONNX's": (segmenter(change=renamed_domain), "odd_one .* of com.example"),
    "no probability": (segmenter(change=without_sigmoid), "no Sigmoid or Softmax stands between node Conv_"),
    "a mask that is no comparison": (
        segmenter(change=mask_by_another_way),
        r"comes from node odd_mask \(Cast",
    ),
    "a missing output": (segmenter(change=without_pixels), "mask_pixels is missing where int32"),
    "one fixed size": (segmenter(change=one_slice_only), r"images is uint8 \[1, 256, 256, 3\] where"),
    "nodes out of order": (segmenter(change=broken_order), "its graph is not valid"),
    "an operator without a decision": (
        segmenter(("Exp", ["first"], "logits", {})),
        r"node the_logits \(Exp\) is not known to compute well in float16",
    ),
    "a number too large": (
        segmenter(("Mul", ["first", "big"], "logits", {}), constants={"big": np.array(7e4, np.float32)}),
        r"a constant of node the_logits \(Mul\) is not finite in float16",
    ),
    "a quantised network": (
        segmenter(
            ("QuantizeLinear", ["first", "step"], "eight", {}),
            ("DequantizeLinear", ["eight", "step"], "logits", {}),
            constants={"step": np.array(0.1, np.float32)},
        ),
        r"node (name: )?the_eight\b",
    ),
    "no ONNX": (b"not a graph", "its graph is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_a_bundles_graph_is_refused_by_name(case: str) -> None:
    graph, message = REFUSED[case]
    with pytest.raises(UsageError, match=message) as caught:
        half_graph(graph, "segmenter")
    assert "\n" not in str(caught.value)


def test_the_other_models_graph_is_refused(shipped: dict[Model, bytes]) -> None:
    with pytest.raises(UsageError, match=r"no FP16 plan can be made of the classifier: its mask is uint8"):
        half_graph(shipped["segmenter"], "classifier")


def test_a_graph_that_is_float16_already_is_refused(halves: dict[Model, bytes]) -> None:
    with pytest.raises(UsageError, match=r"is FLOAT16 where its network begins or ends"):
        half_graph(halves["classifier"], "classifier")
