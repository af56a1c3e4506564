"""Runs that read from and write into a real S3 server, in good and in bad hours."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import engine.cloud.lock
import engine.cloud.store
from engine.cloud.addresses import Address
from engine.cloud.ahead import Ahead
from engine.cloud.desk import desk_folder
from engine.cloud.lock import StoreLock
from engine.cloud.record import Part, Record
from engine.cloud.scattered import token_in
from engine.cloud.store import Store, Stores
from engine.errors import MachineError, UsageError
from engine.merge import Merged, merge
from engine.merge import Options as Merging
from engine.outputs.components import Rule
from engine.rows import RowWriter
from engine.scoring import score, survey
from engine.sources.entries import SourceFile, Unlisted
from engine.sources.shards import Shard
from engine.sources.volumes import alone
from engine.stop import StoppedError
from tests.badfiles import tiff
from tests.cloudruns import QUICK, Cloud, as_a_user, empty_disk, make_cloud
from tests.dicomseries import DIRECTIONS, series
from tests.flakyproxy import Fault, Proxy, Request, flaky_proxy
from tests.runs import command, environment, tumorscan
from tests.s3server import (
    BUCKET,
    DENIED_KEY,
    DENIED_SECRET,
    KEY,
    READER_KEY,
    READER_SECRET,
    SECRET,
    s3_server,
)

pytest.importorskip("s3fs")

SLICES = 34


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    with s3_server(folder / "server") as server:
        yield make_cloud(server, folder, SLICES)


@pytest.fixture
def cloud(stored: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cloud:
    as_a_user(stored, monkeypatch, tmp_path)
    return stored


@pytest.fixture
def proxy(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What stands between every client of the test and the server."""
    with flaky_proxy(cloud.server.port) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
        yield found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.cloud.store, "PATIENCE_S", QUICK)


def test_slices_from_a_store_give_what_slices_from_a_disk_give(cloud: Cloud, tmp_path: Path) -> None:
    outcome = cloud.score(cloud.data, tmp_path / "out")

    assert outcome.finished
    assert (outcome.skipped_masks, outcome.skipped_other) == (0, 2)
    cloud.expect(tmp_path / "out", cloud.data)


def test_results_in_a_store_are_those_on_a_disk_and_say_where_they_are(cloud: Cloud) -> None:
    out = cloud.new()
    outcome = cloud.score("data", out)

    assert outcome.place == out
    cloud.expect(out, "data")
    left = {name.split("/")[0] for name in cloud.server.below(out)}
    assert left == {
        "results.csv", "errors.csv", "volumes.csv", "run.json", "run.sqlite", "masks", "ledger",
    }  # fmt: skip


def test_file_addresses_are_paths(cloud: Cloud, tmp_path: Path) -> None:
    cloud.score(f"file://{cloud.folder}/data", Path(f"file://{tmp_path}/out"))

    cloud.expect(tmp_path / "out", f"{cloud.folder}/data")


def test_through_delays_failures_and_cuts_a_run_comes_to_the_same(cloud: Cloud, proxy: Proxy) -> None:
    def judge(request: Request) -> Fault:
        return {0: "slow_down", 3: "cut", 6: "refuse"}.get(request.number % 9, "")  # type: ignore[return-value]

    proxy.delay, proxy.judge = 0.02, judge
    out = cloud.new()
    outcome = cloud.score(cloud.data, out)

    assert outcome.counts.quarantined == 2
    cloud.expect(out, cloud.data)


def test_objects_are_fetched_at_once(cloud: Cloud, proxy: Proxy, tmp_path: Path) -> None:
    proxy.delay = 0.3
    most = 0

    def judge(request: Request) -> Fault:
        nonlocal most
        most = max(most, len(proxy.seen) - request.number + 1)
        return ""

    proxy.judge = judge
    cloud.score(cloud.data, tmp_path / "out")

    assert most > 10


MOMENTS = ("masks/p1", "part-00000001", "results.csv")
"""Writes at which a run is killed: of a transaction's files, of its rows, of the tables."""


