"""What a soak must have left: a row for each slice that was listed, the same in every loop."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

_OF_PLACE = {"volume", "image_path", "mask_path"}
"""The columns that tell one loop's row from another's."""


def expect_nothing_lost(folder: Path, listed: list[str]) -> None:
    """Raise AssertionError where a row is missing, twice or strange, or a mask is not its first loop's."""
    rows: dict[str, dict[str, str]] = {}
    counts: Counter[str] = Counter()
    with (folder / "out" / "results.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            counts[row["image_path"]] += 1
            rows[row["image_path"]] = row
    assert counts.keys() == set(listed), f"{len(counts.keys() ^ set(listed))} paths are lost or strange"
    twice = [path for path, count in counts.items() if count > 1]
    assert not twice, f"{len(twice)} rows are there twice, such as {twice[0]}"
    firsts: dict[str, tuple[dict[str, str], bytes]] = {}
    for path in listed:
        name = path.split("/", 2)[2]
        row = rows[path]
        told = {column: value for column, value in row.items() if column not in _OF_PLACE}
        mask = (folder / "out" / row["mask_path"]).read_bytes() if row["mask_path"] else b""
        first = firsts.setdefault(name, (told, mask))
        assert first[0] == told, f"{path} is {told}, and {first[0]} in the first loop"
        assert first[1] == mask, f"the mask of {path} is not that of the first loop"
    expected = {path for path in listed if "/bad/" in path}
    lost = {path for path in listed if rows[path]["status"] != "ok"}
    assert lost == expected, f"{len(lost ^ expected)} slices are quarantined, or bad and scored"
