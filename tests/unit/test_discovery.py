"""Which files a run scores, in which order, under which names."""

from __future__ import annotations

import io
import itertools
import os
import re
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.ledger_rows import Known
from engine.sources import endings
from engine.sources import stretches as stretches_module
from engine.sources.discovery import Discovery, SourceFile, Unlisted, natural_key
from engine.sources.entries import Entry
from engine.sources.files import read_content
from engine.sources.folders import kind_of, list_folder
from engine.sources.lists import read_list
from engine.sources.named import input_entries
from engine.sources.stretches import Stretch
from tests.badfiles import write_bad_files

NOBODY = 65_534

# Few letters, so that numbers, leading zeros and common starts are frequent.
names = st.text("0123a_.-B\u00e9\n", min_size=1, max_size=8).filter(lambda name: not name.startswith("."))
trees = st.recursive(st.none(), lambda below: st.dictionaries(names, below, max_size=4), max_leaves=15)


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def found(*inputs: Path | str, out: Path | str = "/nowhere/out") -> list[SourceFile | Unlisted]:
    return list(Discovery([str(each) for each in inputs], None, Path(out)))


def listed(*paths: bytes, out: str = "/nowhere/out") -> list[SourceFile | Unlisted]:
    return list(Discovery([], iter(paths), Path(out)))


def below(root: Path, entries: list[SourceFile | Unlisted]) -> list[str]:
    return [entry.image_path.removeprefix(f"{root}/") for entry in entries]


def natural(name: bytes) -> tuple[object, ...]:
    """The order that a person expects, spelled out: numbers by value where digits stand, zeros last."""
    parts = re.findall(rb"[0-9]+|[^0-9]", name)
    tokens = [(b"0", int(part)) if part.isdigit() else (part, 0) for part in parts]
    zeros = [len(part) - len(part.lstrip(b"0")) for part in parts if part.isdigit()]
    return tokens, zeros


def test_a_folder_is_walked_depth_first_with_numbers_by_value(tmp_path: Path) -> None:
    make(
        tmp_path,
        "p10/a.tif",
        "p2/a_10.tif",
        "p2/a_9.tif",
        "p2/a_9/b.png",
        "p3.png",
        "p1.JPEG",
        "p2/a_010.webp",
    )
    entries = found(tmp_path)
    p2 = ["p2/a_9/b.png", "p2/a_9.tif", "p2/a_10.tif", "p2/a_010.webp"]
    expected = ["p1.JPEG", *p2, "p3.png", "p10/a.tif"]
    assert below(tmp_path, entries) == expected


def test_a_file_says_all_that_a_run_needs(tmp_path: Path) -> None:
    make(tmp_path, "one/a.tif")
    (entry,) = found(tmp_path)
    assert isinstance(entry, SourceFile)
    status = (tmp_path / "one/a.tif").stat()
    assert entry == SourceFile(
        path=os.fsencode(tmp_path / "one/a.tif"),
        image_path=f"{tmp_path}/one/a.tif",
        volume=f"{tmp_path}/one",
        mask_stem=b"one/a.tif",
        order=bytes(8) + natural_key(b"one") + natural_key(b"a.tif"),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def test_the_input_is_shown_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "scans/one/a.tif")
    monkeypatch.chdir(tmp_path)
    for typed, shown in (
        ("scans", "scans"),
        ("scans/", "scans"),
        ("./scans", "./scans"),
        ("scans/../scans",) * 2,
    ):
        (entry,) = found(typed)
        assert entry.image_path == f"{shown}/one/a.tif"
    (entry,) = found("scans/one/a.tif")
    assert isinstance(entry, SourceFile)
    assert (entry.volume, entry.mask_stem) == ("scans/one", b"a.tif")
    monkeypatch.chdir(tmp_path / "scans/one")
    (entry,) = found("a.tif")
    assert isinstance(entry, SourceFile)
    assert entry.volume == "."


def test_masks_and_other_files_are_skipped_and_counted(tmp_path: Path) -> None:
    make(
        tmp_path,
        "a.tif",
        "a_mask.tif",
        "b_MASK.PNG",
        "a_mask.txt",
        "notes.txt",
        ".hidden.png",
        ".git/x.png",
        "mask.png",
    )
    discovery = Discovery([str(tmp_path)], None, Path("/nowhere"))
    assert below(tmp_path, list(discovery)) == ["a.tif", "mask.png"]
    assert (discovery.skipped_masks, discovery.skipped_other) == (2, 4)
    assert len(list(discovery)) == 2
    assert (discovery.skipped_masks, discovery.skipped_other) == (2, 4)


