"""What a run may be trusted with: each test holds one sentence of it."""

from __future__ import annotations

import ast
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.badfiles import png
from tests.runs import CHECKOUT, table, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle

UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle")).folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def words(bundle: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("score", *more, "--bundle", bundle, "--backend", "onnxruntime")


def sources() -> Iterator[tuple[Path, ast.AST]]:
    for room in ("engine", "trainer"):
        for path in sorted((CHECKOUT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                yield path, node


# Nothing that is read can run


def test_nothing_is_unpickled_or_evaluated_anywhere() -> None:
    found = []
    for path, node in sources():
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"{path}: {name}" for name in names if name.partition(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                found.append(f"{path}:{node.lineno}: {node.func.id}")
            allowed = {"allow_pickle": False, "shell": False, "safe_mode": True, "weights_only": True}
            for keyword in node.keywords:
                if (
                    keyword.arg in allowed
                    and getattr(keyword.value, "value", None) is not allowed[keyword.arg]
                ):
                    found.append(f"{path}:{node.lineno}: {keyword.arg}")
    assert found == []


def test_no_shell_is_ever_asked() -> None:
    shells = {"system", "popen", "getoutput", "getstatusoutput"}
    found = [
        f"{path}:{node.lineno}"
        for path, node in sources()
        if isinstance(node, ast.Attribute)
        and node.attr in shells
        and isinstance(node.value, ast.Name)
        and node.value.id in ("os", "subprocess")
    ]
    assert found == []


# Bundles only by their hash


@pytest.mark.parametrize("name", ["classifier.onnx", "segmenter.onnx", "MODEL_CARD.md"])
def test_a_bundle_is_used_only_while_each_file_has_its_hash(work: Path, tmp_path: Path, name: str) -> None:
    write_slices(work / "data", 2)
    folder = make_tiny_bundle(tmp_path / "bundle").folder
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    ran = tumorscan(*words(folder, "data"), cwd=work)
    assert ran.status == 2
    assert name in ran.err
    assert "sha256" in ran.err
    assert not (work / "results").exists()


@pytest.mark.parametrize("name", ["../classifier.onnx", "/etc/passwd", "a/b.onnx", "a\\b.onnx", "..", "a\0b"])
def test_a_bundle_names_no_file_outside_itself(work: Path, tmp_path: Path, name: str) -> None:
    write_slices(work / "data", 1)
    folder = make_tiny_bundle(tmp_path / "bundle").folder
    manifest = folder / "bundle.json"
    escaped = name.replace("\\", "\\\\").replace("\0", "\\u0000")
    manifest.write_text(manifest.read_text().replace("classifier.onnx", escaped))
    ran = tumorscan(*words(folder, "data"), cwd=work)
    assert ran.status == 2
    assert "is not a plain file name inside the bundle" in ran.err


# The ledger


def test_a_ledger_that_a_stranger_prepared_runs_nothing_and_is_refused(work: Path, bundle: Path) -> None:
    write_slices(work / "data", 3)
    assert tumorscan(*words(bundle, "data"), cwd=work).status == 0
    (work / "data" / "p0" / "one_more.png").write_bytes(png(20, 20))
    with sqlite3.connect("results/run.sqlite") as connection:
        connection.execute(
            "CREATE TRIGGER spoil AFTER INSERT ON slices BEGIN UPDATE slices SET has_mask = 0; END"
        )
    connection.close()
    before = Path("results/run.sqlite").read_bytes()
    ran = tumorscan(*words(bundle, "data"), cwd=work)
    assert ran.status == 2
    assert "its tables are not those of a ledger" in ran.err
    assert Path("results/run.sqlite").read_bytes() == before


# The output stays in its folder


def everything_below(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_no_name_or_link_of_the_input_leads_a_mask_out_of_the_output(work: Path, bundle: Path) -> None:
    write_slices(work / "data", 3, patients=1)
    away = work / "away"
    write_slices(away, 3, first=3, patients=1)
    (work / "data" / "up").symlink_to("../away", target_is_directory=True)
    (work / "data" / "..tif").write_bytes((work / "data" / "p0" / "s_0.tif").read_bytes())
    (work / "data" / "...").mkdir()
    (work / "data" / "... ").mkdir()
    write_slices(work / "data" / "... ", 1)
    (work / "deep").mkdir()
    slices = [os.fsencode(path) for path in sorted((away / "p0").glob("*.tif"))]
    lines = [
        b"../away/p0/s_3.tif",
        b"../deep/../away/p0/s_5.tif",
        b"./../data/up/p0/s_3.tif",
        b"..//..///" + os.fsencode(work.name) + b"/away/p0/s_5.tif",
        *slices,
        b"/../../.." + slices[0],
        b"/" + slices[0],
    ]
    (work / "deep" / "list.txt").write_bytes(b"\n".join(lines))
    before = everything_below(work)
    assert tumorscan(*words(bundle, "../data", "--out", "../out1"), cwd=work / "deep").status == 0
    ran = tumorscan(*words(bundle, "--files-from", "list.txt", "--out", "../out2"), cwd=work / "deep")
    assert ran.status == 0, ran.err
    after = everything_below(work)
    new = {name for name in after if after[name] != before.get(name, b"")}
    assert all(name.split("/")[0] in ("out1", "out2") for name in new)
    rows = table(work / "out2")
    shared: dict[str, set[Path]] = {}
    for mask, image in zip(rows["mask_path"], rows["image_path"], strict=True):
        if mask:
            shared.setdefault(mask, set()).add((work / "deep" / image).resolve())
    assert len(shared) >= 6
    assert all((work / "out2" / mask).is_file() for mask in shared)
    assert all(len(images) == 1 for images in shared.values())


def test_a_link_in_the_outputs_own_place_is_replaced_not_followed(work: Path, bundle: Path) -> None:
    """Whoever can write there could have put links where results go."""
    write_slices(work / "data", 2)
    (work / "precious").write_bytes(b"kept")
    (work / "results" / "masks" / "p0").mkdir(parents=True)
    for name in ("results.csv", "errors.csv", "run.json", "masks/p0/s_0.tif_mask.png"):
        (work / "results" / name).symlink_to(work / "precious")
    assert tumorscan(*words(bundle, "data"), cwd=work).status == 0
    assert (work / "precious").read_bytes() == b"kept"
    assert not (work / "results" / "results.csv").is_symlink()


def test_a_lock_that_is_a_link_is_not_followed(work: Path, bundle: Path) -> None:
    write_slices(work / "data", 1)
    (work / "results").mkdir()
    (work / "results" / "run.lock").symlink_to(work / "elsewhere")
    ran = tumorscan(*words(bundle, "data"), cwd=work)
    assert ran.status == 3
    assert not (work / "elsewhere").exists()
