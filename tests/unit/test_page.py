"""The page: one file that loads nothing, runs nothing of others, and says what there is to say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.errors import MachineError, UsageError
from engine.outputs import rle
from engine.page.make import Made, Options, make_page
from engine.page.pixels import at_picture_size, read_mask
from engine.page.results import Slice
from tests.pages import Spot, spots, square, write_results

HOSTILE = "<img src=x onerror=alert(1)>'\"&.tif"


def unwatched(text: str, steps: int) -> Callable[[], None]:
    return lambda: None


def make(results: Path, /, **words: object) -> Made:
    return make_page(Options(results, **words), unwatched)  # type: ignore[arg-type]


def text_of(results: Path, /, **words: object) -> str:
    return make(results, **words).path.read_text("utf-8")


def data_of(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="slices">(.*?)</script>', text, re.DOTALL)
    assert found
    data: dict[str, object] = json.loads(found[1])
    return data


class Tags(HTMLParser):
    """All elements of a page, with what they hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_is_in_the_results_and_says_what_ran(here: Path) -> None:
    out = write_results(here, spots(12))
    made = make(out)
    assert made.path == out / "index.html"
    assert (made.shown_slices, made.slices, made.notes) == (12, 12, [])
    assert made.size == made.path.stat().st_size
    text = made.path.read_text("utf-8")
    for said in ("12 slices of 3 volumes", "tiny", "onnxruntime 1.23", "classifier fp32", "6.0", "4 May 2026",
                 "tumorscan score data --out out", "tumour probability of 0.5 and above"):  # fmt: skip
        assert said in text


def test_equal_results_give_equal_bytes(here: Path) -> None:
    out = write_results(here, spots(12))
    assert make(out, truth=Path("data")).path.read_bytes() == make(out, truth=Path("data")).path.read_bytes()


def test_the_page_fetches_nothing(here: Path) -> None:
    text = text_of(write_results(here, spots(6)), truth=Path("data"))
    for tag, attributes in Tags(text).found:
        assert tag not in ("iframe", "object", "embed", "base", "audio", "video")
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("src") or "") == ""
        link = attributes.get("href") or "#"
        assert link.startswith(("#", "data:image/"))
    assert "url(" not in text
    assert "@import" not in text


def test_the_policy_lets_the_pages_own_style_and_program_run_and_nothing_else(here: Path) -> None:
    text = text_of(write_results(here, spots(3)))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].replace("&#39;", "'").split(";"))
    for name, pattern in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        (inside,) = re.findall(pattern, text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip


def test_names_and_messages_cannot_become_markup(here: Path) -> None:
    hostile = Spot("data/</script><b>", HOSTILE, 0.9, (1, 1, 9), (1, 1, 9))
    lost = Spot("data/p", "lost.tif", None, code="decode", message="</script><script>alert(1)</script>")
    text = text_of(write_results(here, [hostile, lost, *spots(3)], images=False, truth=False))
    assert "<img src=x" not in text
    assert "</script><b>" not in text
    assert text.count("<script>") == 1
    assert HOSTILE in data_of(text)["columns"]["name"]  # type: ignore[index]


def test_pictures_are_those_of_the_slices_and_outlines_those_of_the_masks(here: Path) -> None:
    text = text_of(write_results(here, spots(3)), truth=Path("data"))
    columns = data_of(text)["columns"]
    block = re.search(r'id="pictures-0">(.*?)</script>', text, re.DOTALL)
    assert block
    pictures = block[1].split("\n")
    assert len(pictures) == 3
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(pictures[0]), np.uint8), cv2.IMREAD_COLOR_RGB)
    source = cv2.imread("data/p0/s_0.tif", cv2.IMREAD_COLOR_RGB)
    assert picture is not None
    assert source is not None
    assert picture.shape == (256, 256, 3)
    assert abs(float(picture.mean()) - float(source.mean())) < 3
    assert columns["predicted"] == ["M40 48h80v80h-80z", "", ""]  # type: ignore[index]
    assert columns["true"] == ["M48 48h80v80h-80z", "", ""]  # type: ignore[index]


def test_sources_that_are_gone_leave_a_placeholder_and_a_line(here: Path) -> None:
    out = write_results(here, spots(6), images=False, truth=False)
    made = make(out)
    assert made.notes == [
        "6 of 6 pictures cannot be shown; the first of data/p0/s_0.tif: No such file or directory. Paths are "
        "taken from where `tumorscan report` runs: run it where `tumorscan score` ran, or give --root."
    ]
    text = made.path.read_text("utf-8")
    assert "no picture" in text
    assert data_of(text)["columns"]["predicted"][0] == "M40 48h80v80h-80z"  # type: ignore[index]


