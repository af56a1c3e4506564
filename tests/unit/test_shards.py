"""Shards: which files of an input one job of many scores, told by names alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.sources.discovery import Discovery, SourceFile
from engine.sources.shards import Dealt, Seen, Shard


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def walk(
    shard: Shard, *inputs: Path, listed: list[bytes] | None = None, stacks: bool = False
) -> tuple[list[str], Discovery]:
    dealt = Dealt(shard, stacks=stacks)
    found = Discovery([str(path) for path in inputs], listed, None, dealt=dealt)
    return [each.image_path for each in found], found


def divided(
    count: int, *inputs: Path, listed: list[bytes] | None = None, stacks: bool = False
) -> list[list[str]]:
    return [
        walk(Shard(number, count), *inputs, listed=listed, stacks=stacks)[0] for number in range(1, count + 1)
    ]


def whole(*inputs: Path, listed: list[bytes] | None = None) -> list[str]:
    return [each.image_path for each in Discovery([str(path) for path in inputs], listed, None)]


# What is typed


def test_a_shard_is_typed_as_it_is_shown() -> None:
    assert Shard.parse(" 3/16 ") == Shard(3, 16)
    assert Shard.parse("3/16").text == "3/16"
    assert Shard.parse("1/1") == Shard(1, 1)


@pytest.mark.parametrize(
    "text", ["", "3", "3/", "/3", "a/b", "1.5/2", "-1/3", "4/3", "0/0", "1/0", "1/100001", "٣/٤", "1/2/3"]
)
def test_what_is_no_shard_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--shard") as refused:
        Shard.parse(text)
    assert "\n" not in str(refused.value)


def test_counting_from_0_is_told_how_to_count_from_1() -> None:
    with pytest.raises(UsageError, match=r"1/4 to 4/4.*add 1 to JOB_COMPLETION_INDEX"):
        Shard.parse("0/4")


# Who gets what


def test_what_belongs_to_a_shard_never_changes_with_the_version() -> None:
    # A run that is continued by another version must find its slices where they were.
    numbers = [
        next(n for n in range(1, 17) if Shard(n, 16).has(name)) for name in (b"", b"p1", b"p2", b"a/b")
    ]
    assert numbers == [5, 2, 5, 1]


@given(st.binary(max_size=40), st.integers(1, 50))
def test_every_name_is_in_one_shard_only(name: bytes, count: int) -> None:
    assert sum(Shard(number, count).has(name) for number in range(1, count + 1)) == 1


def test_every_file_is_in_one_shard_and_each_shard_is_in_order(tmp_path: Path) -> None:
    data = touch(
        tmp_path / "data", "z.png", *(f"p{p}/{s}.tif" for p in range(12) for s in range(3)), "a/b/c.jpg"
    )
    parts = divided(4, data)
    assert sorted(path for part in parts for path in part) == sorted(whole(data))
    for part in parts:
        assert part == [path for path in whole(data) if path in part]


def test_a_folder_stays_whole(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", *(f"site/p{p}/{s}.tif" for p in range(40) for s in range(4)))
    for part in divided(5, data):
        assert set(Counter(path.rpartition("/")[0] for path in part).values()) <= {4}


def test_one_flat_folder_divides_evenly(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", *(f"{n:06}.png" for n in range(2000)))
    sizes = [len(part) for part in divided(4, data)]
    assert sum(sizes) == 2000
    assert min(sizes) > 430


def test_a_million_names_divide_evenly() -> None:
    shard = Shard(3, 16)
    share = sum(shard.has(b"%06d.png" % number) for number in range(40_000))
    assert share == pytest.approx(2500, rel=0.1)


def test_files_that_come_later_move_no_others(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", *(f"p{p}/{s}.tif" for p in range(9) for s in range(2)), "x.png", "y.png")
    before = divided(3, data)
    touch(data, "p0/new.tif", "p77/1.tif", "a.png", "zz.png")
    for old, new in zip(before, divided(3, data), strict=True):
        assert set(old) <= set(new)


def test_where_the_input_lies_does_not_matter(tmp_path: Path) -> None:
    names = [f"p{p}/{s}.tif" for p in range(9) for s in range(2)]
    here, there = touch(tmp_path / "here", *names), touch(tmp_path / "far" / "there", *names)
    for one, other in zip(divided(3, here), divided(3, there), strict=True):
        assert [path.removeprefix(str(here)) for path in one] == [
            path.removeprefix(str(there)) for path in other
        ]


def test_of_a_list_each_file_goes_by_itself_and_each_folder_whole(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", *(f"{n}.png" for n in range(200)), *(f"p/{n}.png" for n in range(20)))
    listed = [bytes(data / f"{n}.png") for n in range(200)] + [bytes(data / "p")]
    parts = divided(4, listed=listed)
    assert sorted(path for part in parts for path in part) == sorted(whole(listed=listed))
    assert min(len(part) for part in parts) > 25
    assert sorted(sum("/p/" in path for path in part) for part in parts) == [0, 0, 0, 20]


def test_several_inputs_stay_whole_each(tmp_path: Path) -> None:
    inputs = [touch(tmp_path / f"p{p}", "1.png", "2.png", "3.png") for p in range(8)]
    parts = divided(3, *inputs)
    assert {
        Counter(path.rpartition("/")[0] for path in part)[str(each)] for part in parts for each in inputs
    } == {
        0,
        3,
    }


def test_pictures_of_one_folder_stay_together_where_they_are_a_volume(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", *(f"{n}.png" for n in range(50)), *(f"v{n}.nii" for n in range(3)))
    listed = [bytes(data / f"{n}.png") for n in range(50)]
    for parts in (divided(3, data, stacks=True), divided(3, listed=listed, stacks=True)):
        assert sorted(sum(path.endswith(".png") for path in part) for part in parts) == [0, 0, 50]


def test_what_is_passed_over_adds_up(tmp_path: Path) -> None:
    data = touch(
        tmp_path / "data", "1.png", "1_mask.png", "README", "notes.txt", ".hidden",
        *(f"p{p}/{name}" for p in range(6) for name in ("1.tif", "1_mask.tif", "x.txt", ".DS_Store")),
    )  # fmt: skip
    together = Discovery([str(data)], None, None)
    list(together)
    walks = [walk(Shard(number, 3), data)[1] for number in (1, 2, 3)]
    assert sum(each.skipped_masks for each in walks) == together.skipped_masks == 7
    assert sum(each.skipped_other for each in walks) == together.skipped_other == 15


def test_all_shards_see_one_input_and_a_file_more_is_another(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", "1.png", "p/2.tif", "p/q/3.tif", "p/3_mask.tif")

    def seen() -> set[Seen | None]:
        return {walk(Shard(number, 3), data)[1].seen for number in (1, 2, 3)}

    (before,) = seen()
    assert before is not None
    assert before.names == 3
    touch(data, "p/4.tif")
    (after,) = seen()
    assert after != before
    assert Discovery([str(data)], None, None).seen is None


def test_what_cannot_be_looked_at_is_told_by_one_shard(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", "p/1.tif")
    (data / "p" / "loop").symlink_to(data)
    (data / "gone.png").symlink_to(data / "nowhere")
    parts = divided(4, data)
    assert sorted(path for part in parts for path in part) == sorted(whole(data))


def test_links_are_followed_by_one_shard(tmp_path: Path) -> None:
    data, store = tmp_path / "data", touch(tmp_path / "store", "real.tif", "deep/other.tif")
    data.mkdir()
    for number in range(6):
        (data / f"{number}.tif").symlink_to(store / "real.tif")
    (data / "linked").symlink_to(store / "deep")
    parts = divided(3, data)
    assert sorted(path for part in parts for path in part) == sorted(whole(data))


def test_the_count_for_the_time_left_is_about_the_shards(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", *(f"p{p}/{s}.tif" for p in range(12) for s in range(3)))
    for number in (1, 2, 3):
        shard = Shard(number, 3)
        found = Discovery([str(data)], None, None, dealt=Dealt(shard))
        assert len(list(found.roughly())) == len(walk(shard, data)[0])


# Volumes


def test_series_that_lie_directly_in_the_input_are_divided_whole(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from tests.volumes import dicom, voxels

    data = tmp_path / "data"
    data.mkdir()
    for series in range(6):
        for number in range(3):
            one = dicom(voxels(4, 4), series=f"1.2.3.{series}", height=float(number), instance=number + 1)
            one.save_as(data / f"{series}_{number}.dcm", enforce_file_format=True)
    parts = []
    for number in (1, 2, 3):
        found = Discovery([str(data)], None, None, dealt=Dealt(Shard(number, 3)))
        parts.append([(each.volume, each.image_path) for each in found if isinstance(each, SourceFile)])
    assert len({path for part in parts for _, path in part}) == sum(map(len, parts)) == 18
    for part in parts:
        assert set(Counter(volume for volume, _ in part).values()) <= {3}
    assert sum(1 for part in parts if part) > 1


def test_sequences_of_a_patient_are_combined_in_one_shard(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    from engine.sources.channels import Patterns
    from tests.volumes import voxels, write_nifti

    patterns = Patterns.parse("t1=*t1.nii,flair=*flair.nii")
    for patient in range(6):
        for name in ("t1", "flair"):
            write_nifti(tmp_path / "data" / f"p{patient}" / f"{name}.nii", voxels(4, 4, 2))
    write_nifti(tmp_path / "data" / "own_flair.nii", voxels(4, 4, 2))
    together = list(Discovery([str(tmp_path / "data")], None, None, patterns))
    parts = []
    for number in (1, 2, 3):
        found = Discovery([str(tmp_path / "data")], None, None, patterns, Dealt(Shard(number, 3)))
        parts.append(list(found))
    assert len(together) == 14
    places = [[(each.order, each.image_path) for each in part] for part in (together, *parts)]
    assert sorted(place for part in places[1:] for place in part) == sorted(places[0])
    recipes = {each.source.recipe for each in together if isinstance(each, SourceFile) and each.source}
    assert recipes == {
        each.source.recipe for part in parts for each in part if isinstance(each, SourceFile) and each.source
    }
