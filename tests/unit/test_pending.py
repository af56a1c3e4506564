"""The walk beside the ledger: what is still to score, and which changes of the input are refused."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import pending as pending_module
from engine.errors import Failure, UsageError
from engine.ledger import Ledger, SliceRow
from engine.pending import Pending
from engine.sources import looking
from engine.sources import stretches as stretches_module
from engine.sources.discovery import Discovery, SourceFile, Unlisted
from engine.sources.entries import numbered, pages_of
from engine.sources.statuses import Statuses, look_at
from engine.sources.volumes import Volume
from tests.volumes import tiff_pages


def file(number: int, *, size: int = 100, mtime_ns: int = 5, name: str | None = None) -> SourceFile:
    shown = name or f"data/{number}.tif"
    return SourceFile(
        shown.encode(), shown, "data", shown.encode(), number.to_bytes(8, "big"), size, mtime_ns
    )


def unlisted(number: int, *, transient: bool = True) -> Unlisted:
    failure = Failure("discover", "permission", "Permission denied", transient)
    return Unlisted(f"data/{number}.tif", number.to_bytes(8, "big"), failure)


def scored(entry: SourceFile, slice_: int = 0) -> SliceRow:
    return SliceRow(
        entry.order, slice_, entry.volume, entry.image_path, "ok", entry.size, entry.mtime_ns,
        tumor_probability=0.5, has_mask=0, mask_pixels=0, mask_fraction=0.0,
    )  # fmt: skip


def quarantined(entry: SourceFile, *, transient: bool = False) -> SliceRow:
    return SliceRow(
        entry.order, 0, entry.volume, entry.image_path, "quarantined", entry.size, entry.mtime_ns,
        stage="decode", code="truncated", message="ends early", transient=transient,
    )  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "run.sqlite", {}, fresh=False) as opened:
        yield opened


def test_all_of_a_new_run_is_pending(ledger: Ledger) -> None:
    files = [file(number) for number in range(5)]
    walk = Pending(files, ledger)
    assert list(walk) == files
    assert walk.seen == 5
    assert walk.finished


def test_scored_files_are_passed_over_and_new_ones_are_given_where_they_sort(ledger: Ledger) -> None:
    ledger.commit([scored(file(number)) for number in (2, 4, 6)])
    walk = Pending([file(number) for number in range(1, 8)], ledger)
    assert [entry.order[-1] for entry in walk] == [1, 3, 5, 7]
    assert walk.seen == 7


@pytest.mark.parametrize("changed", [file(2, size=101), file(2, mtime_ns=6)])
def test_a_scored_file_that_changed_is_refused_with_its_name(ledger: Ledger, changed: SourceFile) -> None:
    ledger.commit([scored(file(1)), scored(file(2))])
    with pytest.raises(UsageError, match=r"data/2\.tif changed since it was scored"):
        list(Pending([file(1), changed], ledger))


@pytest.mark.parametrize("left", [[2, 3], [1, 3], [1, 2]])
def test_a_scored_file_that_vanished_is_refused_with_its_name(ledger: Ledger, left: list[int]) -> None:
    ledger.commit([scored(file(number)) for number in (1, 2, 3)])
    (gone,) = {1, 2, 3} - set(left)
    with pytest.raises(UsageError, match=rf"data/{gone}\.tif was scored and is gone"):
        list(Pending([file(number) for number in left], ledger))


def test_a_scored_file_that_can_no_longer_be_read_is_refused(ledger: Ledger) -> None:
    ledger.commit([scored(file(1))])
    with pytest.raises(UsageError, match=r"data/1\.tif can no longer be read \(Permission denied\)"):
        list(Pending([unlisted(1)], ledger))


def test_a_list_whose_lines_moved_is_refused_though_sizes_and_times_are_alike(ledger: Ledger) -> None:
    ledger.commit([scored(file(1)), scored(file(2))])
    moved = [file(1), file(2, name="data/inserted.tif"), file(3, name="data/2.tif")]
    with pytest.raises(UsageError, match=r"data/2\.tif was scored and is gone \(data/inserted\.tif has its"):
        list(Pending(moved, ledger))


def test_a_quarantined_file_waits_for_retry(ledger: Ledger) -> None:
    ledger.commit([quarantined(file(1)), scored(file(2))])
    assert list(Pending([file(1), file(2)], ledger)) == []
    assert list(Pending([file(1), file(2)], ledger, retry=True)) == [file(1)]


def test_a_transient_failure_is_tried_again_without_being_asked(ledger: Ledger) -> None:
    ledger.commit([quarantined(file(1), transient=True), quarantined(file(2))])
    assert list(Pending([file(1), file(2)], ledger)) == [file(1)]


def test_a_quarantined_file_that_changed_is_tried_again(ledger: Ledger) -> None:
    ledger.commit([quarantined(file(1))])
    mended = file(1, size=200)
    assert list(Pending([mended], ledger)) == [mended]


def test_an_entry_that_could_not_be_listed_is_tried_again_when_that_may_pass(ledger: Ledger) -> None:
    ledger.commit([quarantined(file(1), transient=True), quarantined(file(2))])
    entries = [unlisted(1), unlisted(2, transient=False)]
    assert list(Pending(entries, ledger)) == [entries[0]]
    assert list(Pending(entries, ledger, retry=True)) == entries


def test_a_quarantined_file_that_is_gone_loses_its_row(ledger: Ledger) -> None:
    ledger.commit([quarantined(file(1)), scored(file(2)), quarantined(file(3))])
    assert list(Pending([file(2)], ledger)) == []
    assert [row.order for row in ledger.rows()] == [file(2).order]


def spoil(ledger: Ledger, entry: SourceFile, change: str = "tumor_probability = 0.125") -> None:
    """Change the row of `entry` behind the ledger's back."""
    with sqlite3.connect(ledger.path) as connection:
        connection.execute(f"UPDATE slices SET {change} WHERE ord = ?", (entry.order,))
    connection.close()


