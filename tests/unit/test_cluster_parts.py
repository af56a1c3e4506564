"""The parts of a run on a Ray cluster that need no cluster."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from engine.bundle import Bundle
from engine.cluster import node as node_module
from engine.cluster.bench import Bench
from engine.cluster.board import Board
from engine.cluster.faults import plain
from engine.cluster.node import Terms, check, computing_flags, keep_to, versions
from engine.cluster.session import Node, share_of_cpus, share_of_gpus
from engine.cluster.units import packed, units, unpacked
from engine.cluster.worker import Trays
from engine.commands.optional import with_values
from engine.errors import Failure, MachineError, UsageError
from engine.ledger import SliceRow
from engine.ray_address import refuse_address
from engine.run import Options
from engine.settle import identity, settle
from engine.sources.discovery import SourceFile, Unlisted
from engine.sources.volumes import Volume, alone
from tests.tinybundle import make_tiny_bundle


def file(number: int, source: Volume | None = None, slice_: int = 0) -> SourceFile:
    order = b"%04d" % number
    name = f"s_{number}.tif"
    return SourceFile(os.fsencode(name), name, ".", order, order, 10, 20, slice_, source)


def row(number: int, slice_: int = 0) -> SliceRow:
    return SliceRow(b"%04d" % number, slice_, ".", f"s_{number}.tif", "quarantined", 1, 2)


def cpus(*counts: float) -> list[Node]:
    return [Node(str(n), f"node {n}", count, 0.0) for n, count in enumerate(counts)]


def test_slices_are_cut_into_units_of_a_size() -> None:
    files = [file(n) for n in range(7)]
    assert [len(unit) for unit in units(files, 3)] == [3, 3, 1]
    assert [each for unit in units(files, 3) for each in unit] == files


def test_a_volume_stays_in_one_unit_and_shares_its_source_there() -> None:
    one, other = alone("nifti", b"a.nii"), alone("nifti", b"b.nii")
    files = [file(0), *(file(1, one, n) for n in range(9)), *(file(2, other, n) for n in range(2)), file(3)]
    cut = list(units(files, 4))
    assert [len(unit) for unit in cut] == [10, 3]
    again = unpacked(packed(cut[0]))
    assert len({id(each.source) for each in again[1:]}) == 1


def test_what_is_packed_comes_back_equal() -> None:
    refused = Unlisted("x", b"\xff", Failure("discover", "link_loop", "a loop"))
    assert unpacked(packed([file(1), refused])) == [file(1), refused]
    assert unpacked(packed([row(1)])) == [row(1)]
    assert unpacked(b"") == []


def test_a_tray_is_full_when_each_of_its_slices_has_a_row() -> None:
    trays = Trays()
    first, second = trays.fill([file(0), file(1)]), trays.fill([file(2)])
    trays.commit([row(2), row(0)])
    assert second.wait() == [row(2)]
    assert not first.full.is_set()
    trays.commit([row(1)])
    assert first.wait() == [row(0), row(1)]


def test_a_picture_with_pages_has_a_row_for_each_of_them() -> None:
    trays = Trays()
    tray = trays.fill([file(0), file(1)])
    trays.expect_pages(file(0), 3)
    trays.commit([row(0, 0), row(1), row(0, 2)])
    assert not tray.full.is_set()
    trays.commit([row(0, 1)])
    assert len(tray.wait()) == 4


def test_a_unit_that_is_given_out_again_while_it_is_on_its_way_is_not_scored_twice() -> None:
    trays = Trays()
    first = trays.fill([file(0), file(1)])
    again = trays.fill([file(0), file(1)])
    assert again.full.is_set()
    trays.commit([row(0), row(1)])
    assert (again.rows, first.wait()) == ([], [row(0), row(1)])


def test_trays_give_what_they_have_when_the_pipeline_ends() -> None:
    trays = Trays()
    tray = trays.fill([file(0), file(1)])
    trays.commit([row(0)])
    trays.close()
    assert tray.wait() == [row(0)]
    assert trays.fill([file(2)]).wait() == []


def test_a_pipeline_is_told_when_nothing_waits() -> None:
    trays, over = Trays(), threading.Event()
    trays.fill([file(0), file(1)])
    entries = trays.entries(over)
    assert [next(entries) for _ in range(3)] == [file(0), file(1), None]
    over.set()
    assert list(entries) == []


def test_a_unit_is_begun_once_however_often_it_is_given_out() -> None:
    async def story() -> None:
        board = Board()
        await board.put(0, b"unit")
        assert await board.take(0) == (0, b"unit")
        assert await board.begin(0, "ann")
        assert not await board.begin(0, "bob")
        assert await board.begin(0, "ann")  # Ray has restarted it
        await board.again(0)
        assert await board.take(1) == (0, b"unit")
        await board.lose("ann")
        assert await board.begin(0, "bob")
        await board.done(0)
        assert not await board.begin(0, "bob")
        assert await board.take(0) == (0, b"")  # read anew, it is in its place and empty
        await board.again(0)
        assert await board.take(2) == ()
        await board.end()
        assert await board.take(2) is None

    asyncio.run(story())


def test_a_worker_that_says_nothing_for_long_is_silent_until_it_is_heard_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        board = Board()
        await board.arrive("ann", "node", None)
        assert (await board.hear()).silent == frozenset()
        monkeypatch.setattr("engine.cluster.board.SILENT_S", -1.0)
        assert (await board.hear()).silent == {"ann"}
        await board.lose("ann")
        assert (await board.hear()).workers == {}
        assert (await board.hear()).silent == frozenset()
        await board.beat("ann", "node", 7)
        assert (await board.hear()).rows == {"ann": 7}
        assert (await board.hear()).workers == {"ann": "node"}

    asyncio.run(story())


def test_a_worker_that_dies_right_after_it_began_a_unit_does_not_keep_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        board = Board()
        await board.put(0, b"unit")
        await board.arrive("ann", "node", None)
        await board.lose("ann")  # its node had stood still
        assert await board.begin(0, "ann")
        monkeypatch.setattr("engine.cluster.board.SILENT_S", -1.0)
        assert (await board.hear()).silent == {"ann"}
        await board.lose("ann")
        assert await board.begin(0, "bob")

    asyncio.run(story())


def test_nothing_is_begun_after_a_stop() -> None:
    async def story() -> None:
        board = Board()
        await board.put(0, b"unit")
        await board.put(1, b"unit")
        assert await board.begin(0, "ann")
        await board.stop()
        assert not await board.begin(1, "ann")
        assert await board.take(1) is None
        assert (await board.hear()).begun == {0: "ann"}
        await board.wait_for_stop()

    asyncio.run(story())


def test_workers_get_the_largest_share_that_uses_nearly_all_cpus() -> None:
    assert share_of_cpus(cpus(16, 16)).cpus == 16
    assert share_of_cpus(cpus(2, 64, 64, 64)).cpus == 64
    assert share_of_cpus(cpus(0, 16, 24)) == replace(share_of_cpus(cpus(12)), workers=3)
    assert share_of_cpus(cpus(0)).workers == 0


def test_each_gpu_gets_a_worker_and_its_share_of_the_cores() -> None:
    found = [Node("a", "a", 64.0, 4.0), Node("b", "b", 30.0, 2.0), Node("c", "c", 8.0, 0.0)]
    share = share_of_gpus(found)
    assert (share.cpus, share.gpus, share.workers) == (15, 1, 6)
    assert share_of_gpus(cpus(4)).workers == 0


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["score", "data", "--ray"], ["score", "data", "--ray", "auto"]),
        (["score", "--ray", "data"], ["score", "--ray", "auto", "data"]),
        (["score", "--ray", "--quiet", "data"], ["score", "--ray", "auto", "--quiet", "data"]),
        (["score", "--ray", "head:6379", "data"], ["score", "--ray", "head:6379", "data"]),
        (["score", "--ray", "local", "data"], ["score", "--ray", "local", "data"]),
        (["score", "--ray=[::1]:6379", "data"], ["score", "--ray=[::1]:6379", "data"]),
        (["score", "--", "--ray"], ["score", "--", "--ray"]),
        ([], []),
    ],
)
def test_the_address_of_a_cluster_may_be_left_out(typed: list[str], meant: list[str]) -> None:
    assert with_values(typed) == meant


def test_what_is_no_address_is_refused() -> None:
    refuse_address("auto")
    refuse_address("10.0.0.1:6379")
    with pytest.raises(UsageError, match="give HOST:PORT"):
        refuse_address("head")
    with pytest.raises(UsageError, match="run the command on a node of the cluster"):
        refuse_address("ray://head:10001")


def test_a_worker_keeps_to_cores_of_its_own() -> None:
    own = sorted(os.sched_getaffinity(0))
    if len(own) < 2:
        pytest.skip("one core cannot be divided")
    taken: list[set[int]] = []

    def work() -> None:  # affinity is a thread's
        held = keep_to(1, among)
        taken.append(os.sched_getaffinity(0))
        ready.wait()
        if held is not None:
            held.close()

    among = f"test-{os.getpid()}"
    ready = threading.Barrier(3, timeout=30)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait()
    for thread in threads:
        thread.join()
    assert sorted(map(sorted, taken)) == [[own[0]], [own[1]]]
    assert keep_to(len(own)) is None
    assert sorted(os.sched_getaffinity(0)) == own


@pytest.fixture
def terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terms:
    """Terms that this machine keeps."""
    monkeypatch.setattr(node_module, "name_of_node", lambda: "node here")
    for name in ("data", "out"):
        (tmp_path / name).mkdir()
    token = tmp_path / "out" / ".token"
    token.touch()
    bundle = make_tiny_bundle(tmp_path / "bundle")
    options = Options(("data",), Path("out"), bundle=Path("bundle"), backend="onnxruntime")
    monkeypatch.chdir(tmp_path)
    found = identity(options, settle(options, Bundle.load(bundle.folder), None))
    return Terms(options, found, computing_flags(), versions(), str(tmp_path), Path("out/.token"), 0)


def test_a_node_that_shares_everything_has_the_plan_of_the_run(terms: Terms) -> None:
    plan = check(terms)
    assert plan.continued
    assert plan.backend == "onnxruntime"


def test_each_way_to_differ_is_named(terms: Terms, tmp_path: Path) -> None:
    def said(**other: object) -> str:
        with pytest.raises(MachineError) as raised:
            check(replace(terms, **other))  # type: ignore[arg-type]
        assert str(raised.value).startswith("node here: ")
        return str(raised.value)

    assert "has numpy" in said(versions={**terms.versions, "numpy": "1.0"})
    assert "start it in a folder that all nodes have" in said(cwd=str(tmp_path / "gone"))
    assert "the input gone is not there: all nodes" in said(options=replace(terms.options, inputs=("gone",)))
    assert "the output out is another folder than the driver's" in said(token=Path("out/other"))
    assert "the output gone is not there" in said(
        options=replace(terms.options, out=Path("gone")), token=Path("gone/x")
    )
    assert "is another there than the driver's" in said(identity={**terms.identity, "bundle": "0" * 64})
    assert "the run was begun with 0.1" in said(identity={**terms.identity, "backend_version": "0.1"})
    flags = (terms.flags or frozenset()) ^ {"avx512_bf16"}
    assert "only one of them has avx512_bf16" in said(flags=flags)


def test_a_folder_of_names_that_a_node_does_not_see_is_not_made_there(terms: Terms, tmp_path: Path) -> None:
    options = replace(terms.options, anonymise=tmp_path / "names")
    with pytest.raises(MachineError, match="the folder of names"):
        check(replace(terms, options=options))
    assert not (tmp_path / "names").exists()


def test_what_ray_raises_is_told_in_a_line() -> None:
    class RayTaskError(Exception):
        cause: BaseException | None = None

    carried = RayTaskError("a traceback")
    carried.cause = UsageError("node a: said")
    assert plain(carried, "node a") is carried.cause
    missing = RuntimeError("...\nModuleNotFoundError: No module named 'engine'\n")
    assert "node a has no engine: install tumorscan" in str(plain(missing, "node a"))
    ours = ValueError("a bug")
    assert plain(ours, "node a") is ours


def test_a_port_that_nobody_listens_at_is_refused_before_ray_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.cluster.session import _expect_answer

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(MachineError, match="nothing answers there"):
            _expect_answer(address)
        bound.listen()
        _expect_answer(address)


def test_what_killed_workers_left_is_deleted_and_what_live_ones_have_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    live = Bench.take()
    dead = Bench.take()
    (dead.folder / "masks").mkdir()
    os.close(dead.descriptor)
    (tmp_path / "tumorscan-worker-a-file").touch()

    other = Bench.take()

    assert live.folder.is_dir()
    assert other.folder.stat().st_mode & 0o077 == 0
    assert not dead.folder.exists()
    for each in (live, other):
        os.close(each.descriptor)