def run_until(fatal: Callable[[Request], bool], proxy: Proxy, cloud: Cloud, out: str) -> int:
    """The exit status of the command, which is killed at the first request that is `fatal`."""
    dead = threading.Event()

    def judge(request: Request) -> Fault:
        if not dead.is_set() and fatal(request):
            dead.set()
            process.kill()
        return "refuse" if dead.is_set() else ""

    words = command("score", cloud.data, "--out", out, "--bundle", "bundle", "--backend", "onnxruntime")
    proxy.judge = judge
    process = subprocess.Popen([*words, "--quiet", "--batch", "2"], env=environment())
    status = process.wait(300)
    proxy.judge = lambda _: ""
    return status


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_is_continued_from_an_empty_disk_to_the_same_bytes(
    cloud: Cloud, proxy: Proxy, tmp_path: Path, moment: str
) -> None:
    out = cloud.new()
    cloud.score(cloud.data, out, limit=10)

    def fatal(request: Request) -> bool:
        return request.method == "PUT" and moment in request.path and "/out-" in request.path

    assert run_until(fatal, proxy, cloud, out) == -9
    empty_disk(tmp_path)
    outcome = cloud.score(cloud.data, out)
    assert outcome.finished
    cloud.expect(out, cloud.data)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_again_and_again_comes_to_the_same_bytes(
    cloud: Cloud, proxy: Proxy, tmp_path: Path, seed: int
) -> None:
    chance, out = random.Random(seed), cloud.new()
    hits = 0
    for _ in range(6):
        last = len(proxy.seen) + chance.randrange(5, 90)
        hits += run_until(lambda request, last=last: request.number >= last, proxy, cloud, out) == -9
        if chance.random() < 0.5:
            empty_disk(tmp_path)
    assert hits >= 3

    cloud.score(cloud.data, out)
    cloud.expect(out, cloud.data)


def test_what_a_transaction_left_without_its_part_is_deleted(cloud: Cloud) -> None:
    out = cloud.new()
    cloud.score("data", out, limit=10)
    files, bucket_out = cloud.server.files, out.removeprefix("s3://")
    stray = "masks/p0/gone.tif_mask.png"
    files.pipe_file(f"{bucket_out}/{stray}", b"of a slice that is gone")
    files.pipe_file(f"{bucket_out}/ledger/intent.json", json.dumps({"part": 1, "files": [stray]}).encode())

    cloud.score("data", out)
    cloud.expect(out, "data")


def test_what_workers_of_a_killed_run_left_without_rows_is_deleted(cloud: Cloud) -> None:
    out = cloud.new()
    cloud.score("data", out, limit=10)
    files, bucket_out = cloud.server.files, out.removeprefix("s3://")
    for stray in ("masks/p0/gone.tif_mask.png", "masks/p0/gone.tif/001_mask.png"):
        files.pipe_file(f"{bucket_out}/{stray}", b"of a slice that is gone")
    stems = [b"p0/gone.tif".hex(), b"p0/s_0.tif".hex()]  # this one has its row
    files.pipe_file(f"{bucket_out}/ledger/units/00000003.json", json.dumps(stems).encode())

    cloud.score("data", out)
    cloud.expect(out, "data")
    assert not [name for name in cloud.server.below(out) if "units" in name]


def test_an_outage_ends_the_run_and_blames_no_slice(cloud: Cloud, proxy: Proxy, quick: None) -> None:
    out = cloud.new()
    proxy.judge = lambda _: "slow_down" if proxy.count("GET", "s_") > 12 else ""
    with pytest.raises(
        MachineError, match=r"^s3://slices/\S+: the store does not answer.*SlowDown.*continues"
    ):
        cloud.score(cloud.data, out)

    proxy.judge = lambda _: ""
    outcome = cloud.score(cloud.data, out)
    assert outcome.counts.quarantined == 2
    cloud.expect(out, cloud.data)


def test_one_object_that_fails_is_quarantined_until_it_can_be_had(
    cloud: Cloud, proxy: Proxy, quick: None, tmp_path: Path
) -> None:
    proxy.judge = lambda request: "cut" if "s_8.tif" in request.path and request.method == "GET" else ""
    outcome = cloud.score(cloud.data, tmp_path / "out")
    assert outcome.counts.quarantined == 3
    errors = (tmp_path / "out" / "errors.csv").read_text()
    assert f'{cloud.data}/p0/s_8.tif,0,read,store,"the store gives others, not this one (' in errors

    proxy.judge = lambda _: ""
    cloud.score(cloud.data, tmp_path / "out")
    cloud.expect(tmp_path / "out", cloud.data)