def test_a_file_named_directly_is_always_taken(tmp_path: Path) -> None:
    make(tmp_path, "a_mask.tif", "scan.dat", ".hidden.png")
    for name in ("a_mask.tif", "scan.dat", ".hidden.png"):
        assert below(tmp_path, found(tmp_path / name)) == [name]
    assert len(listed(*(os.fsencode(tmp_path / name) for name in ("a_mask.tif", "scan.dat")))) == 2


def test_masks_of_several_inputs_never_share_a_place(tmp_path: Path) -> None:
    make(tmp_path, "x/scans/a.tif", "y/scans/a.tif", "scans_2/a.tif", "z/a.tif", "w/a.tif")
    inputs = [tmp_path / name for name in ("x/scans", "scans_2", "y/scans", "z/a.tif", "w/a.tif")]
    entries = found(*inputs)
    stems = [entry.mask_stem for entry in entries if isinstance(entry, SourceFile)]
    assert stems == [b"scans/a.tif", b"scans_2/a.tif", b"scans_3/a.tif", b"a.tif", b"a.tif_2"]
    assert [entry.order for entry in entries] == sorted(entry.order for entry in entries)


def test_ten_thousand_inputs_of_one_name_are_numbered_one_by_one() -> None:
    inputs = [b"p%d/t1.tif" % number for number in range(10_000)]
    stems = [entry.stem for entry in input_entries([*inputs, b"t1.tif_7", b"t1.tif"], lambda _: False)]
    numbered = [b"t1.tif_%d" % number for number in range(2, 10_001)]
    assert stems == [b"t1.tif", *numbered, b"t1.tif_7_2", b"t1.tif_10001"]


def test_a_file_reached_twice_is_scored_twice(tmp_path: Path) -> None:
    make(tmp_path, "p/a.tif")
    assert below(tmp_path, found(tmp_path / "p", tmp_path / "p/a.tif")) == ["p/a.tif", "p/a.tif"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a b.png", "a b.png"),
        (b"a'\"b.png", "a'\"b.png"),
        (b"a,b.png", "a,b.png"),
        (b"a\nb\r\n.png", "a\nb\r\n.png"),
        (b"a\xff\xfe.png", "a\\xff\\xfe.png"),
        ("\u00e5.png".encode(), "\u00e5.png"),
        (b"=1+1.png", "./=1+1.png"),
        (b"+a.png", "./+a.png"),
        (b"-a.png", "./-a.png"),
        (b"@a.png", "./@a.png"),
        (b"\ta.png", "./\ta.png"),
        (b"\na.png", "./\na.png"),
        ("\uff1d1+1.png".encode(), "./\uff1d1+1.png"),
    ],
)
def test_any_name_becomes_text_that_is_safe_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, shown: str
) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    (entry,) = found(os.fsdecode(name))
    assert isinstance(entry, SourceFile)
    assert (entry.image_path, entry.path, entry.mask_stem) == (shown, name, name)
    entry.image_path.encode()
    (entry,) = found(".")
    assert entry.image_path == f"./{shown.removeprefix('./')}"


def test_a_link_loop_is_reported_once_and_links_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "scans/one/a.tif", "elsewhere/b.tif")
    (tmp_path / "scans/one/up").symlink_to("..")
    (tmp_path / "scans/two").symlink_to("../elsewhere")
    (tmp_path / "scans/c.tif").symlink_to("one/a.tif")
    (tmp_path / "scans/c_mask.tif").symlink_to("one/a.tif")
    (tmp_path / "scans/notes.txt").symlink_to("one/a.tif")
    (tmp_path / "scans/gone.tif").symlink_to("nothing")
    (tmp_path / "scans/self.tif").symlink_to("self.tif")
    discovery = Discovery([str(tmp_path / "scans")], None, Path("/nowhere"))
    entries = list(discovery)
    seen = {
        name: entry.failure.code if isinstance(entry, Unlisted) else None
        for name, entry in zip(below(tmp_path / "scans", entries), entries, strict=True)
    }
    assert seen == {
        "c.tif": None,
        "gone.tif": "not_found",
        "one/a.tif": None,
        "one/up": "link_loop",
        "self.tif": "link_loop",
        "two/b.tif": None,
    }
    assert (discovery.skipped_masks, discovery.skipped_other) == (1, 1)


