"""Where shards of object stores are copied to while they are merged."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import UsageError
from engine.merge.copies import copies_in


def test_two_merges_at_once_into_one_folder_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    with copies_in(out) as copies:
        copies.claim()
        (out / ".shards").mkdir()
        refusal = r"merged: another merge \(process \d+ on .*\) is writing here"
        with pytest.raises(UsageError, match=refusal), copies_in(out):
            pass
        assert (out / ".shards").is_dir()
    assert not out.exists()


def test_what_a_killed_merge_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".shards" / "0").mkdir(parents=True)
    with copies_in(tmp_path):
        assert not (tmp_path / ".shards").exists()
    assert list(tmp_path.iterdir()) == []
