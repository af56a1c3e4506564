"""The page's colours: text is read, and what colours tell apart is told apart by every kind of eye."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

STYLE = (Path(__file__).parents[2] / "engine/page/static/page.css").read_text("utf-8")

# Machado, Oliveira and Fernandes 2009, severity 1: how a colour-blind eye sees linear RGB.
EYES = {
    "all colours": np.eye(3),
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "no blue": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def schemes() -> dict[str, Mapping[str, str]]:
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    )
    return {"light": light, "dark": {**light, **dark}}


def linear(colour: str) -> npt.NDArray[np.float64]:
    values = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""
    light, dark = sorted((float(linear(c) @ (0.2126, 0.7152, 0.0722)) for c in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def difference(one: str, other: str, eye: str) -> float:
    """CIE 1976: 2 is just seen side by side."""
    seen = [np.clip(EYES[eye] @ linear(colour), 0, 1) for colour in (one, other)]
    encoded = [np.where(c <= 0.0031308, 12.92 * c, 1.055 * c ** (1 / 2.4) - 0.055) for c in seen]
    lab = [cv2.cvtColor(c.astype(np.float32).reshape(1, 1, 3), cv2.COLOR_RGB2LAB).ravel() for c in encoded]
    return float(np.linalg.norm(lab[0] - lab[1]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize(("one", "other"), [("found", "true"), ("with", "without"), ("good", "bad")])
def test_colours_that_mean_different_things_differ_for_every_eye(
    scheme: str, eye: str, one: str, other: str
) -> None:
    colours = schemes()[scheme]
    assert difference(colours[one], colours[other], eye) > 25


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("text", ["ink", "soft", "link", "accent", "good", "bad"])
@pytest.mark.parametrize("ground", ["ground", "paper"])
def test_text_has_the_contrast_that_reading_needs(scheme: str, text: str, ground: str) -> None:
    colours = schemes()[scheme]
    assert contrast(colours[text], colours[ground]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("mark", ["with", "without", "focus"])
def test_marks_stand_out_from_their_ground(scheme: str, mark: str) -> None:
    colours = schemes()[scheme]
    assert contrast(colours[mark], colours["paper"]) >= 3


def test_errors_and_notes_are_read_on_their_own_ground() -> None:
    for colours in schemes().values():
        assert contrast(colours["bad"], colours["bad-ground"]) >= 4.5
        assert contrast(colours["ink"], colours["bad-ground"]) >= 4.5
