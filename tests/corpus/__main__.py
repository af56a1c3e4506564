"""Make a corpus, score it and judge it: python -m tests.corpus --files 20000 --seed 2026."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.corpus.run import Played, play


def main() -> int:
    """Run what was asked for, print what became of the files, and return 1 where anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("--files", type=int, default=400, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="decides every file")
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="only these of the files")
    parser.add_argument("--workers", type=int, default=2, help="decode processes")
    parser.add_argument("--json", type=Path, help="write what came of it there")
    parser.add_argument("--folder", type=Path, help="where the corpus and its runs lie")
    asked = parser.parse_args()
    folder = Path(asked.folder or tempfile.mkdtemp(prefix="tumorscan-corpus-")).absolute()
    print(f"{asked.files} files of seed {asked.seed} in {folder}", flush=True)
    begun = time.monotonic()
    played = play(folder, asked.only or range(asked.files), asked.seed, workers=asked.workers)
    _print(played)
    if asked.json:
        told = played.as_json() | {"seed": asked.seed, "total_seconds": round(time.monotonic() - begun)}
        asked.json.write_text(json.dumps(told, indent=1) + "\n")
    return int(bool(played.verdict.wrong))


def _print(played: Played) -> None:
    for line in played.verdict.wrong:
        print(line)
    for end, count in played.verdict.ends.most_common():
        print(f"{end:<16}{count:>7}")
    print(
        f"{played.files} files in {played.seconds:.0f} s, exit status {played.status}; "
        f"all processes together at most {played.peak_mib:.0f} MiB, any one {played.largest_mib:.0f} MiB; "
        f"{len(played.verdict.wrong)} wrong"
    )


if __name__ == "__main__":
    sys.exit(main())