@pytest.mark.parametrize("name", ["latest", "7", "x.dcm", "scan.ima", "v.nii", "x.png", "a_mask.png"])
@pytest.mark.parametrize(("to", "code"), [("{}", "link_loop"), ("1.tif/x", "not_found")])
def test_a_link_that_leads_nowhere_costs_its_folder_nothing(
    tmp_path: Path, name: str, to: str, code: str
) -> None:
    make(tmp_path, "scans/1.tif", "scans/2.tif")
    (tmp_path / "scans" / name).symlink_to(to.format(name))
    entries = found(tmp_path / "scans")
    assert sorted(below(tmp_path / "scans", entries)) == sorted(["1.tif", "2.tif", name])
    assert [entry.failure.code for entry in entries if isinstance(entry, Unlisted)] == [code]


def test_a_file_of_a_far_future_has_the_last_time_that_a_ledger_can_keep(tmp_path: Path) -> None:
    path = make(tmp_path, "1.tif") / "1.tif"
    os.utime(path, ns=(10_413_792_000 * 10**9,) * 2)
    if path.stat().st_mtime_ns < 2**63:
        pytest.skip("this disk has no such times")
    (together,) = found(tmp_path)
    (alone,) = found(path)
    for entry in (together, alone):
        assert isinstance(entry, SourceFile)
        assert entry.mtime_ns == read_content(entry.path).mtime_ns == 2**63 - 1
    (stretch, *_) = Discovery([str(tmp_path)], None, None).in_stretches()
    assert isinstance(stretch, Stretch)
    assert [Known._make(row).mtime_ns for row in stretch.as_scored()] == [2**63 - 1]


def test_every_bad_file_is_found_or_reported(tmp_path: Path) -> None:
    cases = write_bad_files(tmp_path / "bad")
    entries = {entry.image_path: entry for entry in found(tmp_path / "bad")}
    assert len(entries) == len(cases)
    unlisted = {e.failure.code for e in entries.values() if isinstance(e, Unlisted)}
    assert unlisted == {"not_a_file", "not_found", "link_loop"}


def test_a_folder_without_permission_is_reported_and_may_be_tried_again(locked_tree: Path) -> None:
    entries = found(locked_tree)
    assert below(locked_tree, entries) == ["a.png", "locked", "z.png"]
    locked = entries[1]
    assert isinstance(locked, Unlisted)
    assert (locked.failure.stage, locked.failure.code, locked.failure.transient) == (
        "discover",
        "permission",
        True,
    )


@pytest.mark.parametrize(
    ("inputs", "out", "said"),
    [
        ([], "out", "nothing to score"),
        (["gone"], "out", "'gone' does not exist"),
        (["scans/a.tif/below"], "out", "cannot be read"),
        (["scans", "scans/"], "out", "given twice"),
        (["scans"], "scans", "output .* is the input"),
        (["scans"], "scans/out", "lies inside the input"),
        (["scans"], "link/out", "lies inside the input"),
        (["."], "scans", "lies inside the input"),
        (["scans"], ".", "lies inside the output"),
        (["scans/a.tif"], "scans", "lies inside the output"),
        (["nul\0"], "out", "not a path"),
    ],
)
def test_wrong_use_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], out: str, said: str
) -> None:
    make(tmp_path, "scans/a.tif")
    (tmp_path / "link").symlink_to("scans")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said) as caught:
        Discovery(inputs, None, Path(out))
    assert "\n" not in str(caught.value)


def test_inputs_and_a_list_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one of them"):
        Discovery([str(tmp_path)], iter([b"x"]), Path("/nowhere"))


def test_an_output_beside_an_input_of_a_similar_name_is_fine(tmp_path: Path) -> None:
    make(tmp_path, "scans/a.tif")
    assert len(found(tmp_path / "scans", out=tmp_path / "scans_out")) == 1


