"""Masks as SVG paths that follow the edges of their pixels, so that a filled path is the mask again."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Point = tuple[int, int]
Heading = Literal["e", "w", "s", "n"]

_EAST: Final[Heading] = "e"
_RIGHT: Final[dict[Heading, Heading]] = {"e": "s", "s": "w", "w": "n", "n": "e"}
_LEFT: Final[dict[Heading, Heading]] = {right: heading for heading, right in _RIGHT.items()}


def outline(mask: npt.NDArray[np.bool_]) -> str:
    """The path around `mask` [h,w], in pixels from its upper left corner; "" for an empty one.

    Closed loops, clockwise around tumour and anticlockwise around holes, so that any fill rule gives the mask
    again. Pixels that touch at a corner only are kept apart.
    """
    runs = _runs(mask)
    loops = []
    while runs["e"]:
        start = next(iter(runs["e"]))
        loops.append(_loop(runs, start))
    return "".join(loops)


def _loop(runs: dict[Heading, dict[Point, Point]], start: Point) -> str:
    """Follow runs, each of which ends where one begins, back to `start`; they are taken out of `runs`."""
    x, y = start
    heading: Heading | None = _EAST
    path = [f"M{x} {y}"]
    while heading:
        to_x, to_y = runs[heading].pop((x, y))
        path.append(f"h{to_x - x}" if heading in "ew" else f"v{to_y - y}")
        x, y = to_x, to_y
        heading = _turn(runs, (x, y), heading, start)
    return "".join([*path[:-1], "z"])  # the last run is what z draws


def _turn(
    runs: dict[Heading, dict[Point, Point]], at: Point, heading: Heading, start: Point
) -> Heading | None:
    """Where a loop goes on, rather to the right; None where that is the run it began with."""
    right, left = _RIGHT[heading], _LEFT[heading]
    turn = right if at in runs[right] or (right == _EAST and at == start) else left
    return None if turn == _EAST and at == start else turn


def _runs(mask: npt.NDArray[np.bool_]) -> dict[Heading, dict[Point, Point]]:
    """Straight edges with tumour on their right, by heading: where each begins, and where it ends."""
    framed = np.pad(mask, 1)
    below, above = framed[1:, :], framed[:-1, :]
    after, before = framed[:, 1:], framed[:, :-1]
    found: dict[Heading, dict[Point, Point]] = {"e": {}, "w": {}, "s": {}, "n": {}}
    for y, x, end in _straight(below & ~above):
        found["e"][x, y] = end, y
    for y, x, end in _straight(above & ~below):
        found["w"][end, y] = x, y
    for x, y, end in _straight((before & ~after).T):
        found["s"][x, y] = x, end
    for x, y, end in _straight((after & ~before).T):
        found["n"][x, end] = x, y
    return found


def _straight(edges: npt.NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Runs of true along the rows of `edges`, of a framed mask: (row, first, behind the last)."""
    steps = np.diff(edges.astype(np.int8), axis=1)
    rows, begins = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return list(zip(rows.tolist(), begins.tolist(), ends.tolist(), strict=True))