def test_objects_that_are_all_denied_end_the_run(cloud: Cloud, proxy: Proxy, tmp_path: Path) -> None:
    proxy.judge = lambda request: "forbid" if "s_" in request.path and request.method == "GET" else ""
    with pytest.raises(MachineError, match=r"access denied \(AccessDenied\): the credentials in use"):
        cloud.score(cloud.data, tmp_path / "out")

    assert not (tmp_path / "out" / "results.csv").exists()


def test_an_object_that_vanished_and_one_that_changed_are_told(
    cloud: Cloud, proxy: Proxy, tmp_path: Path
) -> None:
    files = cloud.server.files
    for name in "abc":
        files.pipe_file(f"{BUCKET}/moving/{name}.tif", tiff(256, 256))

    def judge(request: Request) -> Fault:
        if "list-type" in request.path:
            return ""
        if "a.tif" in request.path:
            files.rm_file(f"{BUCKET}/moving/a.tif")
        if "b.tif" in request.path:
            files.pipe_file(f"{BUCKET}/moving/b.tif", tiff(128, 128))
        return ""

    proxy.judge = judge
    outcome = cloud.score(f"s3://{BUCKET}/moving", tmp_path / "out")
    assert (outcome.counts.ok, outcome.counts.quarantined) == (1, 2)
    errors = (tmp_path / "out" / "errors.csv").read_text()
    assert "a.tif,0,read,not_found" in errors
    assert "b.tif,0,read,changed" in errors


def test_addresses_of_a_list_are_looked_at_ahead(cloud: Cloud, proxy: Proxy, tmp_path: Path) -> None:
    names = list((cloud.folder / "data").rglob("s_*.tif"))
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"s3://{BUCKET}/{path.relative_to(cloud.folder)}\n" for path in names))
    proxy.delay = 0.3
    most = 0

    def judge(request: Request) -> Fault:
        nonlocal most
        if request.method == "HEAD":
            most = max(most, len(proxy.seen) - request.number + 1)
        return ""

    proxy.judge = judge
    options = replace(cloud.options("", tmp_path / "out"), inputs=(), files_from=str(listed))
    assert score(options).counts.ok == len(names) == SLICES
    assert most > 10


