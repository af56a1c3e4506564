"""What a run writes when it is asked for more: run lengths, probabilities, Parquet, cleaned volumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from engine.errors import UsageError
from engine.outputs.components import Rule
from engine.outputs.rle import decode
from engine.scoring import Options, Outcome, score
from tests.runs import Ran, files_below, table, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle

SLICES = 24
EVERYTHING: dict[str, Any] = {"components": Rule.parse("1560"), "save_probabilities": True, "parquet": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    write_slices(folder / "data", SLICES, patients=2)
    (folder / "data" / "p1" / "jane_doe.tif").write_bytes(b"")
    make_tiny_bundle(folder / "bundle")
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of input and bundle, left without outputs."""
    monkeypatch.chdir(home)
    yield home
    for entry in home.iterdir():
        if entry.name not in ("data", "bundle"):
            shutil.rmtree(entry)


def run(out: str, **options: Any) -> Outcome:
    words = {"backend": "onnxruntime", "workers": 1, **options}
    return score(Options(("data",), Path(out), bundle=Path("bundle"), **words))


def command(out: str, *words: str) -> Ran:
    line = ("score", "data", "--bundle", "bundle", "--backend", "onnxruntime", "--workers", "1", "--out", out)
    return tumorscan(*line, *words, cwd=Path.cwd())


def grey(path: str) -> npt.NDArray[np.uint8]:
    image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def everything(out: str) -> dict[str, bytes]:
    """All that a run leaves and that is the same each time."""
    tables = ("results.csv", "errors.csv", "volumes.csv", "results.parquet", "errors.parquet")
    return files_below(Path(out)) | {name: (Path(out) / name).read_bytes() for name in tables}


def test_run_lengths_are_the_masks_that_png_has(here: Path) -> None:
    run("png")
    run("rle", masks="rle")
    pictures, runs = table(Path("png")), table(Path("rle"))
    assert not (here / "rle" / "masks").exists()
    assert set(runs["mask_path"]) == {""}
    for path, text in zip(pictures["mask_path"], runs["mask_rle"], strict=True):
        assert (path == "") == (text == "")
        if path:
            np.testing.assert_array_equal(grey(f"png/{path}"), decode(text) * 255)
    assert pictures.drop(columns="mask_path").equals(runs.drop(columns=["mask_path", "mask_rle"]))


def test_probabilities_agree_with_masks_and_stand_for_what_the_segmenter_saw(here: Path) -> None:
    run("out", save_probabilities=True, gate=False)
    rows = table(Path("out"))
    scored = rows[rows["status"] == "ok"]
    assert (scored["probability_path"] != "").all()
    for path, mask in zip(scored["probability_path"], scored["mask_path"], strict=True):
        above = grey(f"out/{path}") >= 128
        assert above.any() == bool(mask)
        if mask:
            np.testing.assert_array_equal(above, grey(f"out/{mask}") > 0)


def test_a_run_that_is_continued_leaves_what_an_undisturbed_one_does(here: Path) -> None:
    run("whole", **EVERYTHING)
    # The first end knows half of the slices: it drops other components than the last one.
    run("parts", **EVERYTHING, limit=9)
    run("parts", **EVERYTHING, batch=3)
    assert everything("parts") == everything("whole")
    report = json.loads((here / "parts" / "run.json").read_text())
    rows = table(Path("whole"))
    assert (
        report["counts"]["has_mask"]
        == (rows["has_mask"] == "1").sum()
        == len(list(Path("whole/masks").rglob("*.png")))
    )
    assert 0 < report["counts"]["has_mask"] < 16
    assert run("parts", **EVERYTHING).nothing_new
    assert everything("parts") == everything("whole")


def test_volumes_add_up_to_the_rows_of_their_slices(here: Path) -> None:
    run("out")
    rows, volumes = table(Path("out")), table(Path("out"), "volumes.csv").set_index("volume")
    assert volumes.index.tolist() == ["data/p0", "data/p1"]
    for volume, own in rows.groupby("volume"):
        found = volumes.loc[volume]
        assert int(found["slices"]) == len(own)
        assert int(found["quarantined"]) == (own["status"] == "quarantined").sum()
        assert int(found["with_mask"]) == (own["has_mask"] == "1").sum()
        assert int(found["voxels"]) == sum(int(pixels or 0) for pixels in own["mask_pixels"])


def test_other_outputs_are_another_run(here: Path) -> None:
    run("out", masks="rle")
    for other in (
        {},
        {"masks": "rle", "components": EVERYTHING["components"]},
        {"masks": "rle", "save_probabilities": True},
    ):
        with pytest.raises(UsageError, match="holds a run with other options"):
            run("out", **other)
    run("out", masks="rle", parquet=True)
    assert (here / "out" / "results.parquet").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--components", "some"), "--components some: give all, largest"),
     (("--components", "largest", "--overlays"), "overlays are drawn before a slice's volume is known"),
     (("--anonymise", "out/private"), "lies in the output")],
)  # fmt: skip
def test_outputs_that_make_no_sense_are_one_line(here: Path, words: tuple[str, ...], said: str) -> None:
    refused = command("out", *words)
    assert refused.status == 2
    assert said in refused.err
    assert not (here / "out").exists()


def test_an_anonymised_run_names_nothing_and_is_continued_by_its_key(here: Path) -> None:
    words = ("--anonymise", "private", "--save-probabilities", "--overlays", "--parquet")
    assert command("out", *words, "--limit", "5").status == 0
    assert command("out", *words).status == 4
    for path in (here / "out").rglob("*"):
        assert not any(word in str(path.relative_to(here / "out")) for word in ("jane", "s_", "p0", "data"))
        if path.is_file():
            assert not any(word in path.read_bytes() for word in (b"jane_doe", b"s_1", b"data/", b"bundle/"))
    assert "nothing new" in command("out", *words).out
    rows, who = (
        table(Path("out")),
        table(next(Path("private").glob("*/")), "names.csv").set_index("pseudonym"),
    )
    run("plain")
    named = table(Path("plain"))
    assert [who["image_path"][name] for name in rows["image_path"]] == named["image_path"].tolist()
    assert rows["mask_pixels"].tolist() == named["mask_pixels"].tolist()
    for hidden, path in zip(rows["mask_path"], named["mask_path"], strict=True):
        assert (hidden == "") == (path == "")
        if path:
            assert (here / "out" / hidden).read_bytes() == (here / "plain" / path).read_bytes()
    run("out", anonymise=Path("elsewhere"))
    assert table(Path("out"))["image_path"].tolist() != rows["image_path"].tolist()


def test_a_run_that_names_its_files_is_not_continued_under_pseudonyms(here: Path) -> None:
    run("out", limit=2)
    with pytest.raises(UsageError, match="holds a run that names its files"):
        run("out", anonymise=Path("private"))


def test_starting_over_leaves_nothing_of_the_run_before(here: Path) -> None:
    run("out", **EVERYTHING)
    run("out", fresh=True, masks="none")
    assert sorted(path.name for path in (here / "out").iterdir() if path.is_file()) == [
        "errors.csv", "results.csv", "run.json", "run.sqlite", "volumes.csv",
    ]  # fmt: skip
    assert files_below(Path("out")) == {}
