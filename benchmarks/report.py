"""From results/*.json: results/RESULTS.md with pictures, and the tables in README.md between its markers.

python -m benchmarks.report
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from benchmarks import results, tables
from benchmarks.arguments import run
from benchmarks.gpu.tables import tables as gpu_tables
from benchmarks.machine import CHECKOUT
from benchmarks.plots import draw
from benchmarks.results import Name, Result
from engine.errors import UsageError

BEGIN: Final = "<!-- benchmarks: made by python -m benchmarks.report -->"
END: Final = "<!-- end of benchmarks -->"
TITLES: Final[dict[Name, str]] = {
    "throughput": "Three rates",
    "peers": "Beside others",
    "host": "Everything but the models",
    "scaling": "From a thousand files to a million",
    "gpu_check": "On a GPU",
    "cluster": "What a Ray cluster costs",
    "requests": "How the two models share the cores",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").strip())
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="where the JSON lies")
    parser.add_argument(
        "--readme", type=Path, default=CHECKOUT / "README.md", help="changed where it has markers"
    )
    parsed = parser.parse_args()
    found = [each for name in TITLES if (each := results.read(name, parsed.results)) is not None]
    if not found:
        raise UsageError(f"{parsed.results} holds no results: run python -m benchmarks first")
    write_pages(found, parsed.results)
    whole = [each for each in found if not each.quick]
    if whole and parsed.readme.is_file():
        text = parsed.readme.read_text()
        if BEGIN in text:
            parsed.readme.write_text(with_section(text, readme_section(whole)))


def write_pages(found: list[Result], folder: Path) -> None:
    """RESULTS.md and a picture of each."""
    parts = ["# What was measured", "Made by `python -m benchmarks.report` from the JSON files beside it."]
    for result in found:
        draw(result, folder / f"{result.benchmark}.svg")
        parts += [f"## {TITLES[result.benchmark]}", *_body(result)]
    (folder / "RESULTS.md").write_text("\n\n".join(parts) + "\n")


def readme_section(found: list[Result]) -> str:
    """The short form: both tables that people ask for, a line on each of the others' machines."""
    by_name = {result.benchmark: result for result in found}
    parts = []
    if "throughput" in by_name:
        parts += ["Slices a second, and as a share:", tables.throughput(by_name["throughput"])]
        parts += [tables.machine_line(by_name["throughput"])]
    if "peers" in by_name:
        parts += ["The same work by others, from the same files to masks and a table:"]
        parts += [tables.peers(by_name["peers"])]
    if "host" in by_name:
        parts += ["Without the models (null models, of which 35% of the slices pass the gate):"]
        parts += [tables.host_pipeline(by_name["host"])]
    if "scaling" in by_name:
        parts += ["The same by the number of files:", tables.scaling(by_name["scaling"])]
    return "\n\n".join(parts)


def with_section(text: str, section: str) -> str:
    """The text with what lies between its markers replaced. UsageError where the second is missing."""
    before, _, rest = text.partition(BEGIN)
    if END not in rest:
        raise UsageError(f"README.md has {BEGIN} and no {END} behind it")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{rest.partition(END)[2]}"


def _body(result: Result) -> list[str]:
    parts = [tables.machine_line(result)]
    if result.quick:
        parts = ["A dry run on a few slices: it shows that the program runs, and no speed.", *parts]
    made = {
        "throughput": (tables.throughput, tables.cpu_by_stage),
        "peers": (tables.peers, tables.peers_in_float32),
        "host": (tables.host_pipeline, tables.cpu_by_stage, tables.host_parts),
        "scaling": (tables.scaling,),
        "gpu_check": (lambda result: "\n\n".join(gpu_tables(result)),),
        "cluster": (tables.cluster,),
        "requests": (tables.requests,),
    }
    parts += [table for make in made[result.benchmark] if (table := make(result))]
    parts += [f"![{TITLES[result.benchmark]}]({result.benchmark}.svg)"]
    return [*parts, tables.notes(result)] if result.notes else parts


if __name__ == "__main__":
    run(main)
