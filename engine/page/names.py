"""What slices and volumes are called on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.page.results import Slice


@dataclass(frozen=True, slots=True)
class Names:
    """Labels: `slices[i]` of slice i, `volumes[name]` of a volume, in the order of their first slices.

    `paths[i]` is the slice's whole path, "" where names are to be kept off the page.
    """

    slices: Sequence[str]
    paths: Sequence[str]
    volumes: dict[str, str]


def plain_names(slices: Sequence[Slice]) -> Names:
    """The names of files, and of volumes what their folders do not share."""
    volumes = list(dict.fromkeys(each.volume for each in slices))
    split = [volume.split("/") for volume in volumes]
    shared = 0
    while all(len(parts) > shared + 1 and parts[shared] == split[0][shared] for parts in split):
        shared += 1
    labels = {volume: "/".join(parts[shared:]) for volume, parts in zip(volumes, split, strict=True)}
    several = {each.image_path for each in slices if each.index}
    names = [
        each.image_path.rpartition("/")[2] + (f" [{each.index}]" if each.image_path in several else "")
        for each in slices
    ]
    return Names(names, [each.image_path for each in slices], labels)


def numbers(slices: Sequence[Slice]) -> Names:
    """Numbers in the run's order, which say nothing of whose the slices are."""
    volumes = {volume: f"volume {n}" for n, volume in enumerate(dict.fromkeys(s.volume for s in slices), 1)}
    seen = dict.fromkeys(volumes, 0)
    names = []
    for each in slices:
        seen[each.volume] += 1
        names.append(f"slice {seen[each.volume]}")
    return Names(names, [""] * len(names), volumes)
