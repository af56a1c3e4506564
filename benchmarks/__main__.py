"""All benchmarks, one behind the other, then tables, pictures and the README's section.

    python -m benchmarks --data SLICES [--minutes M] [--python-torch PATH ...]

Further options go to benchmarks.peers. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Final

from benchmarks import results
from benchmarks.arguments import absolute, say
from benchmarks.machine import CHECKOUT

SHARES: Final = {"throughput": 0.22, "peers": 0.45, "host": 0.08, "scaling": 0.25}
"""Of the minutes. Peers load and compile for much of theirs."""
MINUTES: Final = 100.0


def main() -> None:
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=first)
    for name in ("--data", "--bundle", "--scratch"):
        parser.add_argument(name, type=absolute)
    parser.add_argument("--results", type=absolute, default=results.FOLDER)
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"of all together (else {MINUTES:g})")
    parser.add_argument("--quick", action="store_true", help="a dry run of each; measures nothing")
    parser.add_argument("--skip", action="append", default=[], choices=SHARES)
    parsed, for_peers = parser.parse_known_args()
    shared = ["--results", str(parsed.results)] + (["--quick"] if parsed.quick else [])
    for name in ("data", "bundle", "scratch"):
        if value := getattr(parsed, name):
            shared += [f"--{name}", str(value)]
    failed = []
    for name, share in SHARES.items():
        if name not in parsed.skip:
            minutes = ["--minutes", f"{parsed.minutes * share:.1f}"]
            say(f"benchmarks.{name}, " + ("a dry run" if parsed.quick else f"about {minutes[1]} minutes"))
            further = for_peers if name == "peers" else []
            words = [sys.executable, "-m", f"benchmarks.{name}", *shared, *minutes, *further]
            failed += [name] if subprocess.run(words, cwd=CHECKOUT, check=False).returncode else []
    report = [sys.executable, "-m", "benchmarks.report", "--results", str(parsed.results)]
    subprocess.run(report, cwd=CHECKOUT, check=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
