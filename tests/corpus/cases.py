"""Which file is made of what: by its number and the seed alone, so that any one can be made again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tests.corpus.mutations import format_of, mutated
from tests.corpus.oddities import HEAVY, ODDITIES
from tests.corpus.originals import ORIGINALS
from tests.corpus.pictures import picture

ORIGINAL_SHARE, ODD_SHARE, HEAVY_SHARE = 0.15, 0.25, 0.003
WRONG_ENDING_SHARE = 0.25
A_FOLDER = 250
_ENDINGS = {"tiff": ".tif", "png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_ALL_ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp", ".TIF", ".PNG")


@dataclass(frozen=True, slots=True)
class Case:
    """One file: its path below the corpus, its bytes, how it was made, and the codes it may end with.

    `original`: it is sound, and its row must be that of a run without any bad file.
    """

    number: int
    path: str
    data: bytes
    made: str
    may: frozenset[str] | None
    original: bool = False


def make(number: int, seed: int) -> Case:
    """The `number`th file of the corpus of `seed`."""
    chance = random.Random(f"{seed}/{number}")
    drawn = chance.random()
    shown = picture(seed, chance)
    may: frozenset[str] | None
    if drawn < ODD_SHARE:
        oddity = chance.choice(HEAVY if drawn < HEAVY_SHARE else ODDITIES)
        odd = oddity(shown, chance)
        data, made, may = odd.data, oddity.__name__, odd.may
    else:
        encoder = chance.choice(ORIGINALS)
        data, made, may = encoder(shown, chance), encoder.__name__, frozenset({"ok"})
        if drawn < 1 - ORIGINAL_SHARE:
            data, names = mutated(data, chance)
            made, may = f"{made}: {', '.join(names)}", None
    ending = _ENDINGS.get(format_of(data), chance.choice(_ALL_ENDINGS))
    if chance.random() < WRONG_ENDING_SHARE:
        ending = chance.choice(_ALL_ENDINGS)
    path = f"f{number // A_FOLDER:03d}/{number:06d}{ending}"
    return Case(number, path, data, made, may, original=drawn >= 1 - ORIGINAL_SHARE)


def write_corpus(folder: Path, numbers: range | list[int], seed: int) -> list[Case]:
    """Write the files below `folder`; the cases come back without their bytes."""
    cases = []
    for number in numbers:
        case = make(number, seed)
        path = folder / case.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case.data)
        cases.append(Case(case.number, case.path, b"", case.made, case.may, case.original))
    return cases