def test_a_link_or_a_list_that_leads_into_the_output_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "scans/a.tif", "out/masks/a.tif_mask.png")
    (tmp_path / "scans/results").symlink_to("../out/masks")
    with pytest.raises(UsageError, match="lies inside the output"):
        found(tmp_path / "scans", out=tmp_path / "out")
    for name in ("out/masks/a.tif_mask.png", "out"):
        with pytest.raises(UsageError, match="output"):
            listed(os.fsencode(tmp_path / name), out=str(tmp_path / "out"))


def test_listed_paths_keep_their_order_and_repeat_as_often_as_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "b.tif", "a.tif", "more/2.tif", "more/10.tif", "more/2_mask.tif")
    monkeypatch.chdir(tmp_path)
    entries = listed(b"b.tif", b"gone.tif", b"more/", b"a.tif", b"b.tif")
    shown = ["b.tif", "gone.tif", "more/2.tif", "more/10.tif", "a.tif", "b.tif"]
    assert [entry.image_path for entry in entries] == shown
    assert [entry.order for entry in entries] == sorted({entry.order for entry in entries})
    gone = entries[1]
    assert isinstance(gone, Unlisted)
    assert gone.failure.code == "not_found"


def test_masks_of_listed_paths_stay_below_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.tif", "here/b.tif")
    monkeypatch.chdir(tmp_path / "here")
    entries = listed(b"../a.tif", b"./b.tif", b"b.tif", os.fsencode(tmp_path / "a.tif"))
    stems = [entry.mask_stem for entry in entries if isinstance(entry, SourceFile)]
    assert stems == [b"_up/a.tif", b"b.tif", b"b.tif", b"_root" + os.fsencode(tmp_path / "a.tif")]
    entries = listed(os.fsencode(tmp_path / "a.tif"), b"b.tif")
    stems = [entry.mask_stem for entry in entries if isinstance(entry, SourceFile)]
    assert stems == [os.fsencode(tmp_path / "a.tif")[1:], b"_here/b.tif"]


def test_no_two_listed_files_share_a_mask_whatever_their_folders_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.tif", "in/a.tif", "in/_up/a.tif", "in/__up/a.tif", "in/_here/a.tif", "in/_root/a.tif")
    monkeypatch.chdir(tmp_path / "in")
    lines = [b"../a.tif", b"_up/a.tif", b"__up/a.tif", b"_here/a.tif", b"_root/a.tif", b"a.tif"]
    absolute = [os.fsencode(Path.cwd()) + b"/" + line for line in lines]
    for order in ([*lines, *absolute], [*absolute, *lines]):
        entries = listed(*order)
        stems = {entry.mask_stem for entry in entries if isinstance(entry, SourceFile)}
        assert len(stems) == len(entries) == 12
        assert not any(part in (b"..", b"") for stem in stems for part in stem.split(b"/"))


def test_a_listed_path_that_is_none_is_reported() -> None:
    entries = listed(b"a\0b.tif", b"x" * 5000)
    assert [entry.failure.code for entry in entries if isinstance(entry, Unlisted)] == ["bad_name", "io"]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\r\n\r\n\nb", [b"a", b"b"]),
        (b" a b \n\xff\n", [b" a b ", b"\xff"]),
        (b"a\nb\0c\r\0", [b"a\nb", b"c\r"]),
        (b"a\0", [b"a"]),
    ],
)
def test_a_list_is_split_at_newlines_or_zero_bytes(text: bytes, paths: list[bytes]) -> None:
    assert list(read_list(io.BytesIO(text))) == paths


@given(st.lists(st.binary(min_size=1).filter(lambda path: not set(path) & set(b"\0\r\n")), max_size=30))
def test_a_list_reads_back_either_way(paths: list[bytes]) -> None:
    assert list(read_list(io.BytesIO(b"".join(path + b"\n" for path in paths)))) == paths
    assert list(read_list(io.BytesIO(b"".join(path + b"\0" for path in paths)))) == paths


