"""A few hundred files of the corpus with every test run; twenty thousand by hand (python -m tests.corpus)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpus.cases import make
from tests.corpus.judge import OURS, documented_codes
from tests.corpus.oddities import HEAVY, ODDITIES
from tests.corpus.pictures import picture
from tests.corpus.run import play
from tests.runs import CHECKOUT, environment

SEED = 1
FILES = 400


def test_every_file_has_its_rows_and_no_fault_is_the_decoders(tmp_path: Path) -> None:
    played = play(tmp_path, range(FILES), SEED, workers=2)
    assert played.verdict.wrong == []
    assert sum(played.verdict.ends.values()) == FILES
    assert played.verdict.ends["ok"] > FILES / 5
    assert len(played.verdict.ends) >= 8


def test_a_file_is_made_of_its_number_and_seed_alone() -> None:
    for number in (3, 40, 200):
        assert make(number, SEED) == make(number, SEED)
    assert make(3, SEED).data != make(3, SEED + 1).data


def test_every_oddity_promises_codes_that_are_documented() -> None:
    import random

    known = documented_codes().keys() | {"ok"}
    assert known > OURS
    for oddity in (*ODDITIES, *HEAVY):
        chance = random.Random(5)
        odd = oddity(picture(SEED, chance), chance)
        assert (odd.may or set()) <= known


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_files_in_one_run(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tests.corpus", "--files", "20000", "--seed", "2026", "--folder", tmp_path]
    done = subprocess.run(line, cwd=CHECKOUT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
