"""Runs on a real Ray cluster, several nodes on this machine: what they leave, and what they survive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nibabel")
if find_spec("ray") is None:
    pytest.skip("ray comes with the extra cluster", allow_module_level=True)

from engine.ledger_readers import stored_count, stored_identity
from tests.badfiles import tiff
from tests.faults.scene import Left
from tests.processes import about
from tests.raycluster import RayCluster, ray_cluster
from tests.runs import command, environment, tumorscan, write_slices
from tests.s3server import BUCKET, s3_server
from tests.tinybundle import make_tiny_bundle, tiny_slice
from tests.volumes import tiff_pages, write_nifti

SLICES = 360
FINISHED = 4
"""Of every whole run: two files of the input are bad."""
DEADLINE_S = 300.0
WORKER = b"ray::MapWorker"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle; and data/: slices, a NIfTI volume, a TIFF of pages, and files that are none."""
    folder = tmp_path_factory.mktemp("cluster")
    make_tiny_bundle(folder / "bundle")
    data = folder / "data"
    write_slices(data, SLICES, patients=6)
    planes = [tiny_slice(500 + n, lesion=n % 3 != 1)[..., 1] for n in range(20)]
    (data / "p2" / "pages.tif").write_bytes(tiff_pages(planes[:9]))
    volume = np.stack(planes).astype(np.uint16).transpose(2, 1, 0) * 3
    write_nifti(data / "p3" / "flair.nii.gz", np.ascontiguousarray(volume))
    (data / "p1" / "empty.tif").write_bytes(b"")
    (data / "p4" / "cut.tif").write_bytes(tiff(256, 256)[:9000])
    return folder


@pytest.fixture(scope="module")
def local(workplace: Path) -> Left:
    """What a run on this machine alone leaves."""
    ran = tumorscan(*words("local"), cwd=workplace)
    assert ran.status == FINISHED, ran.err
    return Left.of(workplace / "local")


def words(out: str | Path, *more: str) -> tuple[str, ...]:
    # Small blocks make many units of so few slices; components are dropped where a run ends.
    fixed = ("score", "data", "--bundle", "bundle", "--backend", "onnxruntime", "--components", "largest")
    return (*fixed, "--batch", "1", "--workers", "1", "--out", str(out), *more)


