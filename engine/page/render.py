"""The page's HTML: templates, style and program in one file that fetches nothing and runs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import engine
from engine.page.cards import Card
from engine.page.charts import Chart
from engine.page.names import Names
from engine.page.results import Run
from engine.page.tally import Tally

_SCRIPTS: Final = ("data.js", "drawing.js", "viewer.js", "gallery.js", "volumes.js")
_PICTURES_A_BLOCK: Final = 64
_SIZE: Final = "@size-of-this-page@"
VOLUMES_LISTED: Final = 1_000


@dataclass(frozen=True, slots=True)
class Page:
    """All that the page shows. `title` names the run; `sampled` says how slices were drawn ("" for all)."""

    title: str
    run: Run | None
    notes: Sequence[str]
    tally: Tally
    probabilities: Chart
    sizes: Chart | None
    names: Names
    millilitres: Mapping[str, float]
    cards: Sequence[Card]
    compared: Sequence[Card]
    sampled: str
    anonymous: bool
    codes: Sequence[tuple[str, str, int, Sequence[tuple[str, str]]]]


def render(page: Page) -> bytes:
    """The page as UTF-8; equal contents give equal bytes."""
    environment = Environment(
        loader=PackageLoader("engine.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"count": _count, "share": _share, "figure": _figure, "percent": _percent}
    style = _inlined("page.css")
    script = f'"use strict";\n{{\n{"".join(_inlined(name) for name in _SCRIPTS)}}}\n'
    place = {card.i: n for n, card in enumerate(page.cards)}
    text = environment.get_template("page.html.j2").render(
        page=page,
        version=engine.__version__,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        data=_data(page),
        blocks=[Markup("\n".join(block)) for block in _blocks(page.cards)],
        place=place,
        size=_SIZE,
        volumes=sorted(page.tally.volumes, key=lambda volume: -volume.pixels)[:VOLUMES_LISTED],
    )
    return text.replace(_SIZE, f"{len(text.encode()) / 1e6:.1f} MB").encode()


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy under which only these two run, and nothing is fetched."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _inlined(name: str) -> str:
    return files("engine.page").joinpath("static", name).read_text("utf-8")


def _data(page: Page) -> dict[str, object]:
    """What the page's program knows, in columns: one list a property, one item a slice."""
    cards, gate = page.cards, page.run.operating_point if page.run else None
    volumes = list(dict.fromkeys(card.slice.volume for card in cards))
    number = {volume: n for n, volume in enumerate(volumes)}
    of_volume = {volume.name: volume.slices for volume in page.tally.volumes}
    columns: dict[str, list[object]] = {
        "volume": [number[card.slice.volume] for card in cards],
        "name": [page.names.slices[card.i] for card in cards],
        "path": [page.names.paths[card.i] for card in cards],
        "probability": [_rounded(card.slice.probability) for card in cards],
        "found": [int(card.slice.has_mask) for card in cards],
        "pixels": [card.slice.pixels for card in cards],
        "fraction": [_rounded(card.slice.fraction) for card in cards],
        "width": [card.width for card in cards],
        "height": [card.height for card in cards],
        "problem": [card.problem for card in cards],
        "predicted": [card.found for card in cards],
        "true": [card.true for card in cards],
        "tumour": [None if card.judged is None else int(card.judged.tumour) for card in cards],
        "dice": [None if card.judged is None else _rounded(card.judged.dice) for card in cards],
    }
    return {
        "block": _PICTURES_A_BLOCK,
        "gate": gate.gate_threshold if gate and gate.gate else None,
        "truth": page.tally.against is not None,
        "volumes": [page.names.volumes[volume] for volume in volumes],
        "sizes": [of_volume[volume] for volume in volumes],
        "columns": columns,
    }


def _blocks(cards: Sequence[Card]) -> list[list[str]]:
    """Pictures in blocks, so that the page's program takes apart only those that it shows."""
    pictures = [card.picture for card in cards]
    return [pictures[n : n + _PICTURES_A_BLOCK] for n in range(0, len(pictures), _PICTURES_A_BLOCK)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _count(value: int) -> str:
    return f"{value:,}"


def _share(value: int, whole: int) -> str:
    return f"{value / whole:.1%}" if whole else ""


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