def test_sources_are_found_below_root(tmp_path: Path) -> None:
    out = write_results(tmp_path, spots(3))
    assert make(out, root=tmp_path).notes == []
    assert make(out, root=out).notes


def test_quarantined_slices_stand_in_a_table_by_code(here: Path) -> None:
    lost = [Spot("data/p", f"{n}.tif", None, code="truncated", message="ends early") for n in range(120)]
    text = text_of(write_results(here, [*spots(3), *lost, Spot("data/p", "x.tif", None, code="empty")]))
    assert "121 slices could not be scored" in text
    assert "data/p/99.tif" in text
    assert "ends early" in text
    assert "and 20 more" in text
    assert text.index("<code>truncated</code>") < text.index("<code>empty</code>")


def test_a_run_that_has_not_finished_says_so_on_the_page(here: Path) -> None:
    out = write_results(here, spots(3))
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**run, "finished": False}))
    text = text_of(out)
    assert "not finished" in text
    assert "The run has not finished" in text


def test_anonymised_no_name_path_or_message_is_on_the_page(here: Path) -> None:
    slices = [
        Spot("data/MILLER_ANNA", "MILLER_1.tif", 0.9, (1, 1, 9), (1, 1, 9)),
        Spot("data/MILLER_ANNA", "MILLER_2.tif", None, message="MILLER_2.tif is short"),
        Spot("data/MILLER_ANNA", "MILLER_3.tif", 0.2),
    ]
    out = write_results(here, slices)
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**run, "arguments": ["score", "MILLER_ANNA"]}))
    (here / "data/MILLER_ANNA/MILLER_3.tif").unlink()
    (here / "data/MILLER_ANNA/MILLER_3_mask.tif").unlink()
    (here / "out").rename(here / "MILLER")
    made = make(here / "MILLER", anonymise=True, truth=Path("data"))
    text = made.path.read_text("utf-8")
    assert "miller" not in text.lower()
    assert data_of(text)["volumes"] == ["volume 1"]
    assert data_of(text)["columns"]["name"] == ["slice 1", "slice 2", "slice 3"]  # type: ignore[index]
    assert "miller" not in " ".join(made.notes).lower()


def test_a_sample_says_so_and_its_figures_are_of_all(here: Path) -> None:
    out = write_results(here, spots(60))
    made = make(out, limit=30)
    text = made.path.read_text("utf-8")
    assert (made.shown_slices, made.slices) == (30, 60)
    assert made.notes == [
        "30 of 60 slices are shown: all 20 findings, 10 others of volumes drawn at random (seed 0)."
    ]
    assert made.notes[0] in text
    assert "60 slices of 3 volumes" in text
    assert len(data_of(text)["columns"]["name"]) == 30  # type: ignore[index]
    assert data_of(text)["sizes"] == [20, 20, 20]


def test_a_page_that_cannot_be_written_is_refused_in_one_line(here: Path) -> None:
    out = write_results(here, spots(3))
    (here / "file").touch()
    with pytest.raises(UsageError, match="is a folder"):
        make(out, out=here)
    with pytest.raises(MachineError, match="cannot be written"):
        make(out, out=here / "file" / "page.html")
    with pytest.raises(UsageError, match="--root"):
        make(out, root=here / "missing")


def test_a_mask_may_stand_in_the_table_as_run_lengths(tmp_path: Path) -> None:
    mask = square((3, 4, 5))
    found = read_mask(tmp_path, Slice("v", "v/a.tif", 0, 0.9, has_mask=True, mask_rle=rle.encode(mask)))
    np.testing.assert_array_equal(found, mask != 0)
    assert read_mask(tmp_path, Slice("v", "v/a.tif", 0, 0.9, has_mask=True, mask_rle="{}")) is None


def test_a_small_finding_of_a_large_slice_is_still_drawn() -> None:
    mask = np.zeros((1000, 2000), np.bool_)
    mask[500, 700] = True
    scaled = at_picture_size(mask)
    assert scaled.shape == (128, 256)
    assert scaled.sum() == 1


def test_paths_with_bytes_that_are_no_text_are_opened(here: Path) -> None:
    out = write_results(here, [Spot("data/p", "caf\\xe9.tif", 0.9, (1, 1, 9))], truth=False)
    (here / "data/p/caf\\xe9.tif").rename(Path("data/p/caf\udce9.tif"))
    assert make(out).notes == []


def test_the_programs_parts_cannot_end_their_element() -> None:
    static = Path(__file__).parents[2] / "engine/page/static"
    for path in static.iterdir():
        assert "</" not in path.read_text("utf-8"), path.name
