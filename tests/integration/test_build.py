"""`tumorscan build` and `tumorscan engines` as users call them, with TensorRT-RTX as the real builder."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.build import BuildOptions, build_plans
from engine.bundle import Bundle, Model
from engine.cascade import Cascade, OperatingPoint
from engine.driver import probe_driver
from engine.errors import MachineError, UsageError
from engine.plans.cache import CachedPlan, PlanCache, PlanKey
from engine.plans.half import half_graph
from engine.plans.sidecar import parse_record
from engine.proof import check_half_graphs, prove_plans
from engine.runners.half import HalfGraphRunner
from engine.trial import Block
from tests.runs import Ran, command, environment, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle, tiny_slices

pytest.importorskip("onnx", reason="plans are made with the rtx or gpu extra")
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs the rtx extra")
MODELS: tuple[Model, ...] = ("classifier", "segmenter")


def has_driver() -> bool:
    try:
        probe_driver()
    except MachineError:
        return False
    return True


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_tiny_bundle(tmp_path / "bundle")


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    write_slices(tmp_path / "slices", 12)
    return tmp_path / "slices"


def build(folder: Path, *words: str | Path) -> Ran:
    call = ("build", "slices", "--bundle", "bundle", "--plan-cache", "plans", "--flavour", "tensorrt-rtx")
    return tumorscan(*call, "--batch", "4", *words, cwd=folder)


def entries(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "plans").glob("*/plan.json"))


@needs_rtx
def test_both_plans_are_built_once_and_then_found(tmp_path: Path, bundle: Bundle, slices: Path) -> None:
    first = build(tmp_path)
    assert first.status == 0, first.err
    assert first.out.count(": built") == 2
    assert "FP16 against float32 on 12 slices of slices: 0 has_mask flips, 8 masks of Dice" in first.out
    assert "building the segmenter" in first.err
    placed = entries(tmp_path)
    assert [entry.name.split("-")[0] for entry in placed] == list(MODELS)
    for entry, model in zip(placed, MODELS, strict=True):
        record = parse_record((entry / "plan.json").read_bytes(), entry / "plan.json")
        plan = (entry / f"{model}.plan").read_bytes()
        assert (record.plan_size, record.plan_sha256) == (len(plan), hashlib.sha256(plan).hexdigest())
        assert record.onnx_sha256 == bundle.manifest.models[model]["fp32"].sha256
        assert (record.batch, record.flavour, record.gpu) == (4, "tensorrt-rtx", None)
        assert "8.6" in record.compute_capabilities
        assert record.proof.status == "unproven"
        assert (tmp_path / "plans" / "logs" / f"{entry.name}.log").stat().st_size > 0
    second = build(tmp_path)
    assert second.status == 0
    assert second.out.count(": cached") == 2
    assert second.err == ""


@needs_rtx
@pytest.mark.skipif(has_driver(), reason="there is an NVIDIA driver here")
def test_without_a_gpu_it_is_said_why_the_plans_are_unproven(
    tmp_path: Path, bundle: Bundle, slices: Path
) -> None:
    said = "the plans are unproven, they cannot be run here: no NVIDIA driver here"
    assert said in build(tmp_path).out


@needs_rtx
def test_convolutions_are_recorded_as_float16(tmp_path: Path, bundle: Bundle, slices: Path) -> None:
    assert build(tmp_path).status == 0
    shown = tumorscan("engines", "inspect", "segmenter", "--plan-cache", "plans", "--layers", cwd=tmp_path)
    assert shown.status == 0
    assert "as the network that was parsed has them" in shown.out
    kinds = [line.split()[:2] for line in shown.out.splitlines() if "CONVOLUTION" in line]
    assert kinds == [["FP16", "CONVOLUTION"]]


@needs_rtx
def test_another_batch_or_bundle_gets_plans_of_its_own(tmp_path: Path, bundle: Bundle, slices: Path) -> None:
    assert build(tmp_path).status == 0
    assert build(tmp_path, "--batch", "2").out.count(": built") == 2
    make_tiny_bundle(tmp_path / "other", sharpness=0.4)
    again = build(tmp_path, "--bundle", "other")
    assert (again.out.count(": built"), again.out.count(": cached")) == (1, 1)  # the segmenters are the same
    assert len(entries(tmp_path)) == 5


@needs_rtx
def test_a_bundle_that_was_changed_under_its_plans_is_refused(
    tmp_path: Path, bundle: Bundle, slices: Path
) -> None:
    assert build(tmp_path).status == 0
    with (bundle.folder / "segmenter.onnx").open("ab") as file:
        file.write(b"x")
    refused = build(tmp_path)
    assert refused.status == 2
    assert "segmenter.onnx has" in refused.err
    assert refused.err.count("\n") == 1


@needs_rtx
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda entry, plan: plan.write_bytes(plan.read_bytes()[:-7]), "bytes, its record says"),
        (lambda entry, plan: plan.write_bytes(bytes(plan.stat().st_size)), "sha256"),
        (lambda entry, plan: plan.chmod(0o666), "can be written by others"),
        (lambda entry, plan: entry.parent.chmod(0o755), "chmod 700"),
        (lambda entry, plan: (entry / "plan.json").write_text("{"), "is damaged"),
    ],
    ids=["truncated", "other bytes", "writable", "open folder", "damaged record"],
)
def test_a_cached_plan_that_is_not_to_be_trusted_is_refused(
    tmp_path: Path, bundle: Bundle, slices: Path, damage: object, said: str
) -> None:
    assert build(tmp_path).status == 0
    entry = entries(tmp_path)[0]
    assert callable(damage)
    damage(entry, entry / "classifier.plan")
    refused = build(tmp_path)
    assert refused.status == 2
    assert said in refused.err
    assert refused.err.count("\n") == 1


@needs_rtx
def test_of_two_builds_at_once_one_builds_and_one_waits(tmp_path: Path, bundle: Bundle, slices: Path) -> None:
    call = command("build", slices, "--bundle", bundle.folder, "--plan-cache", tmp_path / "plans")
    both = [
        subprocess.Popen(
            [*call, "--flavour", "tensorrt-rtx", "--batch", "4"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    out = "".join(each for each, _ in said)
    assert (out.count(": built"), out.count(": cached")) == (2, 2)
    assert len(entries(tmp_path)) == 2


@needs_rtx
def test_engines_lists_inspects_and_prunes(tmp_path: Path, bundle: Bundle, slices: Path) -> None:
    def engines(*words: str) -> Ran:
        return tumorscan("engines", *words, "--plan-cache", "plans", cwd=tmp_path)

    assert engines("list").out.startswith("no plans in ")
    assert build(tmp_path).status == 0
    listed = engines("list").out
    assert listed.count("unproven") == 2
    assert "TensorRT-RTX" in listed
    found = json.loads(engines("list", "--json").out)
    assert [each["record"]["model"] for each in found] == list(MODELS)
    assert engines("inspect", found[0]["name"]).out.startswith("plan ")
    assert json.loads(engines("inspect", "classifier", "--json").out) == found[0]
    unknown = engines("inspect", "nothing")
    assert unknown.status == 2
    assert "take a name of engines list" in unknown.err
    assert engines("prune").status == 2
    assert engines("prune", "--other").out.startswith("0 plans removed")
    assert engines("prune", "--failed", "--unused", "1").out.startswith("0 plans removed")
    assert "2 plans removed" in engines("prune", "--all").out
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batch", "0"), "a batch of 0 slices"),
        (("--batch", "100000"), "a batch of 100000 slices"),
        (("--level", "9"), "no optimisation level 9"),
        (("--workspace", "much"), "--workspace much"),
        (("--workspace", "10"), "--workspace 10: give 1M or more"),
        (("--bundle", "nowhere"), "nowhere is not a model bundle"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    tmp_path: Path, bundle: Bundle, slices: Path, words: tuple[str, str], said: str
) -> None:
    refused = build(tmp_path, *words)
    assert refused.status == 2
    assert said in refused.err
    assert refused.err.count("\n") == 1


def test_without_tensorrt_one_line_says_what_to_install(tmp_path: Path, bundle: Bundle) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    refused = tumorscan("build", "--bundle", "bundle", cwd=tmp_path)
    assert refused.status == 3
    assert refused.err.startswith("tumorscan: TensorRT is not installed: pip install 'tumorscan[tensorrt]'")


def made(folder: Path, bundle: Bundle) -> tuple[PlanCache, list[CachedPlan]]:
    options = BuildOptions(
        bundle=bundle.folder, batch=4, flavour="tensorrt-rtx", plan_cache=folder / "plans", inputs=("slices",)
    )
    outcome = build_plans(options, lambda _text, _done: None)
    return PlanCache(folder / "plans"), [each.plan for each in outcome.plans]


@contextmanager
def running(bundle: Bundle) -> Iterator[Cascade]:
    """The FP16 graphs that the plans were built of, on the CPU: no GPU is needed to judge them."""
    graphs = {model: half_graph(bundle.graph(model).read_bytes(), model) for model in MODELS}
    with (
        HalfGraphRunner(graphs["classifier"], "classifier") as classifier,
        HalfGraphRunner(graphs["segmenter"], "segmenter") as segmenter,
    ):
        yield Cascade(classifier, segmenter, OperatingPoint.of(bundle, gated=False))


@needs_rtx
@pytest.mark.parametrize(("count", "status"), [(12, "proven"), (9, "weakly proven")])
def test_plans_that_agree_with_float32_are_proven_together(
    tmp_path: Path,
    bundle: Bundle,
    slices: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    status: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    cache, plans = made(tmp_path, bundle)
    with running(bundle) as cascade:
        proven = prove_plans(bundle, plans, cache, cascade, [Block(tiny_slices(count))], "slices of a test")
    assert [plan.record.proof.status for plan in proven] == [status, status]
    assert [plan.record.proof.partner_sha256 for plan in proven] == [
        plans[1].record.plan_sha256,
        plans[0].record.plan_sha256,
    ]
    assert proven[0].record.proof.slices == f"{count} slices of a test"
    assert cache.find(PlanKey.of(plans[0].record)) == proven[0]


@needs_rtx
def test_plans_that_draw_other_masks_are_set_aside_with_their_report(
    tmp_path: Path, bundle: Bundle, slices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cache, plans = made(tmp_path, bundle)
    other = make_tiny_bundle(tmp_path / "other", sharpness=-0.5)
    with running(other) as cascade, pytest.raises(MachineError, match=r"fail their proof .* set aside in"):
        prove_plans(bundle, plans, cache, cascade, [Block(tiny_slices(12))], "slices")
    assert [cache.find(PlanKey.of(plan.record)) for plan in plans] == [None, None]
    aside = [entry.plan for entry in cache.plans() if entry.failed]
    assert [plan.record.proof.status for plan in aside if plan] == ["failed", "failed"]
    with pytest.raises(UsageError, match="failed its proof here before"):
        made(tmp_path, bundle)
    refused = build(tmp_path)
    assert refused.status == 2
    assert "the classifier's plan failed its proof here before" in refused.err
    assert build(tmp_path, "--rebuild").out.count(": built") == 2


def test_an_fp16_form_that_is_too_far_from_float32_makes_no_plan(tmp_path: Path, bundle: Bundle) -> None:
    other = make_tiny_bundle(tmp_path / "other", sharpness=-0.5)
    graphs = {model: half_graph(other.graph(model).read_bytes(), model) for model in MODELS}
    blocks = [Block(tiny_slices(9))]
    with pytest.raises(UsageError, match=r"FP16 form of .* is too far from float32 on 9 slices"):
        check_half_graphs(bundle, graphs, blocks)


def test_slices_that_cannot_be_read_are_no_check(tmp_path: Path, bundle: Bundle) -> None:
    graphs = {model: half_graph(bundle.graph(model).read_bytes(), model) for model in MODELS}
    with pytest.raises(UsageError, match="no slice to check"):
        check_half_graphs(bundle, graphs, [])