def start(folder: Path, out: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words(out, *more)),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(run: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status, and what it said to standard error."""
    try:
        out, said = run.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        raise
    assert "raylet" not in out
    return run.returncode, said


def until(holds: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + DEADLINE_S
    while not holds():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < limit
        time.sleep(0.1)


def committed(out: Path) -> int:
    ledger = out / "run.sqlite"
    return 0 if stored_identity(ledger) is None else stored_count(ledger)


def workers() -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if about(pid, "cmdline").startswith(WORKER)]


def expect_no_noise(said: str) -> None:
    """Every line is one of ours."""
    for line in said.splitlines():
        assert "ray::" not in line, said
        assert "Warning" not in line, said
        assert not line.startswith(("[", "(", "\x1b")), said


def test_a_cluster_that_loses_a_node_and_then_a_worker_leaves_what_a_local_run_does(
    cluster: RayCluster, workplace: Path, local: Left
) -> None:
    out = workplace / "lossy"
    run = start(workplace, "lossy", "--ray", cluster.address)
    until(lambda: committed(out) > 0, run)
    for pid in workers():  # they wait until the node is gone, and go on: one of them has lost its own
        os.kill(pid, signal.SIGSTOP)
    (out / "masks" / ".tumorscan-01234567-89-0.tmp").touch()  # as a worker leaves that is killed at a mask
    assert committed(out) < SLICES
    cluster.do("kill", worker=str(workers()[0]))
    for pid in workers():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    before = committed(out)
    until(lambda: committed(out) > before, run)
    for pid in workers():
        os.kill(pid, signal.SIGKILL)
    status, said = end(run)
    cluster.do("add")
    assert status == FINISHED, said
    assert local.difference(Left.of(out)) == ""
    report = json.loads((out / "run.json").read_text())
    assert report["cluster"] == {"nodes": 2, "workers": 2, "cpus": 1, "gpus": 0, "lost_nodes": 1}
    assert "is lost: what it had not finished is scored by the others" in said
    expect_no_noise(said)
    assert not list(out.glob(".tumorscan-*"))


def test_runs_are_begun_here_stopped_on_a_cluster_and_finished_here(
    cluster: RayCluster, workplace: Path, local: Left
) -> None:
    out = workplace / "shared"
    first = tumorscan(*words(out, "--limit", "40"), cwd=workplace)
    assert first.status in (0, FINISHED), first.err
    run = start(workplace, "shared", "--ray", cluster.address)
    until(lambda: committed(out) > 60, run)
    run.send_signal(signal.SIGTERM)
    status, said = end(run)
    assert status == 143, said
    assert "slices are done and the same command continues" in said
    assert committed(out) < SLICES
    last = tumorscan(*words(out), cwd=workplace)
    assert last.status == FINISHED, last.err
    assert local.difference(Left.of(out)) == ""


def test_a_node_that_does_not_share_the_output_is_named(
    cluster: RayCluster, workplace: Path, tmp_path: Path
) -> None:
    (tmp_path / "island").mkdir()
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(tmp_path / "island")]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("a mount of one process's own cannot be made here")
    cluster.do("odd", empty=str(tmp_path / "island"))
    try:
        ran = tumorscan(*words(tmp_path / "island" / "out", "--ray", cluster.address), cwd=workplace)
    finally:
        cluster.do("even")
    assert ran.status == 3, ran.err
    line = ran.err.splitlines()[-1]
    assert line.startswith("tumorscan: node ")
    assert f"the output {tmp_path}/island/out is not there: all nodes must have input, output and" in line


def test_a_node_without_the_package_is_named(
    cluster: RayCluster, workplace: Path, tmp_path: Path, local: Left
) -> None:
    (tmp_path / "engine").mkdir()
    missing = "raise ModuleNotFoundError(\"No module named 'engine'\")\n"
    (tmp_path / "engine" / "__init__.py").write_text(missing)
    cluster.do("odd", path=str(tmp_path))
    try:
        ran = tumorscan(*words(tmp_path / "out", "--ray", cluster.address), cwd=workplace)
    finally:
        cluster.do("even")
    assert ran.status == 3, ran.err
    line = ran.err.splitlines()[-1]
    assert line.startswith("tumorscan: node ")
    assert " has no engine: install tumorscan " in line


def test_an_address_where_nothing_answers_is_said_at_once(workplace: Path, tmp_path: Path) -> None:
    ran = tumorscan(*words(tmp_path / "out", "--ray", "127.0.0.1:9"), cwd=workplace)
    assert ran.status == 3
    assert "--ray 127.0.0.1:9: nothing answers there" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.slow
def test_a_cluster_that_does_not_come_back_ends_the_run_which_goes_on_here(
    workplace: Path, local: Left
) -> None:
    out = workplace / "orphan"
    hurried = (
        "import engine.cluster.drive as drive; drive.PATIENCE_S = 60; from engine.cli import main; main()"
    )
    with ray_cluster(nodes=1) as alone:
        line = command(*words("orphan", "--ray", alone.address))
        line[1:3] = ["-c", hurried]
        run = subprocess.Popen(
            line,
            cwd=workplace,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: committed(out) > 0, run)
        alone.do("kill")
        status, said = end(run)
    assert status == 3, said
    assert "nothing was heard of the Ray cluster for 1 minutes (0 of 1 workers are up" in said
    expect_no_noise(said)
    last = tumorscan(*words("orphan"), cwd=workplace)
    assert last.status == FINISHED, last.err
    assert local.difference(Left.of(out)) == ""


@pytest.mark.slow
def test_without_an_address_a_cluster_of_this_machine_is_started_and_ended(
    workplace: Path, local: Left
) -> None:
    kept = {name: value for name, value in environment().items() if name != "RAY_ADDRESS"}
    line = command(*words("own", "--max-runtime", "1s", "--ray"))
    ran = subprocess.run(line, cwd=workplace, env=kept, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ran.returncode == 75, ran.stderr
    line = command(*words("own", "--ray", "local"))
    ran = subprocess.run(line, cwd=workplace, env=kept, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ran.returncode == FINISHED, ran.stderr
    assert local.difference(Left.of(workplace / "own")) == ""
    assert not workers()


@pytest.mark.slow
def test_a_shard_that_a_cluster_scored_is_merged_with_one_that_this_machine_did(
    cluster: RayCluster, workplace: Path, local: Left
) -> None:
    there, here = workplace / "there", workplace / "here"
    one = tumorscan(*words(there, "--shard", "1/2", "--ray", cluster.address), cwd=workplace)
    other = tumorscan(*words(here, "--shard", "2/2"), cwd=workplace)
    assert {one.status, other.status} <= {0, FINISHED}, (one.err, other.err)
    merged = tumorscan("merge", there, here, "--out", workplace / "merged", cwd=workplace)
    assert merged.status == FINISHED, merged.err
    assert local.difference(Left.of(workplace / "merged")) == ""


@pytest.mark.slow
def test_a_cluster_fills_an_object_store_whoever_is_killed(
    workplace: Path, local: Left, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    out = f"s3://{BUCKET}/lossy"
    with s3_server(tmp_path / "server") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

        def parts() -> int:
            server.files.invalidate_cache()
            return len(server.files.glob(f"{BUCKET}/lossy/ledger/part-*"))

        with ray_cluster(nodes=2) as cluster:
            run = start(workplace, out, "--ray", cluster.address)
            until(lambda: parts() > 1, run)
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
            assert any("units/" in name for name in server.below(f"{out}/ledger"))
            before = parts()
            stray = f"{BUCKET}/lossy/masks/data/p0/gone.tif_mask.png"
            server.files.pipe_file(stray, b"of a slice that is gone")
            word = json.dumps([b"data/p0/gone.tif".hex()])
            server.files.pipe_file(f"{BUCKET}/lossy/ledger/units/00009999.json", word.encode())

            run = start(workplace, out, "--ray", cluster.address)
            until(lambda: parts() > before + 1, run)
            os.kill(workers()[0], signal.SIGKILL)
            status, said = end(run)
        assert status == FINISHED, said
        left = server.below(out)
    assert not [name for name in left if "units/" in name]
    for name, data in left.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert local.difference(Left.of(tmp_path / "copy")) == ""