def test_a_file_whose_row_was_damaged_is_scored_again(ledger: Ledger) -> None:
    ledger.commit([scored(file(number)) for number in range(3)])
    spoil(ledger, file(1))
    assert list(Pending([file(0), file(1), file(2)], ledger)) == [file(1)]
    assert [row.order for row in ledger.rows()] == [file(0).order, file(2).order]


@pytest.mark.parametrize(
    "change", ["tumor_probability = 0.125", "size = 7", "volume = 'x'", "image_path = ''"]
)
def test_of_files_that_can_be_walked_twice_those_of_damaged_rows_come_last(
    ledger: Ledger, change: str
) -> None:
    files = [file(number) for number in range(6)]
    ledger.commit([scored(files[number]) for number in (0, 1, 2, 4)])
    spoil(ledger, files[1], change)
    walk = Pending(files, ledger, again=lambda: files)
    assert sorted(walk, key=lambda entry: entry.order) == [files[1], files[3], files[5]]
    assert [row.order[-1] for row in ledger.rows()] == [0, 2, 4]
    assert (walk.seen, walk.finished) == (6, True)


@pytest.mark.parametrize("twice", [False, True])
def test_a_damaged_row_is_no_word_against_a_file_that_changed_or_went(ledger: Ledger, twice: bool) -> None:
    ledger.commit([scored(file(number)) for number in range(6)])
    for number in (1, 4):
        spoil(ledger, file(number))
    files = [file(0), file(1, size=7), file(2), file(3), file(5)]
    assert list(Pending(files, ledger, again=(lambda: files) if twice else None)) == [files[1]]
    assert [row.order[-1] for row in ledger.rows()] == [0, 2, 3, 5]


@pytest.mark.parametrize("twice", [False, True])
def test_a_dry_walk_counts_what_was_damaged_once_and_leaves_it(ledger: Ledger, twice: bool) -> None:
    files = [file(0), file(1, size=7), file(2)]
    ledger.commit([scored(file(number)) for number in range(3)])
    for entry in files:
        spoil(ledger, entry)
    given_files = list(Pending(files, ledger, again=(lambda: files) if twice else None, forgets=False))
    assert sorted(entry.order for entry in given_files) == [entry.order for entry in files]
    assert ledger.counts().ok == 3


def test_a_damaged_row_of_a_file_that_is_gone_goes_too(ledger: Ledger) -> None:
    ledger.commit([scored(file(number)) for number in range(3)])
    spoil(ledger, file(2))
    assert list(Pending([file(0), file(1)], ledger)) == []
    assert [row.order for row in ledger.rows()] == [file(0).order, file(1).order]


