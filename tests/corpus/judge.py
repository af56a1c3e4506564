"""What may become of a file, and what may not: one row, a documented stage and code, and no fault of ours."""

from __future__ import annotations

import csv
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.corpus.cases import Case

OURS = frozenset({"decoder_error", "worker_crashed", "worker_killed", "memory", "timeout"})
"""Codes that are documented, and that no file of a corpus may have: the decoder's fault, not the file's."""
_DOCS = Path(__file__).parents[2] / "docs" / "errors.md"
_ROW = re.compile(r"^\| `(\w+)` \|([^|]*)\|", re.MULTILINE)


@dataclass(slots=True)
class Verdict:
    """What is wrong (one line each), and how many files came to which end ("ok", a code, "pages")."""

    wrong: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)


def judge(cases: Sequence[Case], data: str, out: Path, reference: Path | None = None) -> Verdict:
    """Compare a run's tables with what the files were; `data` is the corpus's folder as the run was told it.

    `reference`: the output of a run on the originals alone, of the same folder name.
    """
    verdict = Verdict()
    documented = documented_codes()
    rows, errors = _rows_by_file(out / "results.csv"), _rows_by_file(out / "errors.csv")
    expected = {f"{data}/{case.path}" for case in cases}
    for path in sorted(expected - rows.keys()):
        verdict.wrong.append(f"{path} has no row")
    for path in sorted((rows.keys() | errors.keys()) - expected):
        verdict.wrong.append(f"{path} has a row and is no file")
    for case in cases:
        path = f"{data}/{case.path}"
        ends = _ends(rows.get(path, []), errors.get(path, []), documented, verdict, f"{path} ({case.made})")
        verdict.ends[ends.pop() if len(ends) == 1 else "several"] += 1
    _judge_by_kind(cases, data, rows, errors, verdict)
    if reference is not None:
        alone = _rows_by_file(reference / "results.csv")
        for case in cases:
            path = f"{data}/{case.path}"
            if case.original and rows.get(path) != alone.get(path):
                verdict.wrong.append(f"{path} ({case.made}) has another row beside bad files")
    return verdict


def differences(one: Path, other: Path) -> list[str]:
    """Where two runs on the same files came to other tables, a line each, the first ten."""
    wrong = []
    for name in ("results.csv", "errors.csv"):
        lines = [(out / name).read_text().splitlines() for out in (one, other)]
        wrong += [f"another row in another run: {row}" for row in sorted(set(lines[0]) ^ set(lines[1]))]
    return wrong[:10]


@functools.cache
def documented_codes() -> dict[str, frozenset[str]]:
    """The stages of each code of docs/errors.md."""
    section = _DOCS.read_text().split("\n## Codes\n")[1].split("\n## ")[0]
    return {code: frozenset(re.findall(r"`(\w+)`", stages)) for code, stages in _ROW.findall(section)}


def _ends(
    rows: list[dict[str, str]],
    errors: list[dict[str, str]],
    documented: dict[str, frozenset[str]],
    verdict: Verdict,
    which: str,
) -> set[str]:
    """Hold one file's rows against each other; how its slices ended."""
    slices = [row["slice"] for row in rows]
    if len(set(slices)) != len(slices):
        verdict.wrong.append(f"{which} has a slice twice")
    quarantined = sorted(row["slice"] for row in rows if row["status"] == "quarantined")
    if quarantined != sorted(error["slice"] for error in errors):
        verdict.wrong.append(f"{which}: its rows and its errors are not of the same slices")
    for error in errors:
        if error["stage"] not in documented.get(error["code"], frozenset()):
            verdict.wrong.append(f"{which}: {error['stage']}/{error['code']} is not documented")
        if not error["message"] or "\n" in error["message"]:
            verdict.wrong.append(f"{which}: its message is no line")
        if error["code"] in OURS:
            verdict.wrong.append(f"{which}: {error['code']}: {error['message']}")
    for row in rows:
        if row["status"] == "ok" and not 0 <= float(row["tumor_probability"]) <= 1:
            verdict.wrong.append(f"{which}: a probability of {row['tumor_probability']}")
    return {row["status"] for row in rows if row["status"] == "ok"} | {error["code"] for error in errors}


def _judge_by_kind(
    cases: Iterable[Case],
    data: str,
    rows: dict[str, list[dict[str, str]]],
    errors: dict[str, list[dict[str, str]]],
    verdict: Verdict,
) -> None:
    """Files that were made to end in a certain way did."""
    for case in cases:
        path = f"{data}/{case.path}"
        found = {error["code"] for error in errors.get(path, [])}
        found |= {"ok"} if any(row["status"] == "ok" for row in rows.get(path, [])) else set()
        if case.may is not None and not found <= case.may:
            told = "; ".join(error["message"] for error in errors.get(path, []))
            verdict.wrong.append(
                f"{path} ({case.made}) ended with {sorted(found)}, not {sorted(case.may)}: {told}"
            )


def _rows_by_file(path: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["image_path"]].append(row)
    return found
