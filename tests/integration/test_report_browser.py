"""The page in a real browser: quiet, worked by keyboard, fit for any screen, and whole without programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="selenium of the dev extra drives the browser")

from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from engine.page.make import Options, make_page
from tests.browser import DESKTOP, PHONE, browser, emulate
from tests.pages import Spot, spots, write_results

SLICES = 600
LONG_WAIT_S = 30.0


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain.html and truth.html of a run of many slices."""
    base = tmp_path_factory.mktemp("pages")
    lost = [Spot("data/p2", f"lost_{n}.tif", None, code="truncated", message="ends early") for n in range(3)]
    out = write_results(base, [*spots(SLICES), *lost])
    for name, truth in (("plain.html", None), ("truth.html", base / "data")):
        options = Options(out, root=base, truth=truth, out=base / name)
        make_page(options, lambda text, steps: lambda: None)
    return base


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def truth(chrome: Chrome, pages: Path) -> Chrome:
    """The page with truth, freshly opened on a desktop's screen."""
    emulate(chrome, DESKTOP)
    chrome.get("about:blank")
    chrome.get_log("performance")
    chrome.get_log("browser")
    chrome.get((pages / "truth.html").as_uri())
    return chrome


def ask(chrome: Chrome, expression: str) -> Any:
    return chrome.execute_script(f"return {expression}")