def test_a_dry_walk_changes_nothing(ledger: Ledger) -> None:
    ledger.commit([quarantined(file(1)), scored(file(2))])
    assert list(Pending([file(2), file(3)], ledger, forgets=False)) == [file(3)]
    assert ledger.counts().quarantined == 1


def test_all_slices_of_a_file_are_one_file(ledger: Ledger) -> None:
    ledger.commit([scored(file(1), slice_) for slice_ in range(3)])
    assert list(Pending([file(1), file(2)], ledger)) == [file(2)]


def test_a_limit_counts_scored_files_too_and_asks_the_input_for_no_more(ledger: Ledger) -> None:
    ledger.commit([scored(file(0))])
    asked = []

    def endless() -> Iterator[SourceFile]:
        for number in count():
            asked.append(number)
            yield file(number)

    walk = Pending(endless(), ledger, limit=3)
    assert [entry.order[-1] for entry in walk] == [1, 2]
    assert asked == [0, 1, 2]
    assert walk.finished


def test_damaged_rows_behind_the_limit_are_left_to_the_next_run(ledger: Ledger) -> None:
    files = [file(number) for number in range(4)]
    ledger.commit([scored(each) for each in files])
    spoil(ledger, file(0))
    spoil(ledger, file(3))
    assert list(Pending(files, ledger, limit=2)) == [file(0)]
    assert [row.order[-1] for row in ledger.rows()] == [1, 2]
    assert list(Pending(files, ledger)) == [file(0), file(3)]


def test_a_limit_below_what_is_scored_is_no_loss(ledger: Ledger) -> None:
    ledger.commit([scored(file(number)) for number in range(5)])
    assert list(Pending([file(number) for number in range(5)], ledger, limit=2)) == []


def test_a_stopped_walk_is_not_finished_and_takes_nothing_for_gone(ledger: Ledger) -> None:
    ledger.commit([scored(file(number)) for number in range(5)])
    stop = threading.Event()

    def cut_short() -> Iterator[SourceFile]:
        yield file(0)
        stop.set()

    walk = Pending(cut_short(), ledger, stop=stop)
    assert list(walk) == []
    assert not walk.finished


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    known=st.sets(st.integers(0, 30)),
    files=st.sets(st.integers(0, 30)),
    page=st.integers(1, 9),
    twice=st.booleans(),
    data=st.data(),
)
def test_whatever_the_page_each_file_is_given_once_though_rows_are_committed_beside(
    tmp_path: Path, known: set[int], files: set[int], page: int, twice: bool, data: st.DataObject
) -> None:
    failed = data.draw(st.sets(st.sampled_from(sorted(known)))) if known else set()
    files = files | (known - failed)
    with (
        pytest.MonkeyPatch.context() as patch,
        Ledger.open(tmp_path / "run.sqlite", {}, fresh=True) as ledger,
    ):
        patch.setattr(pending_module, "PAGE", page)
        ledger.commit([quarantined(file(n)) if n in failed else scored(file(n)) for n in sorted(known)])
        given_files = []
        inputs = [file(number) for number in sorted(files)]
        walk = Pending(inputs, ledger, retry=True, again=(lambda: inputs) if twice else None)
        for entry in walk:
            assert isinstance(entry, SourceFile)
            ledger.commit([scored(entry)])
            given_files.append(entry.order[-1])
        assert given_files == sorted(files - (known - failed))
        assert [row.order[-1] for row in ledger.rows()] == sorted(files)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), page=st.integers(1, 9), longest=st.integers(1, 9))
