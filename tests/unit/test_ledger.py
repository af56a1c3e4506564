"""The ledger: what it keeps, whom it refuses, and what a kill leaves."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.disk import flush_all
from engine.errors import MachineError, UsageError
from engine.ledger import Counts, Known, Ledger, SliceRow, Status
from engine.ledger_readers import stored_identity, stored_rows
from engine.ledger_rows import KnownRow

IDENTITY = {"bundle": "ab" * 32, "gate_threshold": 0.5, "precision": "fp32"}


def scored(order: bytes, slice_: int = 0, has_mask: int = 1) -> SliceRow:
    return SliceRow(
        order=order,
        slice=slice_,
        volume="data/patient",
        image_path=f"data/patient/{order.hex()}.tif",
        status="ok",
        size=196_608,
        mtime_ns=1_700_000_000_123_456_789,
        tumor_probability=0.75,
        has_mask=has_mask,
        mask_path="masks/patient/x_mask.png" if has_mask else "",
        mask_pixels=9 if has_mask else 0,
        mask_fraction=9 / 65_536 if has_mask else 0.0,
        bbox_x=1 if has_mask else None,
        bbox_y=2 if has_mask else None,
        bbox_w=3 if has_mask else None,
        bbox_h=3 if has_mask else None,
    )


def quarantined(order: bytes, slice_: int = 0, transient: bool = False) -> SliceRow:
    return SliceRow(
        order, slice_, "data", f"data/{order.hex()}.tif", "quarantined", 0, 7,
        stage="decode", code="truncated", message="ends early", transient=transient,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "run.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path, IDENTITY, fresh=False) as opened:
        yield opened


def test_rows_come_back_as_they_were_committed_and_in_order(ledger: Ledger) -> None:
    rows = [quarantined(b"b", 1, transient=True), scored(b"c"), scored(b"a", has_mask=0), scored(b"b", 0)]
    ledger.commit(rows)
    assert list(ledger.rows(batch=1)) == sorted(rows, key=lambda row: (row.order, row.slice))
    assert ledger.counts() == Counts(ok=3, quarantined=1, has_mask=2)


def test_an_empty_ledger_counts_nothing(ledger: Ledger) -> None:
    assert ledger.counts() == Counts(0, 0, 0)
    assert list(ledger.rows()) == []
    assert ledger.known(b"", 10) == []


def test_a_page_of_known_slices_never_splits_a_file(ledger: Ledger) -> None:
    ledger.commit([scored(b"a"), *(scored(b"b", number) for number in range(5)), scored(b"c")])
    first = ledger.known(b"", 2)
    assert [known[:2] for known in first] == [(b"a", 0), *((b"b", n) for n in range(5))]
    assert [order for order, *_ in ledger.known(first[-1][0], 2)] == [b"c"]


def test_a_forgotten_file_loses_all_its_slices(ledger: Ledger) -> None:
    ledger.commit([scored(b"a"), scored(b"b", 0), scored(b"b", 1)])
    ledger.forget([b"b", b"never seen"])
    assert [order for order, *_ in ledger.known(b"", 10)] == [b"a"]


def test_notes_survive_closing_and_opening(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        assert ledger.get_meta("seconds") is None
        ledger.set_meta("seconds", 1.5)
        ledger.set_meta("seconds", 2.5)
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        assert ledger.get_meta("seconds") == 2.5


def test_a_note_that_was_damaged_is_as_good_as_none(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.set_meta("seconds", 1.5)
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE meta SET value = CAST(x'ff41' AS TEXT) WHERE key = 'seconds'")
        connection.close()
        assert ledger.get_meta("seconds") is None
        ledger.set_meta("seconds", 2.5)
        assert ledger.get_meta("seconds") == 2.5


def test_nothing_but_the_ledger_stays_in_the_folder(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(b"a")])
    assert [entry.name for entry in path.parent.iterdir()] == ["run.sqlite"]


def test_a_reader_between_pages_blocks_no_commit(ledger: Ledger) -> None:
    ledger.commit([scored(bytes([number])) for number in range(1, 9)])
    reading = ledger.rows(batch=2)
    next(reading)
    other = threading.Thread(target=ledger.commit, args=([scored(b"z")],))
    other.start()
    other.join(timeout=20)
    assert not other.is_alive()
    assert [row.order for row in reading][-1] == b"z"


def test_threads_commit_and_read_at_once(ledger: Ledger) -> None:
    def commit(first: int) -> None:
        for number in range(first, 40, 4):
            ledger.commit([scored(number.to_bytes(2, "big"), slice_) for slice_ in range(3)])
            ledger.known(b"", 5)

    threads = [threading.Thread(target=commit, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.counts().ok == 120


orders = st.binary(min_size=1, max_size=3)
statuses: st.SearchStrategy[Status] = st.sampled_from(["ok", "quarantined"])
any_row = st.builds(
    SliceRow,
    order=orders,
    slice=st.integers(0, 3),
    volume=st.text(max_size=5),
    image_path=st.text(max_size=8),
    status=statuses,
    size=st.integers(0, 2**62),
    mtime_ns=st.integers(-(2**62), 2**62),
    tumor_probability=st.none() | st.floats(0, 1, width=32),
    has_mask=st.none() | st.integers(0, 1),
    message=st.text(max_size=8),
    transient=st.booleans(),
)
actions = st.lists(
    st.tuples(st.just("commit"), st.lists(any_row, max_size=6))
    | st.tuples(st.just("forget"), st.lists(orders, max_size=3))
    | st.tuples(st.just("reopen"), st.just([])),
    max_size=10,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=actions, limit=st.integers(1, 4))
def test_any_history_leaves_what_a_dict_would_hold(
    actions: list[tuple[str, list[SliceRow]] | tuple[str, list[bytes]]], limit: int
) -> None:
    model: dict[tuple[bytes, int], SliceRow] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.sqlite"
        ledger = Ledger.open(path, IDENTITY, fresh=False)
        for action, values in actions:
            if action == "commit":
                rows = [value for value in values if isinstance(value, SliceRow)]
                ledger.commit(rows)
                model.update({(row.order, row.slice): row for row in rows})
            elif action == "forget":
                gone = {value for value in values if isinstance(value, bytes)}
                ledger.forget(gone)
                model = {key: row for key, row in model.items() if key[0] not in gone}
            else:
                ledger.close()
                ledger = Ledger.open(path, IDENTITY, fresh=False)
        expected = [model[key] for key in sorted(model)]
        with ledger:
            assert list(ledger.rows(batch=limit)) == expected
            paged: list[KnownRow] = []
            while page := ledger.known(paged[-1][0] if paged else b"", limit):
                paged += page
            assert paged == [
                Known(**{name: getattr(row, name) for name in Known._fields}) for row in expected
            ]
            assert ledger.counts() == Counts(
                ok=sum(row.status == "ok" for row in expected),
                quarantined=sum(row.status == "quarantined" for row in expected),
                has_mask=sum(row.has_mask == 1 for row in expected),
            )


def test_another_identity_is_refused_with_every_difference_named(path: Path) -> None:
    Ledger.open(path, IDENTITY, fresh=False).close()
    changed = {"bundle": "ab" * 32, "gate_threshold": 0.4, "mask_threshold": 0.6}
    with pytest.raises(UsageError) as caught:
        Ledger.open(path, changed, fresh=False)
    assert str(caught.value) == (
        f"{path.parent} holds a run with other options (gate_threshold: 0.5 there, 0.4 now; "
        'mask_threshold: unset there, 0.6 now; precision: "fp32" there, unset now): '
        "repeat those, give another --out, or start over with --fresh"
    )
    assert stored_identity(path) == IDENTITY


def test_an_identity_is_compared_as_json(path: Path) -> None:
    Ledger.open(path, {"size": (256, 256)}, fresh=False).close()
    Ledger.open(path, {"size": [256, 256]}, fresh=False).close()


def test_fresh_starts_over_with_a_new_identity(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(b"a")])
    with Ledger.open(path, {"precision": "bf16"}, fresh=True) as ledger:
        assert ledger.counts().ok == 0
    assert stored_identity(path) == {"precision": "bf16"}


def test_the_identity_is_read_beside_a_running_run_and_changes_nothing(path: Path) -> None:
    assert stored_identity(path) is None
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(b"a")])
        before = path.read_bytes()
        assert stored_identity(path) == IDENTITY
        assert path.read_bytes() == before


def test_an_empty_file_is_a_new_ledger(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert stored_identity(path) is None
    Ledger.open(path, IDENTITY, fresh=False).close()
    assert stored_identity(path) == IDENTITY


def foreign_text(path: Path) -> None:
    path.write_text("volume,image_path\n" * 100)


def foreign_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE birds (name)")
    connection.close()


def other_format(path: Path) -> None:
    Ledger.open(path, IDENTITY, fresh=False).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def cut_short(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(number.to_bytes(2, "big")) for number in range(500)])
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil", [foreign_text, foreign_database, other_format, cut_short])
def test_a_file_that_is_no_good_ledger_is_refused_untouched_and_fresh_starts_over(path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    path.parent.mkdir()
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"run\.sqlite: .*--fresh starts over"):
        Ledger.open(path, IDENTITY, fresh=False)
    with pytest.raises(UsageError, match=r"run\.sqlite: .*--fresh starts over"):
        stored_identity(path)
    assert path.read_bytes() == before
    with Ledger.open(path, IDENTITY, fresh=True) as ledger:
        assert ledger.counts() == Counts(0, 0, 0)


def test_damage_within_the_file_is_found_when_it_is_opened_and_said(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(number.to_bytes(2, "big")) for number in range(500)])
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 20_000)
    with pytest.raises(UsageError, match=r"run\.sqlite: is damaged.*--fresh starts over"):
        Ledger.open(path, IDENTITY, fresh=False)


def test_a_ledger_that_also_holds_what_a_stranger_put_there_is_refused(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(b"a")])
    connection = sqlite3.connect(path)
    connection.execute("CREATE TRIGGER more AFTER INSERT ON slices BEGIN DELETE FROM slices; END")
    connection.close()
    with pytest.raises(UsageError, match="its tables are not those of a ledger"):
        Ledger.open(path, IDENTITY, fresh=False)


@pytest.mark.parametrize(
    "change",
    [
        "tumor_probability = 0.25",
        "volume = CAST(x'ff41' AS TEXT)",
        "mask_path = ''",
        "checksum = 7",
        "has_mask = NULL",
    ],
)
def test_a_row_that_is_not_what_was_written_is_told_from_its_neighbours(path: Path, change: str) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(b"a"), scored(b"b"), scored(b"c")])
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE slices SET {change} WHERE ord = x'62'")
    connection.commit()
    connection.close()
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        assert ledger.damaged() == {b"b"}
        assert [*map(ledger.is_damaged, (b"a", b"b", b"c", b"none"))] == [False, True, False, False]
        assert [order for order, *_ in ledger.known(b"", 10)] == [b"a", b"b", b"c"]
        with pytest.raises(MachineError, match="damaged meanwhile: run the same command again"):
            list(ledger.rows())


@pytest.mark.parametrize("change", ["volume = 'x'", "volume = CAST(x'ff41' AS TEXT)"])
def test_who_reads_a_ledger_from_beside_may_pass_over_damaged_rows(path: Path, change: str) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(b"a"), scored(b"b"), scored(b"c")])
        with sqlite3.connect(path) as connection:
            connection.execute(f"UPDATE slices SET {change} WHERE ord = x'62'")
        connection.close()
    assert [row.order for row in stored_rows(path, skips_damaged=True)] == [b"a", b"c"]
    with pytest.raises(MachineError, match="a row is damaged: `tumorscan score` of the same run scores"):
        list(stored_rows(path))


def test_damaged_rows_that_are_met_when_tables_are_written_are_scored_again_by_the_next_run(
    path: Path,
) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(bytes((number,)), slice_) for number in range(1, 30) for slice_ in (0, 1)])
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE slices SET mask_path = 'x' WHERE ord IN (x'05', x'14') AND slice = 1")
        connection.close()
        with pytest.raises(MachineError, match="damaged meanwhile: run the same command again"):
            list(ledger.rows(batch=4))
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        assert {row.order[0] for row in ledger.rows()} == set(range(1, 30)) - {0x05, 0x14}


def test_rows_are_committed_while_all_are_looked_through(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.ledger._LOOKED_THROUGH_AT_ONCE", 1)
    ledger.commit([scored(b"a%03d" % number) for number in range(300)])
    with ThreadPoolExecutor(1) as pool:
        damaged = pool.submit(ledger.damaged)
        for number in range(40):
            ledger.commit([scored(b"b%03d" % number)])
            ledger.forget([b"a%03d" % number])
        assert damaged.result() == set()
    assert ledger.counts().ok == 300
    assert ledger.damaged() == set()


def test_a_row_whose_key_was_damaged_is_found_wherever_it_lies(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(b"row%02d" % number) for number in range(50)])
    data = path.read_bytes()
    for found, left in ((b"row07", b"row99"), (b"row31", b"\x00ow31"), (b"row49", b"bow49")):
        assert data.count(found + b"data") == 1
        data = data.replace(found + b"data", left + b"data")
    path.write_bytes(data)
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        assert ledger.damaged() == {b"row99", b"\x00ow31", b"bow49"}


STACKER = """
import sys
from pathlib import Path
from engine.errors import MachineError
from engine.ledger import Ledger
with Ledger.open(Path(sys.argv[1]), {}, fresh=False) as ledger:
    ledger._connection.execute("PRAGMA temp.cache_size = 1")
    try:
        ledger.stack()
    except MachineError as error:
        print(error)
