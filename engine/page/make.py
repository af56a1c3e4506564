"""One page made of one run: what `tumorscan report` stands on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.disk import cannot_write
from engine.errors import UsageError
from engine.outputs.atomic import replacing
from engine.page import charts
from engine.page.cards import Card, compared, make_cards
from engine.page.names import Names, numbers, plain_names
from engine.page.render import Page, render
from engine.page.results import Results, Run, Slice, read_results
from engine.page.sample import choose
from engine.page.tally import Tally, tally
from engine.page.truth import Judged, judge
from engine.text import shown

LIMIT = 4_000
"""Slices on a page: some 15 MB, which a browser opens in a second or two."""

Watch = Callable[[str, int], Callable[[], None]]
"""Hears what begins and of how many steps it is; what it returns hears of each step."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to report; the command's options of the same names explain each. `out` None is in the results."""

    results: Path
    truth: Path | None = None
    out: Path | None = None
    root: Path = Path()
    limit: int = LIMIT
    seed: int = 0
    anonymise: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """The page that was written: `size` in bytes, `shown_slices` of `slices`; `notes` are what it says."""

    path: Path
    size: int
    shown_slices: int
    slices: int
    notes: Sequence[str]


def make_page(options: Options, watch: Watch) -> Made:
    """Write the page, whole or not at all. Raises UsageError and MachineError."""
    target = options.out or options.results / "index.html"
    _refuse_target(options, target)
    results = read_results(options.results)
    page = _page(options, results, watch)
    written = render(page)
    try:
        with replacing(target) as file:
            file.write(written)
    except OSError as error:
        raise cannot_write(target, error) from error
    notes = [*page.notes, *([page.sampled] if page.sampled else [])]
    return Made(target, len(written), len(page.cards), len(results.slices), notes)


def _refuse_target(options: Options, target: Path) -> None:
    if target.is_dir():
        raise UsageError(f"--out {shown(target)} is a folder: give the page a file name")
    if not options.root.is_dir():
        raise UsageError(f"--root {shown(options.root)}: no such folder")


def _page(options: Options, results: Results, watch: Watch) -> Page:
    slices = results.slices
    notes = [*_of_shard(results.run), *results.notes]
    judged: Sequence[Judged | None] = [None] * len(slices)
    if options.truth is not None:
        truth = judge(results, options.truth, watch("comparing with the truth", len(slices)))
        judged = truth.judged
        notes += [] if options.anonymise else truth.notes
    sample = choose(slices, judged, options.limit, options.seed)
    advance = watch("reading slices", len(sample.chosen))
    cards = make_cards(results.folder, options.root, slices, judged, sample.chosen, advance)
    notes += _missing(cards, anonymous=options.anonymise)
    operating = results.run.operating_point if results.run else None
    gate = operating.gate_threshold if operating and operating.gate else None
    figures = tally(slices, judged, gate)
    names = numbers(slices) if options.anonymise else plain_names(slices)
    return Page(
        title="A run" if options.anonymise else shown(results.folder.absolute().name),
        run=results.run,
        notes=notes,
        tally=figures,
        probabilities=_probabilities(slices, judged, figures, gate),
        sizes=charts.sizes([each.pixels for each in slices if each.pixels]),
        names=names,
        millilitres=results.millilitres,
        cards=cards,
        compared=compared(cards),
        sampled=sample.said,
        anonymous=options.anonymise,
        codes=_codes(figures, slices, names, anonymous=options.anonymise),
    )


def _of_shard(run: Run | None) -> list[str]:
    if run is None or run.shard is None:
        return []
    return [
        f"This is shard {run.shard}: a part of the input only, and so are all figures. `tumorscan merge` "
        "puts the shards together."
    ]


def _missing(cards: Sequence[Card], *, anonymous: bool) -> list[str]:
    """A note on pictures that are not to be had, though their slices were scored."""
    lost = [card for card in cards if card.problem and not card.slice.quarantined]
    unkept = sum(card.slice.has_mask and not card.found for card in cards)
    notes = []
    if lost:
        first = "" if anonymous else f" of {lost[0].slice.image_path}"
        notes.append(
            f"{len(lost):,} of {len(cards):,} pictures cannot be shown; the first{first}: "
            f"{lost[0].problem}. Paths are taken from where `tumorscan report` runs: run it where "
            "`tumorscan score` ran, or give --root."
        )
    if unkept:
        notes.append(f"{unkept:,} masks were not kept or are gone: their outlines are missing.")
    return notes


def _probabilities(
    slices: Sequence[Slice], judged: Sequence[Judged | None], figures: Tally, gate: float | None
) -> charts.Chart:
    """Upwards slices with a tumour where that is known of any, else those with a mask."""
    scored = [
        (each.probability, truth.tumour if truth else False if figures.against else each.has_mask)
        for each, truth in zip(slices, judged, strict=True)
        if each.probability is not None and (truth is not None or figures.against is None)
    ]
    return charts.probabilities(
        [value for value, marked in scored if marked], [value for value, marked in scored if not marked], gate
    )


def _codes(
    figures: Tally, slices: Sequence[Slice], names: Names, *, anonymous: bool
) -> list[tuple[str, str, int, list[tuple[str, str]]]]:
    """Stage, code, count, and path and message of some; messages can name files."""
    return [
        (
            code.stage,
            code.code,
            code.count,
            [
                (f"{names.volumes[slices[i].volume]}, {names.slices[i]}", "")
                if anonymous
                else (names.paths[i], slices[i].message)
                for i in code.first
            ],
        )
        for code in figures.codes
    ]