def wait(chrome: Chrome, condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LONG_WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def count(chrome: Chrome) -> str:
    return chrome.find_element(By.ID, "count").text


def choose(chrome: Chrome, kind: str) -> None:
    chrome.find_element(By.CSS_SELECTOR, f"input[name=kind][value={kind}]").click()


def press(chrome: Chrome, *keys: str) -> None:
    ActionChains(chrome).send_keys(*keys).perform()


def focused(chrome: Chrome) -> str:
    """The slice whose card has the focus."""
    return str(ask(chrome, "document.activeElement.getAttribute('href')"))


def columns(chrome: Chrome) -> int:
    """How many cards stand beside one another."""
    places = "[...document.querySelectorAll('.card')].map((card) => card.style.left)"
    return int(ask(chrome, f"new Set({places}).size"))


def shown_slice(chrome: Chrome) -> str:
    return chrome.find_element(By.CSS_SELECTOR, "#facts dd").text


# Quiet


def test_the_page_asks_for_nothing_but_itself_and_complains_of_nothing(truth: Chrome, pages: Path) -> None:
    ask(truth, "document.getElementById('gallery').scrollIntoView()")
    ask(truth, "location.hash = '#slice-3'")
    wait(truth, lambda: ask(truth, "viewer.open"))
    events = [json.loads(entry["message"])["message"] for entry in truth.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith("data:")} <= {(pages / "truth.html").as_uri()}
    assert [entry for entry in truth.get_log("browser") if "favicon" not in entry["message"]] == []


def test_nothing_may_be_fetched_even_if_somebody_tried(truth: Chrome) -> None:
    truth.execute_script(
        "const image = new Image(); image.onerror = () => { window.failed = true };"
        "image.src = 'https://example.invalid/x.png'"
    )
    wait(truth, lambda: ask(truth, "window.failed"))
    assert any("Content Security Policy" in entry["message"] for entry in truth.get_log("browser"))


# The gallery


def test_only_the_cards_in_view_are_drawn(truth: Chrome) -> None:
    ask(truth, "document.getElementById('gallery').scrollIntoView()")
    drawn = wait(truth, lambda: (n := ask(truth, "document.querySelectorAll('.card').length")) > 10 and n)
    assert drawn < 120
    ask(truth, "window.scrollTo(0, document.body.scrollHeight)")
    wait(truth, lambda: ask(truth, f"!!document.querySelector('[aria-posinset=\"{SLICES + 3}\"]')"))
    assert ask(truth, "document.querySelectorAll('.card').length") < 120
    posed = ask(truth, "[...document.querySelectorAll('.card')].map((card) => Number(card.ariaPosInSet))")
    assert posed == sorted(posed)


def test_slices_are_filtered_by_kind_and_counted(truth: Chrome) -> None:
    assert count(truth) == "603 of 603 slices"
    for kind, expected in (("found", 200), ("missed", 100), ("alarm", 0), ("tumour", 300), ("lost", 3)):
        if truth.find_elements(By.CSS_SELECTOR, f"input[value={kind}]"):
            choose(truth, kind)
            assert count(truth) == f"{expected} of 603 slices"
    choose(truth, "gated")
    assert count(truth) == "400 of 603 slices"


def test_slices_are_filtered_by_probability_size_volume_and_name(truth: Chrome) -> None:
    field = {name: truth.find_element(By.NAME, name) for name in ("low", "high", "pixels", "volume", "text")}
    field["low"].send_keys("0.2")
    field["high"].send_keys("0.5")
    assert count(truth) == "200 of 603 slices"
    truth.find_element(By.CSS_SELECTOR, "#filters button[type=reset]").click()
    wait(truth, lambda: count(truth) == "603 of 603 slices")
    field["pixels"].send_keys("400")
    assert count(truth) == "200 of 603 slices"
    field["volume"].find_elements(By.TAG_NAME, "option")[1].click()
    assert count(truth) == "67 of 603 slices"
    field["text"].send_keys("S_12.")
    assert count(truth) == "1 of 603 slices"
    field["text"].send_keys("nothing")
    assert truth.find_element(By.ID, "none").is_displayed()


def test_slices_are_sorted_and_those_without_a_value_stand_last(truth: Chrome) -> None:
    def first_and_last(sort: str) -> tuple[str, str]:
        truth.find_element(By.CSS_SELECTOR, f"option[value='{sort}']").click()
        ask(truth, "document.querySelector('.card a').focus({ preventScroll: true })")
        first = truth.find_element(By.CSS_SELECTOR, ".card .facts").text
        press(truth, Keys.END)
        last: str = ask(truth, "document.activeElement.querySelector('.facts').textContent")
        press(truth, Keys.HOME)
        return first, last

    lost = "quarantined: truncated"
    assert first_and_last("probability-") == ("p 0.97 · Dice 0.90 · 400 px", lost)
    assert first_and_last("probability+") == ("p 0.02", lost)
    assert first_and_last("dice+") == ("p 0.30", lost)
    assert first_and_last("pixels-") == ("p 0.97 · Dice 0.90 · 400 px", lost)
    assert first_and_last("gate+") == ("p 0.30", lost)


def test_cards_are_walked_by_arrows_and_opened_by_enter(truth: Chrome) -> None:
    truth.find_element(By.CSS_SELECTOR, "option[value=run]").click()
    reached = ask(truth, "[...document.querySelectorAll('.card a')].filter((a) => a.tabIndex === 0).length")
    assert reached == 1
    ask(truth, "document.querySelector('.card a').focus()")
    press(truth, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert focused(truth) == "#slice-2"
    press(truth, Keys.ARROW_DOWN)
    assert focused(truth) == f"#slice-{2 + columns(truth)}"
    press(truth, Keys.END)
    assert focused(truth) == "#slice-602"
    top, bottom = (
        ask(truth, f"document.activeElement.getBoundingClientRect().{end}") for end in ("top", "bottom")
    )
    assert 0 <= top < bottom <= DESKTOP[1]
    press(truth, Keys.HOME, Keys.ENTER)
    wait(truth, lambda: ask(truth, "viewer.open"))
    assert shown_slice(truth) == "s_0.tif"
    press(truth, Keys.ESCAPE)
    wait(truth, lambda: not ask(truth, "viewer.open"))
    assert focused(truth) == "#slice-0"
    assert ask(truth, "location.hash") == ""


def test_outlines_are_told_by_dash_as_well_as_by_colour_and_can_be_hidden(truth: Chrome) -> None:
    ask(truth, "document.getElementById('gallery').scrollIntoView()")
    wait(truth, lambda: ask(truth, "document.querySelectorAll('.card .line.true').length"))
    dash = "getComputedStyle(document.querySelector('.card .line.{}')).strokeDasharray"
    assert ask(truth, dash.format("found")) == "none"
    assert ask(truth, dash.format("true")) != "none"
    truth.find_element(By.CSS_SELECTOR, "[data-hides=true]").click()
    assert not truth.find_element(By.CSS_SELECTOR, ".card .line.true").is_displayed()
    assert truth.find_element(By.CSS_SELECTOR, ".card .line.found").is_displayed()


# One volume


def test_a_link_to_a_slice_opens_it_in_its_volume(chrome: Chrome, pages: Path) -> None:
    chrome.get("about:blank")
    chrome.get(f"{(pages / 'plain.html').as_uri()}#slice-7")
    wait(chrome, lambda: ask(chrome, "viewer.open"))
    assert shown_slice(chrome) == "s_7.tif"
    assert chrome.find_element(By.ID, "viewer-place").text == "8 of 200"
    assert ask(chrome, "document.activeElement.id") == "slider"


def test_a_volume_is_leafed_through_by_arrows_and_slider(truth: Chrome) -> None:
    ask(truth, "location.hash = '#slice-0'")
    wait(truth, lambda: ask(truth, "viewer.open"))
    press(truth, Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert (shown_slice(truth), ask(truth, "slider.value")) == ("s_1.tif", "1")
    press(truth, Keys.END)
    assert shown_slice(truth) == "s_199.tif"
    press(truth, Keys.ARROW_RIGHT)
    assert shown_slice(truth) == "s_199.tif"
    press(truth, Keys.HOME)
    assert shown_slice(truth) == "s_0.tif"
    truth.execute_script("slider.value = 33; slider.dispatchEvent(new Event('input'))")
    assert shown_slice(truth) == "s_33.tif"
    assert truth.find_element(By.ID, "slider").get_attribute("aria-valuetext") == "34 of 200, s_33.tif"
    assert ask(truth, "location.hash") == "#slice-33"


def test_the_article_s_five_pictures_stand_beside_a_slice_with_truth(truth: Chrome) -> None:
    ask(truth, "location.hash = '#slice-0'")
    wait(truth, lambda: ask(truth, "viewer.open"))
    said = [caption.text for caption in truth.find_elements(By.CSS_SELECTOR, "#comparison figcaption")]
    assert said == ["MRI", "True mask", "Predicted mask", "MRI with true mask", "MRI with predicted mask"]
    assert len(truth.find_elements(By.CSS_SELECTOR, "#comparison .filled")) == 2
    assert len(truth.find_elements(By.CSS_SELECTOR, "#comparison image")) == 3
    facts = truth.find_element(By.ID, "facts").text
    assert "Dice" in facts
    assert "0.970, passes the gate" in facts
    press(truth, "o")
    assert not truth.find_element(By.CSS_SELECTOR, "#stage .line").is_displayed()


def test_a_quarantined_slice_has_a_placeholder(truth: Chrome) -> None:
    ask(truth, f"location.hash = '#slice-{SLICES}'")
    wait(truth, lambda: ask(truth, "viewer.open"))
    assert truth.find_element(By.CSS_SELECTOR, "#stage text").text.startswith("no picture")
    assert "quarantined: truncated" in truth.find_element(By.ID, "facts").text


def test_a_hash_that_names_no_slice_opens_nothing(truth: Chrome) -> None:
    ask(truth, "location.hash = '#slice-99999'")
    press(truth, Keys.TAB)
    assert not ask(truth, "viewer.open")


# Tables, accessibility, screens


def test_volumes_are_sorted_by_any_column(truth: Chrome) -> None:
    def column(n: int) -> list[str]:
        rows = "[...document.querySelectorAll('#volume-table tbody tr')]"
        found: list[str] = ask(truth, f"{rows}.map((row) => row.cells[{n}].textContent)")
        return found

    heads = truth.find_elements(By.CSS_SELECTOR, "#volume-table th button")
    assert [head.text for head in heads[:3]] == ["Volume", "Slices", "With a mask"]
    heads[1].click()
    assert column(1) == ["203", "200", "200"]
    heads[1].click()
    assert column(1) == ["200", "200", "203"]
    sort = "document.querySelectorAll('#volume-table [aria-sort]')"
    assert ask(truth, f"{sort}.length") == 1
    assert ask(truth, f"{sort}[0].ariaSort") == "ascending"


def test_everything_that_is_operated_has_a_name(truth: Chrome) -> None:
    ask(truth, "location.hash = '#slice-0'")
    wait(truth, lambda: ask(truth, "viewer.open"))
    nodes = truth.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = (
        "button",
        "slider",
        "link",
        "textbox",
        "searchbox",
        "combobox",
        "checkbox",
        "radio",
        "dialog",
        "spinbutton",
    )
    nameless = [
        node
        for node in nodes
        if node.get("role", {}).get("value") in roles and not node.get("name", {}).get("value")
    ]
    assert nameless == []


@pytest.mark.parametrize("name", ["plain.html", "truth.html"])
def test_a_phone_s_screen_is_wide_enough(chrome: Chrome, pages: Path, name: str) -> None:
    emulate(chrome, PHONE)
    chrome.get((pages / name).as_uri())
    assert ask(chrome, "document.documentElement.scrollWidth") == PHONE[0]
    ask(chrome, "document.getElementById('gallery').scrollIntoView()")
    wait(chrome, lambda: ask(chrome, "document.querySelectorAll('.card').length > 3"))
    assert columns(chrome) == 2
    ask(chrome, "location.hash = '#slice-0'")
    wait(chrome, lambda: ask(chrome, "viewer.open"))
    assert ask(chrome, "viewer.scrollWidth <= viewer.clientWidth")
    slider = ask(chrome, "slider.getBoundingClientRect().bottom")
    assert slider < PHONE[1], "the slider is reached without scrolling"


def test_the_page_is_dark_where_the_reader_s_system_is(truth: Chrome) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = ask(truth, ground)
    emulate(truth, DESKTOP, dark=True)
    dark = ask(truth, ground)
    assert (light, dark) == ("rgb(246, 247, 249)", "rgb(13, 16, 20)")


def test_without_programs_all_but_gallery_and_viewer_is_there(tmp_path: Path, pages: Path) -> None:
    with browser(tmp_path / "profile", scripts=False) as plain:
        plain.get((pages / "truth.html").as_uri())
        text = plain.find_element(By.TAG_NAME, "body").text
        for said in ("603", "Dice per volume", "missed", "Tumour probabilities", "ends early"):
            assert said in text
        assert "The gallery and the view of volumes need JavaScript" in text
        assert not plain.find_element(By.ID, "filters").is_displayed()
        assert len(plain.find_elements(By.CSS_SELECTOR, ".comparison figure")) >= 2
        assert not plain.find_elements(By.CSS_SELECTOR, ".card")