"""


def test_a_disk_without_room_for_temporary_tables_is_named(path: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount")
    try:
        with Ledger.open(path, {}, fresh=False) as ledger:
            ledger.commit([scored(b"%04d" % number * 100) for number in range(2000)])
        said = subprocess.run(
            [sys.executable, "-c", STACKER, str(path)],
            env={**os.environ, "SQLITE_TMPDIR": str(small)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    finally:
        subprocess.run(["umount", small], check=True)
    assert said.startswith(f"{small}: the disk is full (")


def test_an_identity_that_is_not_what_was_written_is_damage(path: Path) -> None:
    Ledger.open(path, IDENTITY, fresh=False).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = replace(value, '0.5', '0.4')")
    connection.commit()
    connection.close()
    with pytest.raises(UsageError, match=r"is damaged.*names no run.*--fresh"):
        Ledger.open(path, {**IDENTITY, "gate_threshold": 0.4}, fresh=False)


def test_a_commit_that_the_disk_fails_for_a_moment_is_made_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        path.with_name("run.sqlite-journal").mkdir()  # SQLite cannot make its journal
        threading.Timer(1.0, path.with_name("run.sqlite-journal").rmdir).start()
        ledger.commit([scored(b"a")])
        assert [row.order for row in ledger.rows()] == [b"a"]


def test_files_that_rows_speak_of_are_flushed_before_the_rows_are_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = path.parent / "masks"
    flushed: list[tuple[Path, int]] = []
    with Ledger.open(path, IDENTITY, fresh=False, folders=(masks, path.parent / "none")) as ledger:
        monkeypatch.setattr("engine.disk.flush", lambda folder: flushed.append((folder, ledger.counts().ok)))
        masks.mkdir()
        ledger.commit([scored(b"a", has_mask=0)])
        ledger.commit([scored(b"b")])
    assert flushed == [(masks, 1)]


def test_a_folder_that_its_disk_cannot_even_look_at_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 300)
    with pytest.raises(OSError, match="too long"):
        folder.is_dir()
    with pytest.raises(MachineError, match=r"cannot be written \(File name too long\): give --out a folder"):
        flush_all([folder])


def test_a_second_run_is_refused_at_once_and_names_the_first(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False):
        started = time.monotonic()
        with pytest.raises(UsageError, match=rf"another run \(process {os.getpid()} on .+\) is writing here"):
            Ledger.open(path, IDENTITY, fresh=True)
        assert time.monotonic() - started < 10
    Ledger.open(path, IDENTITY, fresh=False).close()


def test_a_lost_start_lets_the_next_run_in(path: Path) -> None:
    Ledger.open(path, IDENTITY, fresh=False).close()
    with pytest.raises(UsageError, match="other options"):
        Ledger.open(path, {}, fresh=False)
    Ledger.open(path, IDENTITY, fresh=False).close()


HOLDER = """
import sys
from pathlib import Path
from engine.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]), {}, fresh=False)
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_free(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"process {holder.pid} on "):
            Ledger.open(path, {}, fresh=False)
        holder.kill()
    assert path.with_name("run.lock").exists()
    Ledger.open(path, {}, fresh=False).close()
    assert not path.with_name("run.lock").exists()


