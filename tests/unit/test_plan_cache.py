"""The plan cache: what it gives, whom it refuses, and what kills and full disks leave."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.driver import Gpu
from engine.errors import MachineError, UsageError
from engine.plans import store
from engine.plans.cache import FAILED_KEPT, CachedPlan, PlanCache, cache_folder
from engine.plans.prune import made_for_other, unused_for
from engine.plans.sidecar import LayerRecord, PlanKey, PlanRecord, Proof, parse_record

NOBODY = 65_534
UNKNOWN_USER = 54_321
PLAN = b"a built engine" * 100
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FAILED = Proof(status="failed", date=NOW, slices="validation patients", report={"flips": 9})
PROVEN = Proof(status="proven", date=NOW, slices="validation patients", report={"flips": 0})


def record_of(plan: bytes = PLAN, **changes: Any) -> PlanRecord:
    known: dict[str, Any] = {
        "model": "segmenter",
        "batch": 16,
        "flavour": "tensorrt",
        "tensorrt_version": "10.16.1.11",
        "cuda": "13.0",
        "driver": "580.65.06",
        "gpu": "NVIDIA H100 80GB HBM3",
        "compute_capabilities": ("9.0",),
        "onnx_sha256": "ab" * 32,
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "plan_size": len(plan),
        "workspace": None,
        "level": 3,
        "outputs": ("mask_bits",),
        "layers_of": "engine",
        "layers": (LayerRecord(name="conv1", kind="Convolution", precision="FP16"),),
        "built": NOW,
        "build_seconds": 12.5,
    }
    return PlanRecord(**{**known, **changes})


KEY = PlanKey.of(record_of())
GPU = Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30, "")


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


@pytest.fixture
def placed(cache: PlanCache) -> CachedPlan:
    return place(cache)


def place(cache: PlanCache, plan: bytes = PLAN, **changes: Any) -> CachedPlan:
    record = record_of(plan, **changes)
    return cache.place(PlanKey.of(record), plan, record)


def never_waits(holder: str) -> None:
    raise AssertionError(f"waited for {holder}")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def temporary_files(cache: PlanCache) -> list[str]:
    return [path.name for path in cache.folder.iterdir() if path.name.startswith(".")]


# What is placed is found


def test_a_cache_that_was_never_written_is_empty_and_is_not_made_by_looking(cache: PlanCache) -> None:
    assert cache.find(KEY) is None
    assert cache.timing_cache(KEY) is None
    assert cache.plans() == []
    assert cache.prune(lambda entry: True).entries == ()
    assert not cache.folder.exists()


def test_a_placed_plan_is_found_and_read_by_this_and_by_a_later_process(
    cache: PlanCache, placed: CachedPlan
) -> None:
    later = PlanCache(cache.folder)
    assert later.find(KEY) == placed
    assert later.read(placed) == PLAN
    assert placed.record == record_of()


def test_what_the_cache_makes_is_open_to_its_user_only(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        plan = place(PlanCache(tmp_path / "new" / "deeper" / "plans"))
    finally:
        os.umask(umask)
    for folder in (plan.path.parent, *list(plan.path.parents)[1:4]):
        assert mode(folder) == 0o700
    assert {mode(path) for path in plan.path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize(
    "change",
    [
        {"model": "classifier"},
        {"onnx_sha256": "cd" * 32},
        {"batch": 8},
        {"flavour": "tensorrt-rtx"},
        {"tensorrt_version": "11.4.0.106"},
        {"cuda": "12.9"},
        {"driver": "575.1"},
        {"gpu": "NVIDIA L4"},
        {"gpu": None},
        {"compute_capabilities": ("8.9",)},
        {"compute_capabilities": ("8.9", "9.0")},
        {"workspace": 1 << 30},
        {"level": None},
        {"outputs": ("mask_bits", "mask_probability")},
        {"precision": "fp32"},
    ],
    ids=str,
)
def test_a_plan_that_differs_in_anything_is_another_plan(
    cache: PlanCache, placed: CachedPlan, change: dict[str, Any]
) -> None:
    assert cache.find(replace(KEY, **change)) is None
    assert cache.find(KEY) == placed


def test_every_field_of_the_key_is_in_its_digest() -> None:
    changed: Any = "changed"
    for field in fields(KEY):
        assert replace(KEY, **{field.name: changed}).digest != KEY.digest


def test_an_entry_whose_record_disagrees_with_the_key_counts_as_none_and_is_replaced(
    cache: PlanCache, placed: CachedPlan
) -> None:
    other = record_of(gpu="NVIDIA L4")
    placed.path.parent.rename(cache.folder / PlanKey.of(other).name)
    assert cache.find(PlanKey.of(other)) is None
    assert cache.place(PlanKey.of(other), PLAN, other) == cache.find(PlanKey.of(other))


def test_a_rebuilt_plan_takes_the_place_of_the_old_one(cache: PlanCache, placed: CachedPlan) -> None:
    rebuilt = place(cache, b"a better engine")
    assert cache.find(KEY) == rebuilt
    assert cache.read(rebuilt) == b"a better engine"
    with pytest.raises(UsageError, match=r"segmenter\.plan was removed or replaced meanwhile"):
        cache.read(placed)
    with pytest.raises(UsageError, match="was removed or replaced meanwhile"):
        cache.prove(placed, PROVEN)
    assert len(cache.plans()) == 1


def test_a_record_of_another_plan_is_not_placed(cache: PlanCache) -> None:
    with pytest.raises(ValueError, match="another plan"):
        cache.place(KEY, b"something else", record_of())
    with pytest.raises(ValueError, match="another plan"):
        cache.place(replace(KEY, batch=8), PLAN, record_of())
    assert not cache.folder.exists()


# What is no good is refused


def flip_a_bit(plan: Path) -> None:
    content = bytearray(plan.read_bytes())
    content[50] ^= 1
    plan.write_bytes(content)


def cut_short(plan: Path) -> None:
    os.truncate(plan, 100)


def not_json(plan: Path) -> None:
    sidecar(plan).write_bytes(b"\x80\x04pickle")


def half_written(plan: Path) -> None:
    os.truncate(sidecar(plan), 100)


def of_a_later_format(plan: Path) -> None:
    rewrite(plan, format_version=2)


def with_a_field_too_many(plan: Path) -> None:
    rewrite(plan, weather="fine")


def with_no_capability(plan: Path) -> None:
    rewrite(plan, compute_capabilities=[])


def without_plan(plan: Path) -> None:
    plan.unlink()


def without_sidecar(plan: Path) -> None:
    sidecar(plan).unlink()


def a_pipe(plan: Path) -> None:
    plan.unlink()
    os.mkfifo(plan, 0o600)


def a_folder(plan: Path) -> None:
    plan.unlink()
    plan.mkdir(mode=0o700)


def linked_plan(plan: Path) -> None:
    link_to_itself_elsewhere(plan)


def linked_sidecar(plan: Path) -> None:
    link_to_itself_elsewhere(sidecar(plan))


def linked_entry(plan: Path) -> None:
    link_to_itself_elsewhere(plan.parent)


def group_writable_plan(plan: Path) -> None:
    plan.chmod(0o620)


def writable_sidecar(plan: Path) -> None:
    sidecar(plan).chmod(0o602)


def group_writable_entry(plan: Path) -> None:
    plan.parent.chmod(0o770)


def sidecar(plan: Path) -> Path:
    return plan.with_name("plan.json")


def rewrite(plan: Path, **changes: object) -> None:
    fields = json.loads(sidecar(plan).read_bytes())
    sidecar(plan).write_text(json.dumps({**fields, **changes}))


def link_to_itself_elsewhere(path: Path) -> None:
    elsewhere = next(folder for folder in path.parents if folder.name == "plans").with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (flip_a_bit, r"segmenter\.plan has sha256 [0-9a-f]{64}, its record says"),
        (cut_short, r"segmenter\.plan has 100 bytes, its record says 1,400"),
        (not_json, r"plan\.json is damaged \(not JSON"),
        (half_written, r"plan\.json is damaged \(not JSON"),
        (of_a_later_format, r"plan\.json has format version 2, this tumorscan reads 1"),
        (with_a_field_too_many, r"plan\.json is damaged \(weather: "),
        (with_no_capability, r"plan\.json is damaged \(compute_capabilities: "),
        (without_plan, r"segmenter\.plan is missing"),
        (without_sidecar, r"plan\.json is missing"),
        (a_pipe, r"segmenter\.plan is not a file"),
        (a_folder, r"segmenter\.plan is not a file"),
        (linked_plan, r"segmenter\.plan is a symbolic link"),
        (linked_sidecar, r"plan\.json is a symbolic link"),
        (linked_entry, r"segmenter-[0-9a-f]{16} is a symbolic link"),
        (group_writable_plan, r"segmenter\.plan can be written by others \(mode 0620\)"),
        (writable_sidecar, r"plan\.json can be written by others \(mode 0602\)"),
        (group_writable_entry, r"segmenter-[0-9a-f]{16} can be written by others \(mode 0770\)"),
    ],
)
def test_an_entry_that_is_no_good_is_refused_listed_and_replaced_by_a_build(
    cache: PlanCache, placed: CachedPlan, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(placed.path)
    entry = placed.path.parent
    for attempt in (lambda: cache.find(KEY), lambda: cache.read(placed)):
        with pytest.raises(UsageError, match=f"{said}.*: rm -r {entry} and build again$") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    (listed,) = cache.plans()
    assert (listed.folder, listed.plan is None) == (entry, spoil is not flip_a_bit)
    assert spoil is flip_a_bit or str(caught.value) == listed.fault
    assert place(cache) == cache.find(KEY)


def test_what_is_damaged_goes_with_any_pruning(cache: PlanCache, placed: CachedPlan) -> None:
    cut_short(placed.path)
    place(cache, model="classifier")
    removed = cache.prune(lambda entry: False)
    assert [entry.folder for entry in removed.entries] == [placed.path.parent]
    assert [entry.plan.record.model for entry in cache.plans() if entry.plan] == ["classifier"]


def every_use(cache: PlanCache, placed: CachedPlan) -> list[Callable[[], object]]:
    def lock() -> None:
        with cache.lock(KEY, never_waits):
            pass

    return [
        lambda: cache.find(KEY),
        lambda: cache.read(placed),
        lambda: cache.timing_cache(KEY),
        lambda: cache.runtime_cache(placed, GPU),
        lambda: cache.plans(),
        lambda: cache.prune(lambda entry: True),
        lambda: cache.prove(placed, PROVEN),
        lambda: cache.set_aside(placed, FAILED),
        lambda: cache.keep_timing_cache(KEY, b"timings"),
        lambda: cache.keep_runtime_cache(placed, GPU, b"kernels"),
        lambda: place(cache),
        lock,
    ]


def assert_refused(cache: PlanCache, placed: CachedPlan, said: str) -> None:
    for use in every_use(cache, placed):
        with pytest.raises(UsageError, match=said) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_cache_folder_that_others_can_write_is_refused(cache: PlanCache, placed: CachedPlan) -> None:
    cache.folder.chmod(0o770)
    assert_refused(
        cache, placed, rf"plans can be written by others \(mode 0770\): .* or chmod 700 {cache.folder} if"
    )
    cache.folder.chmod(0o702)
    assert_refused(cache, placed, r"plans can be written by others \(mode 0702\)")


def test_a_cache_folder_that_others_can_look_into_is_refused(cache: PlanCache, placed: CachedPlan) -> None:
    cache.folder.chmod(0o755)
    assert_refused(
        cache, placed, rf"plans is open to others \(mode 0755\): chmod 700 {cache.folder}, or choose another"
    )
    cache.folder.chmod(0o700)
    assert cache.find(KEY) == placed


def test_a_cache_folder_that_is_a_link_is_refused(cache: PlanCache, placed: CachedPlan) -> None:
    cache.folder.rename(cache.folder.with_name("real"))
    cache.folder.symlink_to("real")
    assert_refused(cache, placed, "plans is a symbolic link, .*: choose another folder with --plan-cache DIR")
    cache.folder.unlink()
    cache.folder.symlink_to("nothing")
    with pytest.raises(UsageError, match="plans is a symbolic link"):
        place(cache)


def test_a_file_in_place_of_the_cache_folder_is_refused(cache: PlanCache) -> None:
    cache.folder.touch()
    with pytest.raises(UsageError, match=r"plans is not a folder: choose another .*TUMORSCAN_PLAN_CACHE"):
        place(cache)


def test_a_link_to_a_parent_is_followed(cache: PlanCache, placed: CachedPlan) -> None:
    link = cache.folder.parent / "link"
    link.symlink_to(cache.folder.parent)
    assert PlanCache(link / "plans").find(KEY) is not None


def test_a_parent_that_others_can_write_is_taken_as_the_folder_itself_decides(tmp_path: Path) -> None:
    open_ = tmp_path / "open to all, as a volume of a cluster is"
    open_.mkdir()
    open_.chmod(0o777)
    cache = PlanCache(open_ / "plans")
    assert place(cache) == cache.find(KEY)
    assert mode(cache.folder) == 0o700


# Other users


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may look into, for tests that become another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def user(number: int) -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_root_refuses_the_cache_of_another_user(open_folder: Path) -> None:
    os.chown(open_folder, 0, 0)
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    cache = PlanCache(home / "plans")
    with user(NOBODY):
        placed = place(cache)
        assert cache.find(KEY) == placed
    assert_refused(cache, placed, rf"plans belongs to user {NOBODY} \(\w+\), not to user 0 \(root\): choose ")


@pytest.mark.parametrize("how", [0o700, 0o755, 0o777])
def test_another_user_refuses_the_cache_of_root(open_folder: Path, how: int) -> None:
    cache = PlanCache(open_folder / "plans")
    placed = place(cache)
    cache.folder.chmod(how)
    with user(NOBODY):
        assert_refused(cache, placed, rf"plans belongs to user 0 \(root\), not to user {NOBODY} .*: choose ")


@pytest.mark.parametrize("what", ["segmenter.plan", "plan.json", "."])
def test_a_file_of_another_user_in_the_own_cache_is_refused(open_folder: Path, what: str) -> None:
    cache = PlanCache(open_folder / "plans")
    placed = place(cache)
    os.chown(placed.path.parent / what, NOBODY, NOBODY)
    said = rf"belongs to user {NOBODY} .* not to user 0 \(root\): rm -r {placed.path.parent} and"
    with pytest.raises(UsageError, match=said):
        cache.find(KEY)
    with pytest.raises(UsageError, match=said):
        cache.read(placed)
    assert place(cache) == cache.find(KEY)


def test_a_place_where_the_user_may_not_write_is_said(open_folder: Path) -> None:
    with (
        user(NOBODY),
        pytest.raises(MachineError, match=r"plans cannot be written \(Permission denied\): choo"),
    ):
        place(PlanCache(open_folder / "plans"))


def test_an_own_folder_without_permissions_is_said(open_folder: Path) -> None:
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    with user(NOBODY):
        placed = place(PlanCache(home / "plans"))
        placed.path.chmod(0)
        with pytest.raises(MachineError, match=r"segmenter\.plan cannot be read \(Permission denied\)"):
            PlanCache(home / "plans").find(KEY)
        placed.path.parent.parent.chmod(0)
        with pytest.raises(MachineError, match=r"plans cannot be read \(Permission denied\)"):
            PlanCache(home / "plans").find(KEY)


# Where the cache is


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("TUMORSCAN_PLAN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_option_goes_before_the_variables_and_they_before_the_home(
    no_environment: pytest.MonkeyPatch,
) -> None:
    no_environment.setenv("HOME", "/home/ann")
    assert cache_folder(None) == Path("/home/ann/.cache/tumorscan/plans")
    no_environment.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_folder(None) == Path("/home/ann/.cache/tumorscan/plans")
    no_environment.setenv("XDG_CACHE_HOME", "/scratch/cache")
    assert cache_folder(None) == Path("/scratch/cache/tumorscan/plans")
    no_environment.setenv("TUMORSCAN_PLAN_CACHE", "/volume/plans")
    assert cache_folder(None) == Path("/volume/plans")
    assert cache_folder(Path("here")) == Path.cwd() / "here"


@pytest.mark.parametrize("home", [None, ""])
def test_without_a_home_variable_the_password_file_is_asked(
    no_environment: pytest.MonkeyPatch, home: str | None
) -> None:
    if home is not None:
        no_environment.setenv("HOME", home)
    assert cache_folder(None) == Path(pwd.getpwuid(os.geteuid()).pw_dir, ".cache/tumorscan/plans")


def test_a_user_without_any_home_is_told_what_to_name(
    open_folder: Path, no_environment: pytest.MonkeyPatch
) -> None:
    with user(UNKNOWN_USER), pytest.raises(MachineError, match=r"user 54321, .* TUMORSCAN_PLAN_CACHE$"):
        cache_folder(None)


def test_a_home_that_cannot_be_written_is_said(no_environment: pytest.MonkeyPatch) -> None:
    no_environment.setenv("HOME", "/proc/self")
    with pytest.raises(
        MachineError, match=r"/\.cache cannot be written .*: choose another folder with --plan"
    ):
        place(PlanCache(cache_folder(None)))


# Disks


def test_a_plan_that_does_not_fit_is_told_with_the_bytes_and_leaves_nothing(small_disk: Path) -> None:
    cache = PlanCache(small_disk / "plans")
    small = place(cache)
    with pytest.raises(
        MachineError,
        match=r"plans: the disk or quota is full \([\d,]+ bytes free, 300,000 needed\): make room",
    ):
        place(cache, bytes(300_000))
    assert temporary_files(cache) == []
    assert cache.find(KEY) == small
    with pytest.raises(MachineError, match="300,000 needed"):
        cache.keep_timing_cache(KEY, bytes(300_000))
    assert cache.timing_cache(KEY) is None


def test_a_read_only_disk_serves_its_plans_and_takes_no_new_ones(small_disk: Path) -> None:
    cache = PlanCache(small_disk / "plans")
    placed = place(cache)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert cache.find(KEY) == placed
    assert cache.read(placed) == PLAN
    with pytest.raises(MachineError, match=r"\(Read-only file system\)"), cache.lock(KEY, never_waits):
        pass
    with pytest.raises(MachineError, match=r"\(Read-only file system\)"):
        place(cache)
    with pytest.raises(MachineError, match=r"new cannot be written \(Read-only file system\)"):
        place(PlanCache(small_disk / "new"))


# Locks and kills


class EnoughError(Exception):
    pass


def give_up(holder: str) -> None:
    raise EnoughError(holder)


PREAMBLE = """
import os, sys, time
from pathlib import Path
from engine.plans.cache import PlanCache
from tests.unit.test_plan_cache import KEY, place, record_of
cache = PlanCache(Path(sys.argv[1]))
"""

HOLDER = """
with cache.lock(KEY, print):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(script: str, cache: PlanCache) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PREAMBLE + script, str(cache.folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_who_waits_is_told_who_builds_and_a_killed_builders_lock_is_free(cache: PlanCache) -> None:
    with start(HOLDER, cache) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(EnoughError, match=f"process {holder.pid} on "), cache.lock(KEY, give_up):
            pass
        with cache.lock(replace(KEY, batch=8), never_waits):
            pass
        holder.kill()
    assert (cache.folder / f"{KEY.name}.lock").exists()
    with cache.lock(KEY, never_waits):
        pass
    assert not (cache.folder / f"{KEY.name}.lock").exists()


BUILDER = """
print("up", flush=True)
sys.stdin.readline()
if cache.find(KEY) is None:
    with cache.lock(KEY, lambda holder: None):
        if cache.find(KEY) is None:
            with open(sys.argv[1] + ".builds", "a") as builds:
                builds.write(f"{os.getpid()}\\n")
            time.sleep(0.6)
            place(cache)
print(cache.read(cache.find(KEY))[:14].decode(), flush=True)
"""


def test_of_two_processes_one_builds_and_the_other_finds_it(cache: PlanCache) -> None:
    with start(BUILDER, cache) as first, start(BUILDER, cache) as second:
        for process in (first, second):
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.close()
        for process in (first, second):
            assert process.stdout is not None
            assert process.stdout.read() == b"a built engine\n"
    assert len(Path(f"{cache.folder}.builds").read_text().split()) == 1


def test_threads_of_one_process_build_once_too(cache: PlanCache) -> None:
    builds = []

    def build() -> None:
        with cache.lock(KEY, lambda holder: None):
            if cache.find(KEY) is None:
                builds.append(place(cache))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


PLACER = """
for number in range(10_000):
    place(cache, bytes([number % 256]) * 200_000)
    if number == 0:
        print("started", flush=True)
"""


def test_a_process_killed_while_it_places_leaves_a_whole_plan_or_none(cache: PlanCache) -> None:
    for delay in (0.0, 0.013, 0.04, 0.09):
        with start(PLACER, cache) as placer:
            assert placer.stdout is not None
            assert placer.stdout.readline() == b"started\n"
            time.sleep(delay)
            placer.send_signal(signal.SIGKILL)
        found = cache.find(KEY)
        assert found is None or len(cache.read(found)) == 200_000
    place(cache)
    assert temporary_files(cache) == []
    assert [path.name for path in cache.folder.iterdir()] == [KEY.name]


def test_readers_beside_a_writer_see_whole_plans_or_none(cache: PlanCache) -> None:
    with start(PLACER, cache) as placer:
        assert placer.stdout is not None
        assert placer.stdout.readline() == b"started\n"
        for _ in range(100):
            cache.find(KEY)
            assert [entry.fault for entry in cache.plans()] in ([], [""])
        placer.kill()


def test_what_a_killed_build_left_is_cleaned_by_the_next_change(cache: PlanCache, placed: CachedPlan) -> None:
    left = cache.folder / ".tumorscan-0123456789abcdef.tmp"
    left.mkdir()
    (left / "segmenter.plan").write_bytes(PLAN)
    (cache.folder / ".tumorscan-fedcba9876543210.tmp").touch()
    (cache.folder / ".mine.tmp").touch()
    assert [entry.folder for entry in cache.plans()] == [placed.path.parent]
    cache.prove(placed, PROVEN)
    assert temporary_files(cache) == [".mine.tmp"]


CHANGER = """
from engine.plans.store import Store
with Store(cache.folder).changing():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_change_that_never_ends_is_named(
    cache: PlanCache, placed: CachedPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PATIENCE", 0.3)
    with start(CHANGER, cache) as changer:
        assert changer.stdout is not None
        assert changer.stdout.readline() == b"held\n"
        assert cache.find(KEY) == placed
        with pytest.raises(MachineError, match=f"process {changer.pid} on .* has been changing it"):
            cache.prove(placed, PROVEN)
        changer.kill()
    assert cache.prove(placed, PROVEN).record.proof == PROVEN


# Proofs


def test_a_proof_is_kept_with_the_plan(cache: PlanCache, placed: CachedPlan) -> None:
    assert placed.record.proof.status == "unproven"
    proven = cache.prove(placed, PROVEN)
    assert cache.find(KEY) == proven
    assert proven.record == placed.record.model_copy(update={"proof": PROVEN})
    assert cache.read(placed) == PLAN


def test_a_plan_that_failed_is_kept_with_its_report_and_never_found(
    cache: PlanCache, placed: CachedPlan
) -> None:
    kept = cache.set_aside(placed, FAILED)
    assert cache.find(KEY) is None
    assert not placed.path.exists()
    assert (kept / "segmenter.plan").read_bytes() == PLAN
    (listed,) = cache.plans()
    assert listed.failed
    assert (listed.folder, listed.plan and listed.plan.record.proof) == (kept, FAILED)
    assert listed.plan is not None
    with pytest.raises(UsageError, match="failed its proof and is never loaded"):
        cache.read(listed.plan)
    rebuilt = place(cache, b"a better engine")
    assert [entry.failed for entry in cache.plans()] == [False, True]
    assert cache.find(KEY) == rebuilt


def test_a_plan_whose_setting_aside_was_cut_off_is_not_found_either(
    cache: PlanCache, placed: CachedPlan
) -> None:
    failed = placed.record.model_copy(update={"proof": FAILED})
    placed.path.with_name("plan.json").write_bytes(failed.to_json())
    assert cache.find(KEY) is None
    assert [entry.failed for entry in cache.plans()] == [True]


def test_only_the_newest_failures_are_kept(cache: PlanCache) -> None:
    for number in range(FAILED_KEPT + 3):
        kept = cache.set_aside(place(cache, b"engine %d" % number), FAILED)
        os.utime(kept, (number, number))
    names = sorted(path.name[-8:] for path in (cache.folder / "failed").iterdir())
    assert names == sorted(
        hashlib.sha256(b"engine %d" % number).hexdigest()[:8] for number in range(3, FAILED_KEPT + 3)
    )


def test_proofs_of_the_wrong_kind_are_our_bug(cache: PlanCache, placed: CachedPlan) -> None:
    with pytest.raises(ValueError, match="set aside"):
        cache.prove(placed, FAILED)
    with pytest.raises(ValueError, match="proven stays"):
        cache.set_aside(placed, PROVEN)


# Timings


def test_timings_are_shared_by_the_models_of_one_builder_and_gpu(cache: PlanCache) -> None:
    cache.keep_timing_cache(KEY, b"old timings")
    cache.keep_timing_cache(replace(KEY, model="classifier", batch=8, level=5), b"timings")
    assert cache.timing_cache(KEY) == b"timings"
    assert cache.timing_cache(replace(KEY, gpu="NVIDIA L4")) is None
    assert cache.timing_cache(replace(KEY, tensorrt_version="11.4.0.106")) is None
    assert cache.timing_cache(replace(KEY, driver="590.1")) is None


def test_damaged_timings_are_measured_anew_and_those_others_can_write_are_refused(cache: PlanCache) -> None:
    cache.keep_timing_cache(KEY, b"timings")
    path = cache.folder / "timing" / KEY.timing_name
    path.chmod(0o660)
    with pytest.raises(UsageError, match=r"\.timing can be written by others \(mode 0660\): rm -r "):
        cache.timing_cache(KEY)
    path.chmod(0o600)
    os.truncate(path, 20)
    assert cache.timing_cache(KEY) is None


# Compiled kernels


def test_compiled_kernels_are_of_one_plan_and_one_kind_of_gpu(cache: PlanCache, placed: CachedPlan) -> None:
    rebuilt = place(cache, b"another plan of the same key", model="classifier")
    cache.keep_runtime_cache(placed, GPU, b"old kernels")
    cache.keep_runtime_cache(placed, GPU, b"kernels")
    assert cache.runtime_cache(placed, replace(GPU, index=3, uuid="of another card")) == b"kernels"
    assert cache.runtime_cache(placed, replace(GPU, name="NVIDIA L4", compute_capability=(8, 9))) is None
    assert cache.runtime_cache(rebuilt, GPU) is None


def test_damaged_kernels_are_compiled_anew_and_those_others_can_write_are_refused(
    cache: PlanCache, placed: CachedPlan
) -> None:
    cache.keep_runtime_cache(placed, GPU, b"kernels")
    (path,) = (cache.folder / "runtime").iterdir()
    path.chmod(0o602)
    with pytest.raises(UsageError, match=r"\.runtime can be written by others \(mode 0602\): rm -r "):
        cache.runtime_cache(placed, GPU)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert cache.runtime_cache(placed, GPU) is None


def test_kernels_are_pruned_with_their_plan(cache: PlanCache, placed: CachedPlan) -> None:
    gone = place(cache, b"an older plan", model="classifier")
    for plan in (placed, gone):
        cache.keep_runtime_cache(plan, GPU, b"kernels")
    freed = cache.prune(lambda entry: entry.plan == gone).freed
    assert cache.runtime_cache(placed, GPU) == b"kernels"
    assert cache.runtime_cache(gone, GPU) is None
    assert freed > len(b"an older plan") + len(b"kernels")


# Pruning


def folders(cache: PlanCache) -> set[str]:
    return {entry.folder.name for entry in cache.plans()}


def bytes_in(cache: PlanCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file())


def test_pruning_all_empties_the_cache_of_its_own_and_of_nothing_else(
    cache: PlanCache, placed: CachedPlan
) -> None:
    cache.set_aside(place(cache, model="classifier"), FAILED)
    cache.keep_timing_cache(KEY, b"timings")
    cache.keep_runtime_cache(placed, GPU, b"kernels")
    cache.log(KEY).parent.mkdir()
    cache.log(KEY).write_text("what the builder said")
    (cache.folder / f"{KEY.name}.lock").touch()  # of a builder that was killed
    before = bytes_in(cache)
    (cache.folder / "notes.lock").write_text("mine")
    (cache.folder / "segmenter-mine").mkdir()
    removed = cache.prune(lambda entry: True)
    assert [entry.failed for entry in removed.entries] == [False, True]
    assert removed.freed == before
    assert cache.plans() == []
    assert bytes_in(cache) == len("mine")
    assert (cache.folder / "segmenter-mine").exists()


def test_pruning_by_age_counts_from_the_last_reading(cache: PlanCache, placed: CachedPlan) -> None:
    idle = place(cache, model="classifier")
    for plan in (placed, idle):
        os.utime(plan.path, (NOW.timestamp(), NOW.timestamp()))
    assert {entry.used for entry in cache.plans()} == {NOW}
    cache.read(placed)
    removed = cache.prune(unused_for(timedelta(days=7)))
    assert [entry.plan for entry in removed.entries] == [idle]
    assert cache.find(KEY) == placed


def test_pruning_what_was_made_for_another_version_or_gpu(cache: PlanCache) -> None:
    here = place(cache)
    older = place(cache, tensorrt_version="10.8.0.43")
    elsewhere = place(cache, gpu="NVIDIA L4", compute_capabilities=("8.9",))
    portable = place(
        cache, flavour="tensorrt-rtx", gpu=None, compute_capabilities=("8.9", "9.0"), tensorrt_version="1.7.1"
    )
    for plan in (here, older, elsewhere):
        cache.keep_timing_cache(PlanKey.of(plan.record), b"timings")
    versions: dict[Any, str] = {"tensorrt": "10.16.1.11", "tensorrt-rtx": "1.7.1"}
    gpu = ("NVIDIA H100 80GB HBM3", "9.0")
    assert {e.plan for e in cache.prune(made_for_other(versions, [])).entries} == {older}
    assert {e.plan for e in cache.prune(made_for_other(versions, [gpu])).entries} == {elsewhere}
    assert folders(cache) == {here.path.parent.name, portable.path.parent.name}
    assert [path.name for path in (cache.folder / "timing").iterdir()] == [KEY.timing_name]
    assert {e.plan for e in cache.prune(made_for_other(versions, [("NVIDIA T4", "7.5")])).entries} == {
        here,
        portable,
    }


def test_pruning_leaves_a_build_its_lock_and_its_log(cache: PlanCache, placed: CachedPlan) -> None:
    with cache.lock(KEY, never_waits):
        cache.log(KEY).parent.mkdir()
        cache.log(KEY).touch()
        assert len(cache.prune(lambda entry: True).entries) == 1
        assert cache.log(KEY).exists()
        with pytest.raises(EnoughError), cache.lock(KEY, give_up):
            pass
        assert place(cache) == cache.find(KEY)


# The record


def test_a_record_survives_its_file() -> None:
    record = record_of(proof=PROVEN, workspace=1 << 30, cuda=None, driver=None, gpu=None)
    assert parse_record(record.to_json(), Path("plan.json")) == record


def test_a_record_sums_itself_up_in_a_line() -> None:
    assert record_of(b"x" * 12_340_000).summary == (
        "segmenter fp16, batch 16, TensorRT 10.16.1.11 for NVIDIA H100 80GB HBM3 (9.0), unproven, "
        "12.3 MB, built 2026-03-01"
    )
    portable = record_of(gpu=None, flavour="tensorrt-rtx", compute_capabilities=("8.9", "12.0"), proof=PROVEN)
    assert portable.runtime == "TensorRT-RTX 10.16.1.11 for compute capability 8.9, 12.0"


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "proven"},
        {"status": "failed", "report": {"flips": 1}},
        {"status": "proven", "date": NOW, "report": {"dice": float("nan")}},
        {"status": "perhaps"},
    ],
    ids=str,
)
def test_a_proof_that_proves_nothing_is_not_written(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Proof(**fields)
