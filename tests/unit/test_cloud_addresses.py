"""Addresses are told from paths, and those that are none of ours are refused without being shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.cloud.addresses import Address, as_typed, is_address, local, longest_name, of_path, plain
from engine.errors import UsageError
from engine.sources.discovery import Discovery


@pytest.mark.parametrize("path", ["data", "/data", "./s3", "a b/c:d", "C:", "", "-", "s3:/x", "x://"[:2]])
def test_a_path_stays_as_it_is(path: str) -> None:
    assert plain(path) == path
    assert not is_address(path)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("s3://b", "s3://b"),
        ("S3://b/x/", "s3://b/x"),
        ("gs://b/ü/y", "gs://b/ü/y"),
        ("s3://b/a b?c#d@e", "s3://b/a b?c#d@e"),
    ],
)
def test_addresses_lose_the_slashes_at_their_end(typed: str, meant: str) -> None:
    assert plain(typed) == meant
    assert is_address(meant)
    assert is_address(meant.encode())


@pytest.mark.parametrize("typed", ["file:///data/x", "file://localhost/data/x"])
def test_file_addresses_are_paths(typed: str) -> None:
    assert plain(typed) == "/data/x"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("az9://box/x", "az9://: an address of an unknown kind"),
        ("https://b.s3.amazonaws.com/x?X-Amz-Signature=5ecret", "https://: an address of an unknown kind"),
        ("s3://", "no address of a bucket"),
        ("s3:///x", "no address of a bucket"),
        ("s3://KEY:5ecret@b/x", "keys and passwords belong into the environment"),
        ("file://far/x", "only whole paths of this machine"),
    ],
)
def test_what_is_no_address_of_ours_is_refused_and_its_secrets_are_not_shown(typed: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        plain(typed)
    assert "5ecret" not in str(caught.value)
    with pytest.raises(UsageError, match=says):
        Discovery((typed,), None, None)


def test_an_address_is_recognised_where_a_path_has_lost_a_slash_of_it() -> None:
    assert of_path(Path("s3://b/x/")) == Address("s3", "b/x")
    assert of_path(Path("out")) is None
    assert as_typed(Path("gs://b/x")) == "gs://b/x"
    assert as_typed(Path("out/x")) == "out/x"
    assert local(Path("file:///data/x")) == Path("/data/x")
    assert local(Path("out")) == Path("out")
    with pytest.raises(UsageError, match="az9://: an address of an unknown kind"):
        of_path(Path("az9://box/x"))


def test_the_longest_name_leaves_room_for_the_folder() -> None:
    assert longest_name(Address("s3", "b/ü")) == 1024 - len("ü/".encode())


def test_an_output_around_an_input_in_a_store_is_refused_and_a_disk_is_elsewhere() -> None:
    with pytest.raises(UsageError, match="the output 's3://b/x/out' lies inside the input 's3://b/x'"):
        Discovery(("s3://b/x",), None, Path("s3://b/x/out"))
    with pytest.raises(UsageError, match="lies inside the output"):
        Discovery(("s3://b/x/in",), None, Path("s3://b/x"))
    Discovery(("s3://b/x",), None, Path("s3://b/x-out"))
    Discovery(("s3://b/x",), None, Path("s3:b"))


def test_other_commands_read_disks_only() -> None:
    with pytest.raises(UsageError, match="s3://b/x: read by `tumorscan score` only: copy it to a disk"):
        list(Discovery(("s3://b/x",), None, None))