COMMITTER = """
import itertools, sys
from pathlib import Path
from engine.ledger import Ledger, SliceRow
ledger = Ledger.open(Path(sys.argv[1]), {"a": 1}, fresh=False)
start = ledger.counts().ok // 50
for batch in itertools.count(start):
    ledger.commit([
        SliceRow((batch * 50 + n).to_bytes(4, "big"), 0, "v", "p" * 300, "ok", 1, 2) for n in range(50)
    ])
    if batch == start:
        print("started", flush=True)
"""


def test_a_killed_run_leaves_whole_transactions_only(path: Path) -> None:
    for delay in (0.02, 0.05, 0.11, 0.2):
        with subprocess.Popen(
            [sys.executable, "-c", COMMITTER, str(path)], stdout=subprocess.PIPE
        ) as committer:
            assert committer.stdout is not None
            assert committer.stdout.readline() == b"started\n"
            time.sleep(delay)
            committer.send_signal(signal.SIGKILL)
        assert stored_identity(path) == {"a": 1}
        with Ledger.open(path, {"a": 1}, fresh=False) as ledger:
            numbers = [int.from_bytes(row.order, "big") for row in ledger.rows()]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) % 50 == 0
    assert numbers


KILLED_WITHIN = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 2")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE slices SET volume = 'torn'")
connection.execute("UPDATE meta SET value = '{}'")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_transaction_that_was_killed_half_written_is_rolled_back(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(number.to_bytes(2, "big")) for number in range(500)])
    subprocess.run([sys.executable, "-c", KILLED_WITHIN, str(path)], check=False)
    assert path.with_name("run.sqlite-journal").exists()
    assert stored_identity(path) == IDENTITY
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        assert {row.volume for row in ledger.rows()} == {"data/patient"}


