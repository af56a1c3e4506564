"""Run many cases: python -m tests.faults --cases 500 --seed 1 --json faults.json."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.cases import Case, Report, draw, run_case
from tests.faults.kinds import kinds
from tests.faults.scene import Base


def main() -> int:
    """Run what was asked for, print a line a case and a table, and return 1 where a case failed."""
    names = list(kinds())
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--cases", type=int, default=len(names), help="how many (default: one of each kind)")
    parser.add_argument("--seed", type=int, default=1, help="decides kinds and moments")
    parser.add_argument(
        "--kinds", nargs="+", choices=names, default=names, metavar="KIND", help=f"of {names}"
    )
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="only these of the cases")
    parser.add_argument("--at-once", type=int, default=1, help="cases that run beside each other")
    parser.add_argument("--json", type=Path, help="write every case's report there")
    parser.add_argument("--folder", type=Path, help="where the cases play and failed ones stay")
    asked = parser.parse_args()
    cases = draw(asked.cases, asked.seed, asked.kinds)
    if asked.only:
        cases = [case for case in cases if case.number in asked.only]
    folder = Path(asked.folder or tempfile.mkdtemp(prefix="tumorscan-faults-")).absolute()
    base = Base.make(folder / "base")
    print(
        f"{len(cases)} cases of seed {asked.seed} in {folder}; undisturbed: {base.seconds:.2f} s", flush=True
    )

    def play(case: Case) -> Report:
        report = run_case(case, base, folder / f"case-{case.number}")
        print(f"{case.number:>4} {case.kind:<27}{report.verdict:<8}{report.seconds:6.1f} s  {report.what}")
        print(f"     {report.why}\n" if report.why else "", end="", flush=True)
        return report

    with ThreadPoolExecutor(asked.at_once) as pool:
        reports = list(pool.map(play, cases))
    _print_table(reports)
    if asked.json:
        asked.json.write_text(json.dumps([report.as_json() for report in reports], indent=1) + "\n")
    return int(any(report.verdict == "failed" for report in reports))


def _print_table(reports: list[Report]) -> None:
    by_kind: dict[str, Counter[str]] = {}
    for report in reports:
        counts = by_kind.setdefault(report.case.kind, Counter())
        counts[report.verdict] += 1
        counts["missed"] += report.missed
    print(f"\n{'kind':<28}{'held':>6}{'failed':>8}{'skipped':>9}{'missed':>8}{'s a case':>10}")
    for name, counts in sorted(by_kind.items()):
        spent = [report.seconds for report in reports if report.case.kind == name]
        verdicts = f"{counts['held']:>6}{counts['failed']:>8}{counts['skipped']:>9}{counts['missed']:>8}"
        print(f"{name:<28}{verdicts}{sum(spent) / len(spent):>10.1f}")
    total = sum(by_kind.values(), Counter())
    print(f"{'all':<28}{total['held']:>6}{total['failed']:>8}{total['skipped']:>9}{total['missed']:>8}")


if __name__ == "__main__":
    sys.exit(main())