def test_lists_mix_addresses_and_paths(cloud: Cloud, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{cloud.data}/p0/s_0.tif\ndata/p0/s_4.tif\ns3://{BUCKET}/data/p9\n")
    options = replace(cloud.options("", tmp_path / "out"), inputs=(), files_from=str(listed))
    outcome = score(options)

    assert (outcome.counts.ok, outcome.counts.quarantined) == (2, 1)
    assert (tmp_path / "out" / "masks" / "s3:" / BUCKET / "data" / "p0" / "s_0.tif_mask.png").exists()
    assert "p9,0,discover,not_found,No such file" in (tmp_path / "out" / "errors.csv").read_text()


def test_fresh_leaves_nothing_of_the_old_run_and_another_run_is_refused(cloud: Cloud) -> None:
    out = cloud.new()
    cloud.score("data", out, gate=False)
    with pytest.raises(UsageError, match=rf"^{out} holds a run with other options \(gate"):
        cloud.score("data", out)

    cloud.score("data", out, fresh=True)
    cloud.expect(out, "data")


def test_a_clearing_that_was_killed_is_gone_on_with(cloud: Cloud) -> None:
    out = cloud.new()
    cloud.score("data", out, gate=False)
    cloud.server.files.pipe_file(f"{out}/ledger/clearing", b"")

    cloud.score("data", out)
    cloud.expect(out, "data")


def test_a_damaged_cache_is_made_anew_of_the_record(cloud: Cloud) -> None:
    out = cloud.new()
    cloud.score("data", out, limit=9)
    (desk_folder(Address.parse(out)) / "run.sqlite").write_bytes(b"SQLite format 3\0" + b"?" * 5000)

    cloud.score("data", out)
    cloud.expect(out, "data")


def test_a_record_that_another_machine_went_on_with_is_caught_up_with(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = cloud.new()
    cloud.score("data", out, limit=9)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other machine"))
    cloud.score("data", out, limit=20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    seen = survey(cloud.options("data", out))
    assert seen.slices - seen.pending >= 20
    cloud.score("data", out)
    cloud.expect(out, "data")


def test_masks_that_components_empty_are_deleted_there_too(cloud: Cloud, tmp_path: Path) -> None:
    out, rule = cloud.new(), Rule.parse("largest")
    cloud.score("data", tmp_path / "out", components=rule)
    cloud.score("data", out, components=rule, limit=12)
    empty_disk(tmp_path)
    cloud.score("data", out, components=rule)

    there = cloud.server.below(out)
    assert there["results.csv"] == (tmp_path / "out" / "results.csv").read_bytes()
    here = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out" / "masks").rglob("*.png")}
    assert {name for name in there if name.startswith("masks/")} == here


def test_a_series_on_a_disk_is_gone_on_with_from_another_machine(cloud: Cloud, tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    (tmp_path / "data").mkdir()
    series(tmp_path / "data", 6, DIRECTIONS["axial"])
    out = cloud.new()
    cloud.score(str(tmp_path / "data"), out, limit=3, masks="none")
    empty_disk(tmp_path)

    outcome = cloud.score(str(tmp_path / "data"), out, masks="none")
    assert (outcome.finished, outcome.totals.slices, outcome.counts.ok) == (True, 3, 6)
    (tmp_path / "data" / "0.dcm").unlink()  # the window was taken of it too
    empty_disk(tmp_path)
    with pytest.raises(UsageError, match="was scored"):
        cloud.score(str(tmp_path / "data"), out, masks="none")


def test_another_machine_keeps_the_report_of_a_finished_run(cloud: Cloud, tmp_path: Path) -> None:
    out = cloud.new()
    cloud.score("data", out)
    report = cloud.server.below(out)["run.json"]
    empty_disk(tmp_path)

    assert cloud.score("data", out).nothing_new
    assert cloud.server.below(out)["run.json"] == report


def test_a_page_that_cannot_be_had_keeps_its_place_in_its_file(cloud: Cloud) -> None:
    name = f"{cloud.data}/gone.tif"
    gone = SourceFile(os.fsencode(name), name, name, b"gone.tif/001", b"1", 10, 20, 1, alone("pages", b"x"))
    with Ahead(Stores(), threading.Event()) as ahead:
        (given,) = filter(None, ahead.fetched([gone]))

    assert isinstance(given, Unlisted)
    row = RowWriter(Path("out"), True, False).unlisted_row(given)
    assert (row.slice, row.volume, row.size, row.mtime_ns) == (1, name, 10, 20)


def test_a_run_that_slept_while_another_took_over_writes_no_more(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Address.parse(cloud.new())
    lock = StoreLock(Store("s3"), out, "ledger/lock.json", print)
    with lock.take(threading.Event()):
        monkeypatch.setattr(engine.cloud.lock, "LEASE_S", 0.0)
        lock.expect()  # nobody came
        cloud.server.files.pipe_file(f"{out}/ledger/lock.json", b'{"owner": "another"}')
        with pytest.raises(MachineError, match="another run has taken over"):
            lock.expect()


def test_the_token_of_a_run_that_failed_does_not_stay(cloud: Cloud) -> None:
    out, store = Address.parse(cloud.new()), Store("s3")
    with pytest.raises(StoppedError), token_in(out, ".token"):
        raise StoppedError
    assert list(store.everything(out.path)) == []


def test_logs_and_figures_name_the_store(cloud: Cloud, tmp_path: Path) -> None:
    out = cloud.new()
    words = ("score", "data", "--out", out, "--bundle", "bundle", "--backend", "onnxruntime", "--limit", "2")
    watched = ("--log-format", "json", "--metrics", str(tmp_path / "run.prom"))
    ran = tumorscan(*words, *watched, cwd=cloud.folder)

    events = [json.loads(line) for line in ran.err.splitlines()]
    told = {each["event"]: each for each in events}
    assert told["begin"]["out"] == out
    assert told["end"]["results"] == f"{out}/results.csv"
    assert f'run="{out}"' in (tmp_path / "run.prom").read_text()


def test_a_second_run_is_refused_while_the_first_is_alive(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.cloud.lock, "BEAT_S", 0.05)
    monkeypatch.setattr(engine.cloud.lock, "_POLL_S", 0.1)
    out = Address.parse(cloud.new())
    with (
        StoreLock(Store("s3"), out, "ledger/lock.json", print).take(threading.Event()),
        pytest.raises(UsageError, match=rf"^{out}: another run \(process \d+ on .*\) is writing there"),
    ):
        cloud.score("data", str(out))
    cloud.score("data", str(out), limit=2)


def test_the_lock_of_a_dead_machine_is_waited_for_and_taken(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.cloud.lock, "LEASE_S", 0.3)
    monkeypatch.setattr(engine.cloud.lock, "_POLL_S", 0.1)
    out = Address.parse(cloud.new())
    cloud.server.files.pipe_file(f"{out}/ledger/lock.json", b'{"holder": "process 7 on far"}')
    said: list[str] = []
    with StoreLock(Store("s3"), out, "ledger/lock.json", said.append).take(threading.Event()):
        pass

    assert ["an earlier run (process 7 on far) may still be alive" in line for line in said] == [True]
    assert not cloud.server.files.exists(f"{out}/ledger/lock.json")


def test_a_wait_for_another_run_can_be_interrupted(cloud: Cloud) -> None:
    out = Address.parse(cloud.new())
    cloud.server.files.pipe_file(f"{out}/ledger/lock.json", b"{}")
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        StoreLock(Store("s3"), out, "ledger/lock.json", print).take(stop)


def test_of_two_writers_of_one_part_the_second_ends(cloud: Cloud) -> None:
    store, address = Store("s3"), Address.parse(cloud.new())
    one, other = Record(store, address, "one"), Record(store, address, "other")
    part = Part("run", {}, (), ())
    assert one.append(part) == 0
    with pytest.raises(MachineError, match="another run writes to this output: nothing of either is lost"):
        other.append(part)


def test_wrong_credentials_and_places_are_one_line_each(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: None
) -> None:
    def says(where: str, out: str | Path, **environment: str) -> str:
        with monkeypatch.context() as changed:
            for name, value in environment.items():
                changed.setenv(name, value)
            with pytest.raises((UsageError, MachineError)) as caught:
                cloud.score(where, out)
        line = str(caught.value)
        assert "\n" not in line
        assert not any(secret in line for secret in (SECRET, DENIED_SECRET, READER_SECRET))
        return line

    out = tmp_path / "out"
    assert says(f"s3://{BUCKET}/none", out) == "INPUT 's3://slices/none' does not exist: check its spelling"
    assert says("s3://no-such-bucket", out).startswith("INPUT 's3://no-such-bucket' does not exist")
    assert says("data", "s3://no-such-bucket/out") == (
        "s3://no-such-bucket/out: there is no such bucket or folder (NoSuchBucket): check its spelling"
    )
    denied = {"AWS_ACCESS_KEY_ID": DENIED_KEY, "AWS_SECRET_ACCESS_KEY": DENIED_SECRET}
    assert "INPUT 's3://slices/data' cannot be read: access denied" in says(cloud.data, out, **denied)
    reader = {"AWS_ACCESS_KEY_ID": READER_KEY, "AWS_SECRET_ACCESS_KEY": READER_SECRET}
    line = says("data", cloud.new(), **reader)
    assert "access denied (AccessDenied): the credentials in use may not read, list, write and delete" in line
    assert "no valid credentials (SignatureDoesNotMatch): set AWS_PROFILE" in says(
        cloud.data, out, AWS_SECRET_ACCESS_KEY="wrong"
    )
    assert "no valid credentials (InvalidAccessKeyId)" in says("data", cloud.new(), AWS_ACCESS_KEY_ID="AKno")
    assert "no valid credentials (ProfileNotFound)" in says(cloud.data, out, AWS_PROFILE="nobody")
    assert "the store does not answer" in says(cloud.data, out, AWS_ENDPOINT_URL="http://127.0.0.1:9")


def test_no_output_and_no_line_shows_a_secret(cloud: Cloud) -> None:
    out = cloud.new()
    ran = tumorscan(
        "score", cloud.data, "--out", out, "--bundle", "bundle", "--backend", "onnxruntime", cwd=cloud.folder
    )

    assert ran.status == 4, ran.err
    assert f"{out}/results.csv" in ran.out
    told = [ran.out.encode(), ran.err.encode(), *cloud.server.below(out).values()]
    assert not any(SECRET.encode() in each or KEY.encode() in each for each in told)


def test_what_cannot_be_done_from_afar_is_one_line(cloud: Cloud, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the output 's3://slices/data/out' lies inside the input"):
        cloud.score(cloud.data, f"{cloud.data}/out")
    with pytest.raises(UsageError, match="--anonymise: the record of a run in s3://slices/x"):
        cloud.score("data", f"s3://{BUCKET}/x", anonymise=tmp_path)


def test_without_the_extra_a_line_says_what_to_install(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MachineError, match=r"s3:// needs fsspec and s3fs.*pip install 'tumorscan\[cloud\]'"):
        cloud.score(cloud.data, tmp_path / "out")


def test_shards_in_a_store_are_merged_into_what_the_undivided_run_leaves(
    cloud: Cloud, proxy: Proxy, tmp_path: Path
) -> None:
    out, merged = cloud.new(), tmp_path / "merged"
    shards = [f"{out}/{number}" for number in (1, 2, 3)]
    for number, shard in enumerate(shards, start=1):
        cloud.score("data", shard, shard=Shard.parse(f"{number}/3"))
    empty_disk(tmp_path)

    done = put_together(*shards, out=merged)

    assert not done.nothing_new
    assert [each.folder for each in done.report.merged.shards] == shards  # type: ignore[union-attr]
    cloud.expect(merged, "data")
    assert not (merged / ".shards").exists()
    fetched = proxy.count("GET", "_mask.png")
    assert put_together(*shards, out=merged).nothing_new
    assert proxy.count("GET", "_mask.png") == fetched > 0
    beside = tmp_path / "beside"  # one shard was scored on a disk
    shutil.rmtree(merged)
    cloud.score("data", beside, shard=Shard.parse("2/3"))
    put_together(shards[2], beside, shards[0], out=merged)
    cloud.expect(merged, "data")


def test_shards_in_a_store_that_are_none_missing_or_at_work_are_named(cloud: Cloud, tmp_path: Path) -> None:
    def refused(*shards: str) -> str:
        with pytest.raises(UsageError) as error:
            put_together(*shards, out=tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
        return str(error.value)

    out = cloud.new()
    cloud.score("data", f"{out}/1", shard=Shard.parse("1/2"))
    cloud.score("data", f"{out}/2", shard=Shard.parse("2/2"), limit=3)
    assert refused(f"{out}/3", f"{out}/1").startswith(f"{out}/3 holds no run")
    assert refused(f"{out}/1", f"{out}/1") == f"{out}/1 is given twice: give it once"
    assert "of 2 shards 2 is missing" in refused(f"{out}/1")
    assert "of 2 shards 2 is not finished" in refused(f"{out}/1", f"{out}/2")
    cloud.score("data", f"{out}/2", shard=Shard.parse("2/2"))
    put_together(f"{out}/1", f"{out}/2", out=tmp_path / "merged")
    shutil.rmtree(tmp_path / "merged")

    record = Record(Stores().of(Address.parse(out)), Address.parse(f"{out}/2/ledger"), "other")
    ((_, last),) = record.parts(record.numbers[-1:])
    record.append(last)  # it goes on elsewhere
    assert "of 2 shards 2 is not finished" in refused(f"{out}/1", f"{out}/2")
    assert "no such bucket" in refused("s3://nowhere/1", f"{out}/1")


def put_together(*shards: str | Path, out: Path) -> Merged:
    return merge(Merging(tuple(map(Path, shards)), out), lambda done, total: None)
