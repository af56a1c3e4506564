"""Pseudonyms: kept by a key, of whole paths, for every word of a command line that names something."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import MachineError, UsageError
from engine.ledger import SliceRow
from engine.outputs.pseudonyms import WITHHELD, Pseudonyms


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    first = Pseudonyms.open(tmp_path / "private")
    assert Pseudonyms.open(tmp_path / "private") == first
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "private" / "key").stat().st_mode & 0o777 == 0o600
    other = Pseudonyms.open(tmp_path / "other")
    assert other.of("a") != first.of("a")
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"G" * 64])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match="is no key"):
        Pseudonyms.open(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(b"")
    with pytest.raises((UsageError, MachineError), match="--anonymise"):
        Pseudonyms.open(tmp_path / "private")


def test_equal_names_in_two_folders_have_two_pseudonyms_and_a_folder_has_one() -> None:
    names = Pseudonyms(b"k" * 32)
    one, other = names.of_path("data/p1/scan.tif"), names.of_path("data/p2/scan.tif")
    assert one.split("/")[0] == other.split("/")[0]
    assert one.split("/")[1:] != other.split("/")[1:]
    assert one.rpartition("/")[2] != other.rpartition("/")[2]
    assert names.of_path("data/p1") == one.rpartition("/")[0]
    assert names.of_stem(b"data/p1/\xff").startswith(names.of_path("data/p1").encode())


def test_a_row_keeps_its_findings_and_loses_its_names() -> None:
    row = SliceRow(
        b"\1",
        3,
        "data/p",
        "data/p/jane.tif",
        "quarantined",
        7,
        9,
        stage="decode",
        code="truncated",
        message="jane",
    )
    seen = Pseudonyms(b"k" * 32).of_row(row)
    assert "jane" not in f"{seen.volume}{seen.image_path}{seen.message}"
    assert (seen.message, seen.code, seen.slice) == (WITHHELD, "truncated", 3)


def test_a_command_line_keeps_its_options_and_plain_values() -> None:
    names = Pseudonyms(b"k" * 32)
    words = [
        "score",
        "data/jane",
        "--out",
        "jane",
        "--threshold=0.5",
        "--bundle=/home/jane/b",
        "--components",
        "0.5ml",
        "-q",
    ]
    hidden = names.of_arguments(words)
    assert "jane" not in " ".join(hidden)
    assert [hidden[place] for place in (0, 2, 4, 6, 7, 8)] == [
        "score",
        "--out",
        "--threshold=0.5",
        "--components",
        "0.5ml",
        "-q",
    ]
    assert hidden[5].startswith("--bundle=")


def test_a_uid_becomes_a_uid() -> None:
    uid = Pseudonyms(b"k" * 32).of_uid("1.2.840.1")
    assert uid.startswith("2.25.")
    assert len(uid) <= 64
