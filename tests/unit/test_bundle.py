from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.bundle import (
    Bundle,
    Metric,
    Normalisation,
    Operating,
    Training,
    record_parity,
    with_graph,
    without_graph,
    write_manifest,
)
from engine.errors import UsageError
from tests.tinybundle import make_tiny_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_bundle(tmp_path / "tiny", gate_threshold=0.25, min_pixels=7).folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "bundle.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_a_bundle_tells_its_operating_point_and_graphs(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert (bundle.gate_threshold, bundle.mask_threshold, bundle.min_pixels) == (0.25, 0.5, 7)
    assert bundle.graph("classifier") == folder / "classifier.onnx"
    assert bundle.graph("segmenter", "fp32") == folder / "segmenter.onnx"


def test_the_bundle_is_known_by_the_hash_of_its_manifest(folder: Path) -> None:
    assert Bundle.load(folder).sha256 == hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()


def test_the_manifest_lists_every_file_with_its_size_and_hash(folder: Path) -> None:
    entries = {e.file: e for e in Bundle.load(folder).manifest.entries()}
    assert set(entries) == {p.name for p in folder.iterdir()} - {"bundle.json"}
    for name, entry in entries.items():
        data = (folder / name).read_bytes()
        assert (entry.size, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("name", ["classifier.onnx", "segmenter.onnx", "MODEL_CARD.md"])
def test_a_flipped_byte_is_refused_with_the_files_name(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UsageError, match=rf"{name} has sha256 .*, bundle.json says .*--bundle"):
        Bundle.load(folder)


def test_a_truncated_graph_is_refused_with_both_sizes(folder: Path) -> None:
    path = folder / "segmenter.onnx"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=rf"segmenter.onnx has {size - 1} bytes, bundle.json says {size}"):
        Bundle.load(folder)


def test_a_missing_graph_is_refused_with_its_name(folder: Path) -> None:
    (folder / "classifier.onnx").unlink()
    with pytest.raises(UsageError, match=r"classifier.onnx is missing"):
        Bundle.load(folder)


def test_a_folder_in_a_files_place_is_refused(folder: Path) -> None:
    (folder / "MODEL_CARD.md").unlink()
    (folder / "MODEL_CARD.md").mkdir()
    with pytest.raises(UsageError, match=r"MODEL_CARD.md is missing"):
        Bundle.load(folder)


