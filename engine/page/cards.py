"""A slice as the page shows it: its picture, and the outlines of both masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from engine.errors import SliceError
from engine.page.outline import outline
from engine.page.pixels import as_webp, at_picture_size, path_of, read_mask, read_pixels
from engine.page.results import Slice
from engine.page.threads import in_threads
from engine.page.truth import Judged
from engine.sources.geometry import SIDE
from engine.trial import read_true_pixels

COMPARED: Final = 6
"""Slices in the comparison."""


@dataclass(frozen=True, slots=True)
class Card:
    """Slice `i` of the run. `picture` is the base64 of a WebP of `width` x `height`, "" where there is none.

    Then `problem` says why. `found` and `true` are SVG paths in the picture's pixels, "" for empty masks.
    """

    i: int
    slice: Slice
    judged: Judged | None
    width: int
    height: int
    picture: str
    problem: str
    found: str
    true: str


def make_cards(
    results: Path,
    root: Path,
    slices: Sequence[Slice],
    judged: Sequence[Judged | None],
    chosen: Sequence[int],
    advance: Callable[[], None],
) -> list[Card]:
    """Read the `chosen` slices below `root`, and their masks; `advance` hears of each."""
    made = in_threads(partial(_card, results, root), [(i, slices[i], judged[i]) for i in chosen])
    cards = []
    for card in made:
        cards.append(card)
        advance()
    return cards


def compared(cards: Sequence[Card]) -> list[Card]:
    """Some cards that say most, the best mask first.

    With truth: the largest tumour that was missed, the largest mask where there is none, and for the rest
    masks from the best Dice to the worst, evenly spread. Without: the largest mask of each volume.
    """
    if not any(card.judged for card in cards):
        largest: dict[str, Card] = {}
        for card in sorted(cards, key=lambda card: -card.slice.pixels):
            if card.found:
                largest.setdefault(card.slice.volume, card)
        return list(largest.values())[:COMPARED]
    missed = [card for card in cards if card.judged and card.judged.missed and card.true]
    alarms = [card for card in cards if card.judged and card.judged.false_alarm and card.found]
    worst = [max(missed, key=_true_pixels)] if missed else []
    worst += [max(alarms, key=lambda card: card.slice.pixels)] if alarms else []
    hits = [card for card in cards if card.judged and card.judged.tumour and card.found]
    hits.sort(key=lambda card: -(card.judged.dice or 0.0) if card.judged else 0.0)
    places = np.linspace(0, len(hits) - 1, min(COMPARED - len(worst), len(hits))).round().astype(np.int64)
    return [*(hits[place] for place in places), *worst]


def _card(results: Path, root: Path, item: tuple[int, Slice, Judged | None]) -> Card:
    i, each, judged = item
    found = read_mask(results, each) if each.has_mask else None
    masks = [None if mask is None else at_picture_size(mask) for mask in (found, _true(judged))]
    height, width = next((mask.shape for mask in masks if mask is not None), (SIDE, SIDE))
    picture = problem = ""
    if each.quarantined:
        problem = f"quarantined: {each.code}"
    else:
        try:
            pixels = read_pixels(path_of(each.image_path, root), each.index)
            height, width = pixels.shape[:2]
            picture = as_webp(pixels)
        except SliceError as error:
            problem = error.failure.message
    lines = [outline(mask) if mask is not None and mask.shape == (height, width) else "" for mask in masks]
    return Card(i, each, judged, width, height, picture, problem, *lines)


def _true(judged: Judged | None) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]] | None:
    if judged is None or not judged.tumour:
        return None
    try:
        return read_true_pixels(judged.path)
    except SliceError:  # gone since it was judged
        return None


def _true_pixels(card: Card) -> int:
    return card.judged.overlap[2] if card.judged and card.judged.overlap else 0