def test_a_walk_in_stretches_gives_what_a_walk_of_files_does(
    tmp_path: Path, data: st.DataObject, page: int, longest: int
) -> None:
    """Of a folder with new, scored, failed, changed and vanished files, a folder and a link among them."""
    data_folder, out = tmp_path / "data", tmp_path / "out"
    (data_folder / "4a").mkdir(parents=True, exist_ok=True)
    for name in [*(f"{number}.tif" for number in range(12)), "4a/1.png", "4a/2.png"]:
        (data_folder / name).write_bytes(b"x")
    if not (data_folder / "7a.tif").exists():
        (data_folder / "7a.tif").symlink_to("4a/1.png")
    discovery = Discovery([str(data_folder)], None, out)
    files = [entry for entry in discovery if isinstance(entry, SourceFile)]
    states = st.sampled_from(("ok", "ok", "ok", "new", "failed", "passing", "mended", "changed", "gone"))
    rows = []
    for entry in files:
        state = data.draw(states)
        if state in ("ok", "changed", "gone"):
            rows.append(scored(entry))
        elif state != "new":
            rows.append(quarantined(entry, transient=state == "passing"))
        if state in ("mended", "changed"):
            Path(os.fsdecode(entry.path)).write_bytes(b"other")
        if state == "gone" and data.draw(st.booleans()):
            Path(os.fsdecode(entry.path)).unlink(missing_ok=True)

    def outcome(*, in_stretches: bool) -> tuple[object, ...]:
        with Ledger.open(out / "run.sqlite", {}, fresh=True) as ledger:
            ledger.commit(rows)
            walk = Pending(discovery, ledger, again=discovery.in_stretches if in_stretches else None)
            try:
                return list(walk), walk.seen, walk.finished, [row.order for row in ledger.rows()]
            except UsageError as error:
                return (str(error),)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending_module, "PAGE", page)
        patch.setattr(looking, "MANY", 1)
        patch.setattr(stretches_module, "LONGEST", longest)
        patch.setattr(stretches_module, "GIVEN_SINGLY", 1)
        assert outcome(in_stretches=True) == outcome(in_stretches=False)


@pytest.mark.parametrize("known", [range(200), range(0, 2000, 10), range(1999, 2000)])
def test_new_files_behind_known_ones_are_seldom_looked_at_twice(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, known: range
) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.tif").write_bytes(b"x")
    discovery = Discovery([str(tmp_path)], None, Path("/nowhere"))
    files = [entry for entry in discovery if isinstance(entry, SourceFile)]
    ledger.commit([scored(files[number]) for number in known])
    looked: list[int] = []

    def look(folder: bytes, names: list[bytes]) -> Statuses:
        looked.append(len(names))
        return look_at(folder, names)

    monkeypatch.setattr(stretches_module, "look_at", look)
    given = list(Pending(discovery, ledger, again=discovery.in_stretches))
    assert len(given) == 2000 - len(known)
    assert sum(looked) <= 4000


def of_volume(
    number: int, slices: int, *, source: Volume | None = None, size: int = 100, mtime_ns: int = 5
) -> list[SourceFile]:
    whole = source or Volume("recipe")
    return numbered(file(number, size=size, mtime_ns=mtime_ns), slices, whole)


def test_slices_of_a_volume_are_pending_one_by_one(ledger: Ledger) -> None:
    slices = of_volume(1, 5)
    failed = dataclasses.replace(quarantined(slices[3], transient=True), slice=3, volume=slices[3].volume)
    given_up = dataclasses.replace(quarantined(slices[4]), slice=4, volume=slices[4].volume)
    ledger.commit([scored(slices[0], 0), scored(slices[2], 2), failed, given_up])
    assert [each.slice for each in Pending(of_volume(1, 5), ledger)] == [1, 3]
    assert [each.slice for each in Pending(of_volume(1, 5), ledger, retry=True)] == [1, 3, 4]


def test_a_file_of_slices_that_changed_is_refused_once_one_is_scored(ledger: Ledger) -> None:
    ledger.commit([dataclasses.replace(quarantined(of_volume(1, 3)[0]), slice=0)])
    assert len(list(Pending(of_volume(1, 3, size=101), ledger))) == 3
    assert list(ledger.known(b"", 9)) == []
    ledger.commit([scored(each, each.slice) for each in of_volume(1, 3)[1:2]])
    with pytest.raises(UsageError, match=r"data/1\.tif changed"):
        list(Pending(of_volume(1, 3, size=101), ledger))


def of_slice(row: SliceRow, each: SourceFile) -> SliceRow:
    return dataclasses.replace(row, slice=each.slice, volume=each.volume)


@pytest.mark.parametrize("old", [0, 1, 2])
def test_a_file_that_changed_while_its_slices_were_scored_is_refused(ledger: Ledger, old: int) -> None:
    ledger.commit([scored(each, each.slice) for each in of_volume(1, 3)[old : old + 1]])
    new = of_volume(1, 3, size=101)
    ledger.commit([scored(each, each.slice) for each in new if each.slice != old])
    with pytest.raises(UsageError, match=r"data/1\.tif changed since it was scored"):
        list(Pending(new, ledger))