@pytest.mark.parametrize("version", [0, 2, "1", True, 1.0, None])
def test_another_format_version_is_refused_before_anything_else_is_looked_at(
    folder: Path, version: object
) -> None:
    (folder / "classifier.onnx").unlink()
    (folder / "bundle.json").write_text(json.dumps({"format_version": version, "layout": "of the future"}))
    with pytest.raises(UsageError, match=r"has format version .*, this tumorscan reads 1"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    "name",
    ["../classifier.onnx", "/etc/hostname", "a/b.onnx", "a\\b.onnx", "", ".", "..", "a\nb", "bundle.json"],
)
def test_a_name_that_leads_out_of_the_bundle_is_refused_before_any_file_is_read(
    folder: Path, name: str
) -> None:
    (folder / "segmenter.onnx").unlink()
    edit(folder, lambda fields: fields["models"]["classifier"]["fp32"].update(file=name))
    with pytest.raises(UsageError, match=r"models.classifier.fp32.file: .* is not a plain file name"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: f["models"].pop("segmenter"), "the segmenter has no fp32 graph"),
        (
            lambda f: f["models"]["classifier"].update(fp16=f["models"]["classifier"].pop("fp32")),
            "no fp32 graph",
        ),
        (lambda f: f["operating"].update(gate_threshold=1.5), "operating.gate_threshold"),
        (lambda f: f["operating"].update(mask_threshold=0), "operating.mask_threshold"),
        (lambda f: f["operating"].update(min_pixels=0), "operating.min_pixels"),
        (lambda f: f["normalisation"].update(classifier="guess"), "normalisation.classifier"),
        (lambda f: f.update(input_size=128), "input_size"),
        (lambda f: f.pop("training"), "training: Field required"),
        (lambda f: f["files"].append(f["files"][0]), "a file is listed twice"),
        (
            lambda f: f["training"].update(split_file="split.json"),
            "training.split_file is not among the files",
        ),
        (lambda f: f["models"]["classifier"]["fp32"].update(sha256="0"), "models.classifier.fp32.sha256"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_with_the_place(
    folder: Path, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    edit(folder, change)
    with pytest.raises(UsageError, match=complaint) as caught:
        Bundle.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", '{"format_version": 1'])
def test_a_manifest_that_is_not_json_is_refused(folder: Path, text: str) -> None:
    (folder / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"bundle.json is damaged \(not JSON"):
        Bundle.load(folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=r"is not a model bundle: it has no bundle.json"):
            Bundle.load(place)


def test_a_precision_that_the_bundle_lacks_is_refused_with_those_it_has(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no int8 graph of the classifier: choose from fp32"):
        Bundle.load(folder).graph("classifier", "int8")


def test_all_that_is_known_of_a_bundle_survives_being_written(tmp_path: Path) -> None:
    source = make_tiny_bundle(tmp_path).manifest
    (tmp_path / "split.json").write_text('{"test": ["p1"]}')
    split_sha256 = hashlib.sha256((tmp_path / "split.json").read_bytes()).hexdigest()
    training = Training(
        data="LGG",
        presets={"classifier": "best"},
        split_file="split.json",
        split_sha256=split_sha256,
        slices=3929,
    )
    metrics = {"dice": Metric(value=0.75, low=0.7, high=0.8, unit="per volume", n=11)}
    bundle = write_manifest(
        tmp_path,
        name="lgg",
        date="2026-01-01",
        graphs={"classifier": {"fp32": "classifier.onnx"}, "segmenter": {"fp32": "segmenter.onnx"}},
        files=["MODEL_CARD.md", "split.json"],
        normalisation=Normalisation(classifier="imagenet_bgr"),
        operating=Operating(gate_threshold=0.3, mask_threshold=0.4, min_pixels=5, chosen="on validation"),
        training=training,
        metrics=metrics,
        versions={"keras": "3"},
    )
    assert bundle == Bundle.load(tmp_path)
    assert bundle.manifest.models == source.models
    assert (bundle.manifest.training, bundle.manifest.metrics) == (training, metrics)
    assert {p.name for p in tmp_path.iterdir()} == {e.file for e in bundle.manifest.entries()} | {
        "bundle.json"
    }


def test_recorded_parity_is_kept_beside_what_was_recorded_before(folder: Path) -> None:
    before = Bundle.load(folder)
    once = record_parity(before, "openvino:bf16", {"holds": True, "flips": 3})
    twice = record_parity(once, "openvino:int8", {"holds": False})
    assert twice.manifest.parity == {
        "openvino:bf16": {"holds": True, "flips": 3},
        "openvino:int8": {"holds": False},
    }
    assert twice.manifest.model_copy(update={"parity": {}}) == before.manifest
    assert twice.sha256 != before.sha256


def test_a_graph_of_another_precision_joins_the_others(folder: Path) -> None:
    before = Bundle.load(folder)
    bundle = with_graph(before, "segmenter", "int8", b"a graph")
    assert bundle.graph("segmenter", "int8").read_bytes() == b"a graph"
    assert bundle.graph("segmenter", "int8").name == "segmenter_int8.onnx"
    assert bundle.graph("segmenter") == before.graph("segmenter")
    assert Bundle.load(folder) == bundle


def test_a_graph_that_is_replaced_or_taken_out_takes_its_parity_along(folder: Path) -> None:
    before = Bundle.load(folder)
    bundle = with_graph(with_graph(before, "classifier", "int8", b"one"), "segmenter", "int8", b"two")
    for key in ("openvino:bf16", "openvino:int8", "openvino:int8+bf16"):
        bundle = record_parity(bundle, key, {"holds": True})
    replaced = with_graph(bundle, "segmenter", "int8", b"three")
    assert set(replaced.manifest.parity) == {"openvino:bf16"}
    assert replaced.graph("segmenter", "int8").read_bytes() == b"three"
    bare = without_graph(without_graph(replaced, "segmenter", "int8"), "classifier", "int8")
    assert bare.manifest.models == before.manifest.models
    assert {path.name for path in folder.iterdir()} == {path.name for path in before.folder.iterdir()}
    assert without_graph(bare, "classifier", "int8") is bare


def test_a_value_that_is_not_a_number_never_gets_into_a_manifest(folder: Path) -> None:
    with pytest.raises(ValidationError):
        Metric(value=float("nan"))
    before = (folder / "bundle.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        record_parity(Bundle.load(folder), "openvino:bf16", {"error": float("nan")})
    assert (folder / "bundle.json").read_bytes() == before
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_a_loaded_bundle_cannot_be_changed(folder: Path) -> None:
    bundle = Bundle.load(folder)
    with pytest.raises(ValidationError):
        bundle.manifest.operating.min_pixels = 1  # type: ignore[misc]


def test_the_default_bundle_is_the_packages_own_else_the_checkouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.bundle.__file__", str(tmp_path / "engine" / "bundle.py"))
    with pytest.raises(UsageError, match="--bundle DIR"):
        Bundle.default_folder()
    checkout = make_tiny_bundle(tmp_path / "models" / "lgg").folder
    assert Bundle.default_folder() == checkout
    wheel = make_tiny_bundle(tmp_path / "engine" / "models" / "lgg").folder
    assert Bundle.default_folder() == wheel


def test_loading_a_bundle_imports_no_runtime(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from engine.bundle import Bundle; import engine.runners\n"
        f"Bundle.load(Path({str(folder)!r}))\n"
        "heavy = {'onnx', 'onnxruntime', 'openvino', 'tensorflow', 'keras', 'cv2'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