def test_fresh_after_a_kill_is_not_spoiled_by_the_old_journal(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(number.to_bytes(2, "big")) for number in range(500)])
    subprocess.run([sys.executable, "-c", KILLED_WITHIN, str(path)], check=False)
    with Ledger.open(path, {"new": True}, fresh=True) as ledger:
        assert list(ledger.rows()) == []
    assert stored_identity(path) == {"new": True}


def test_an_output_that_is_a_file_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match="out: is not a folder"):
        Ledger.open(tmp_path / "out" / "run.sqlite", {}, fresh=False)


def test_a_place_that_cannot_be_written_is_named() -> None:
    with pytest.raises(MachineError, match=r"^/proc/tumorscan: cannot be written"):
        Ledger.open(Path("/proc/tumorscan/run.sqlite"), {}, fresh=False)


def test_a_full_disk_is_said_and_what_was_committed_stays(small_disk: Path) -> None:
    path = small_disk / "run.sqlite"
    committed = 0

    def fill(ledger: Ledger) -> None:
        nonlocal committed
        for batch in range(1_000):
            ledger.commit([scored((batch * 50 + n).to_bytes(4, "big")) for n in range(50)])
            committed += 50

    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        with pytest.raises(MachineError, match=r"small: the disk is full \([\d,]+ bytes free\)"):
            fill(ledger)
        assert 0 < committed == ledger.counts().ok
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        assert ledger.counts().ok == committed