@pytest.mark.parametrize("failed", [0, 2])
def test_a_file_that_changed_since_a_slice_failed_is_scored_anew(ledger: Ledger, failed: int) -> None:
    old, new = of_volume(1, 3)[failed], of_volume(1, 3, size=101)
    ledger.commit([of_slice(quarantined(old), old)])
    ledger.commit([scored(each, each.slice) for each in new if each.slice != failed])
    assert list(Pending(new, ledger)) == new
    assert list(ledger.rows()) == []


def test_a_vanished_file_is_refused_though_its_first_slice_was_in_quarantine(ledger: Ledger) -> None:
    first, second = of_volume(1, 2)
    ledger.commit([of_slice(quarantined(first), first), scored(second, 1), scored(file(2))])
    with pytest.raises(UsageError, match=r"data/1\.tif was scored and is gone"):
        list(Pending([file(2)], ledger))
    assert ledger.counts().ok == 2


def test_a_folder_that_can_no_longer_be_listed_is_named_with_the_reason(ledger: Ledger) -> None:
    folder = unlisted(1)
    inside = dataclasses.replace(file(1), order=folder.order + b"a", image_path="data/1.tif/a.tif")
    ledger.commit([scored(inside), scored(file(2))])
    said = r"data/1\.tif/a\.tif .*folder can no longer be read \(data/1\.tif: Permission denied\)"
    given_files = []
    with pytest.raises(UsageError, match=said):
        given_files.extend(Pending([folder, file(2)], ledger))
    assert given_files == []


def series_of(*numbers: int, fingerprint: str) -> list[SourceFile]:
    """Files of one volume, which lies below the order 0000000000."""
    source = Volume("recipe", bytes(5), fingerprint)
    return [dataclasses.replace(file(number), volume="data/series", source=source) for number in numbers]


def test_a_volume_whose_window_hangs_on_other_files_is_refused_when_these_change(ledger: Ledger) -> None:
    assert len(list(Pending(series_of(1, 2, fingerprint="a"), ledger))) == 2
    ledger.commit([scored(series_of(2, fingerprint="a")[0])])
    assert len(list(Pending(series_of(1, 2, fingerprint="a"), ledger))) == 1
    with pytest.raises(UsageError, match=r"data/2\.tif was scored with other files .*data/series"):
        list(Pending(series_of(1, 2, 3, fingerprint="b"), ledger))


def test_a_volume_of_which_nothing_is_scored_may_change(ledger: Ledger) -> None:
    list(Pending(series_of(1, 2, fingerprint="a"), ledger))
    ledger.commit([quarantined(series_of(1, fingerprint="a")[0], transient=True)])
    assert len(list(Pending(series_of(1, 2, 3, fingerprint="b"), ledger))) == 3
    ledger.commit([scored(series_of(3, fingerprint="b")[0])])
    assert len(list(Pending(series_of(1, 2, 3, fingerprint="b"), ledger))) == 2


def test_a_file_of_a_damaged_row_is_scored_again_where_its_volume_changed_too(ledger: Ledger) -> None:
    list(Pending(series_of(1, 2, fingerprint="a"), ledger))
    ledger.commit([scored(series_of(1, fingerprint="a")[0])])
    spoil(ledger, file(1))
    files = series_of(1, 2, 3, fingerprint="b")
    assert list(Pending(files, ledger, again=lambda: files)) == files
    assert list(ledger.rows()) == []


def test_a_picture_of_which_no_page_was_scored_may_become_unreadable(ledger: Ledger) -> None:
    picture = dataclasses.replace(file(1), path=b"/nowhere/a.tif")
    ledger.commit([of_slice(quarantined(each), each) for each in pages_of(picture, 3)[:2]])
    assert list(Pending([picture], ledger)) == [picture]
    assert list(ledger.rows()) == []


def test_of_a_picture_with_pages_those_that_have_no_row_are_pending(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_pages([np.zeros((4, 5), np.uint8)] * 4))
    picture = dataclasses.replace(file(1), path=os.fsencode(path))
    pages = pages_of(picture, 4)
    ledger.commit([scored(pages[0], 0), scored(pages[2], 2)])
    assert [(each.slice, each.volume) for each in Pending([picture], ledger)] == [
        (1, picture.image_path),
        (3, picture.image_path),
    ]
    path.unlink()
    with pytest.raises(UsageError, match="can no longer be read"):
        list(Pending([picture], ledger))