def test_a_long_list_is_read_as_it_is_used() -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return b"some/folder/slice.tif\n" * (size // 22)

    paths = list(itertools.islice(read_list(Endless()), 100_000))
    assert set(paths) == {b"some/folder/slice.tif"}


def test_a_list_of_a_windows_editor_is_read_or_refused() -> None:
    text = "scans/é.tif\r\nb.tif\r\n"
    assert list(read_list(io.BytesIO(text.encode("utf-8-sig")))) == ["scans/é.tif".encode(), b"b.tif"]
    for codec in ("utf-16-le", "utf-16-be"):
        with pytest.raises(UsageError, match="the list is UTF-16: save it as UTF-8"):
            list(read_list(io.BytesIO(f"\ufeff{text}".encode(codec))))


def test_something_that_is_no_list_is_refused() -> None:
    with pytest.raises(UsageError, match="not a list of paths"):
        list(read_list(io.BytesIO(b"x" * 200_000)))


@given(st.binary(max_size=12).map(lambda name: name.replace(b"\0", b"0")), st.binary(max_size=12))
def test_keys_sort_as_names_do(one: bytes, other: bytes) -> None:
    other = other.replace(b"\0", b"1")
    assert (natural_key(one) < natural_key(other)) == (natural(one) < natural(other))
    assert (natural_key(one) == natural_key(other)) == (one == other)


@given(st.lists(st.text("019a", min_size=1, max_size=5), max_size=12))
def test_keys_of_numbers_sort_as_names_do(names: list[str]) -> None:
    raw = [name.encode() for name in names]
    assert sorted(raw, key=natural_key) == sorted(raw, key=natural)


def key_as_first_written(name: bytes) -> bytes:
    """Keys stand in ledgers: these are what they stay."""
    zeros: list[bytes] = []

    def length(value: int) -> bytes:
        full, rest = divmod(value, 255)
        return b"\xff" * full + bytes((rest,))

    def number(match: re.Match[bytes]) -> bytes:
        value = match.group().lstrip(b"0")
        zeros.append(length(len(match.group()) - len(value)))
        return b"0" + length(len(value)) + value

    text = re.sub(rb"[0-9]+", number, name)
    return text + b"\0" + b"".join(zeros)


@given(st.binary(max_size=12) | st.text("019a.", max_size=12).map(str.encode), st.integers(0, 600))
def test_keys_are_what_they_always_were(name: bytes, digits: int) -> None:
    for each in (name, name + b"0" * digits, name + b"7" * digits + b".tif", b"0" * digits + b"1" * digits):
        assert natural_key(each) == key_as_first_written(each)


def kind_spelled_out(name: bytes) -> str:
    lower = name.lower()
    stem, ending = os.path.splitext(lower)  # noqa: PTH122 - the name is bytes
    if ending in endings.PICTURES:
        return "mask" if stem.endswith(b"_mask") else "picture"
    if lower.endswith(endings.NIFTI):
        return "mask" if stem.removesuffix(b".nii").endswith(b"_mask") else "nifti"
    if ending in endings.DICOM:
        return "dicom"
    return "perhaps" if ending[1:].isdigit() or not ending else "other"


pieces = (
    *endings.PICTURES,
    *endings.NIFTI,
    *endings.DICOM,
    b".",
    b"/",
    b"_mask",
    b"_MASK",
    b".TIF",
    b"tif",
    b"a",
    b"7",
)


@given(st.lists(st.sampled_from(pieces), max_size=5).map(b"".join))
@settings(max_examples=500)
def test_an_ending_tells_what_a_file_is(name: bytes) -> None:
    assert kind_of(name) == kind_spelled_out(name)


@pytest.mark.parametrize("typed", ["{}", "{}/", "{}/a/..", "."])
def test_files_that_are_looked_at_as_a_folder_are_what_each_is_by_itself(
    tmp_path: Path, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(
        tmp_path, "a/1.tif", "b.png/2.tif", "=3.png", "4.nii", "5.tif", os.fsdecode(b"\xff\xc3.tif"), "é.jpg"
    )
    (tmp_path / "link.tif").symlink_to("5.tif")
    (tmp_path / "nowhere.tif").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.tif")
    path = os.fsencode(typed.format(tmp_path).rstrip("/"))
    folder = Entry(path, path, b"stem", b"order", named=True)
    listing = list_folder(path)
    assert listing.odd == {b"a", b"4.nii"}
    together = list(Stretch(folder, listing.names, listing.odd).entries())
    one_by_one = list(folder.below(listing.names))
    assert [entry.order for entry in together] == [entry.order for entry in one_by_one]
    assert [isinstance(entry, SourceFile) for entry in together].count(True) == 5
    for entry, alone in zip(together, one_by_one, strict=True):
        assert entry == (
            alone.file(Path(os.fsdecode(alone.path)).stat()) if isinstance(entry, SourceFile) else alone
        )


@given(passed=st.lists(st.integers(0, 7), max_size=12), longest=st.integers(1, 7), singly=st.integers(1, 5))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_walk_in_stretches_leaves_out_what_is_passed_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, passed: list[int], longest: int, singly: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "stretches"
    if not root.exists():
        make(root, *(f"{number}.tif" for number in range(12)), "3a/x.png", "3b_mask.tif", "7.tif.d/y.png")
    discovery = Discovery([str(root)], None, Path("/nowhere"))
    whole = list(discovery)
    left, gone, pace = [], set(), iter(passed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stretches_module, "LONGEST", longest)
        patch.setattr(stretches_module, "GIVEN_SINGLY", singly)
        for entry in discovery.in_stretches():
            if isinstance(entry, Stretch):
                scored = entry.as_scored()
                entry.passed = min(next(pace, 0), len(scored))
                gone.update(order for order, *_ in scored[: entry.passed])
            else:
                left.append(entry)
    assert left == [entry for entry in whole if entry.order not in gone]
    assert discovery.skipped_masks == 1


def test_a_stretch_tells_what_is_known_of_its_files_up_to_what_is_none(tmp_path: Path) -> None:
    make(tmp_path, "1.tif", "2.tif", "3.tif", "4.tif")
    stretch = next(Discovery([str(tmp_path)], None, Path("/nowhere")).in_stretches())
    assert isinstance(stretch, Stretch)
    files = [entry for entry in found(tmp_path) if isinstance(entry, SourceFile)]
    assert len(files) == 4
    assert stretch.as_scored() == [
        Known(file.order, 0, file.image_path, file.volume, "ok", file.size, file.mtime_ns, 0)
        for file in files
    ]
    (tmp_path / "3.tif").unlink()
    assert len(stretch.as_scored()) == 2


@pytest.mark.parametrize("digits", [254, 255, 256, 600])
def test_very_long_numbers_are_numbers_too(digits: int) -> None:
    smaller, larger = b"9" * digits, b"1" + b"0" * digits
    assert natural_key(smaller) < natural_key(larger) < natural_key(b"0" + larger)


@given(trees.filter(lambda tree: tree is not None))
@settings(max_examples=60, deadline=None)
def test_a_tree_is_discovered_in_the_order_of_its_keys(tree: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = list(_grow(Path(folder), tree))
        entries = found(folder)
        expected = sorted(
            (path for path in paths if not path.name.endswith("_mask.png")),
            key=lambda path: [natural(os.fsencode(part)) for part in path.relative_to(folder).parts],
        )
        assert [os.fsencode(path) for path in expected] == [
            e.path for e in entries if isinstance(e, SourceFile)
        ]
        assert [entry.order for entry in entries] == sorted({entry.order for entry in entries})


def test_only_one_folder_is_held_at_a_time(tmp_path: Path) -> None:
    for folder in range(60):
        make(tmp_path, *(f"patient_{folder}/slice_{number}.tif" for number in range(40)))
    discovery = Discovery([str(tmp_path)], None, Path("/nowhere"))
    sum(1 for _ in discovery)
    tracemalloc.start()
    count = sum(1 for _ in discovery)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 2400
    assert peak < 100 * 1024


@pytest.fixture
def locked_tree() -> Iterator[Path]:
    """A folder that this process may read, root or not, with one that it may not."""
    with tempfile.TemporaryDirectory() as folder:
        root = make(Path(folder), "a.png", "locked/b.png", "z.png")
        root.chmod(0o755)
        (root / "locked").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        yield root
        os.seteuid(user)
        (root / "locked").chmod(0o755)


def _grow(folder: Path, tree: dict[str, object]) -> Iterator[Path]:
    for name, below_it in tree.items():
        if isinstance(below_it, dict):
            (folder / name).mkdir()
            yield from _grow(folder / name, below_it)
        elif not (folder / f"{name}.png").exists():
            (folder / f"{name}.png").write_bytes(b"x")
            yield folder / f"{name}.png"