def test_a_read_only_disk_is_said(small_disk: Path) -> None:
    path = small_disk / "run.sqlite"
    Ledger.open(path, IDENTITY, fresh=False).close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(MachineError, match=r"run\.lock: cannot be written \(Read-only file system\)"):
        Ledger.open(path, IDENTITY, fresh=False)
    assert stored_identity(path) == IDENTITY


def test_rows_are_given_volume_by_volume_in_the_order_of_their_first_slices(ledger: Ledger) -> None:
    # A folder's slices lie around those of its subfolders, and those of a list anywhere.
    at = {b"a": "top", b"b": "top/z", b"c": "top/z", b"d": "top", b"e": "list", b"f": "top/z", b"g": "top"}
    rows = {order: dataclasses.replace(scored(order), volume=volume) for order, volume in at.items()}
    ledger.commit(list(rows.values()))
    ledger.stack()
    assert list(ledger.volumes(batch=1)) == ["top", "top/z", "list"]
    assert list(ledger.rows_of("top", batch=2)) == [rows[b"a"], rows[b"d"], rows[b"g"]]
    assert list(ledger.rows_of("top/z")) == [rows[b"b"], rows[b"c"], rows[b"f"]]
    assert list(ledger.rows_of("nowhere")) == []


def test_volumes_are_those_of_the_last_sorting(ledger: Ledger) -> None:
    ledger.commit([scored(b"a")])
    ledger.stack()
    ledger.commit([dataclasses.replace(scored(b"b"), volume="later")])
    assert list(ledger.volumes()) == ["data/patient"]
    ledger.stack()
    assert list(ledger.volumes()) == ["data/patient", "later"]


def test_overruled_rows_are_given_instead_and_forgotten_with_the_ledger(path: Path) -> None:
    rows = [scored(bytes([number])) for number in range(1, 8)]
    other = dataclasses.replace(rows[3], has_mask=0, mask_path="")
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit(rows)
        ledger.overrule([dataclasses.replace(other, mask_pixels=5)])
        ledger.overrule([other])
        assert list(ledger.rows(batch=2)) == [*rows[:3], other, *rows[4:]]
        ledger.stack()
        assert list(ledger.rows_of("data/patient")) == rows
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        assert list(ledger.rows()) == rows


def test_a_ledger_of_an_earlier_format_is_refused_with_both_formats(path: Path) -> None:
    with Ledger.open(path, IDENTITY, fresh=False) as ledger:
        ledger.commit([scored(b"a")])
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(UsageError, match="has ledger format 2, this version reads 3: --fresh starts over"):
        Ledger.open(path, IDENTITY, fresh=False)
