"""The plan cache: a folder of the user's own that holds built plans, each beside what is known of it.

    classifier-0123456789abcdef/   one plan, named by its key: classifier.plan and plan.json
    failed/                        plans that failed the parity gate, kept with their reports, never found
    timing/                        what builders measured, so that a rebuild chooses alike
    runtime/                       what TensorRT-RTX compiled of a plan for one GPU
    logs/                          what builders said

Reading takes no lock and writes nothing but a plan's time of use. Every change is made by one process at a
time and shows whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.driver import Gpu
from engine.errors import MachineError, UsageError
from engine.lock import FileLock, LockHeldError
from engine.plans.entry import SIDECAR, CachedPlan, CacheEntry, look_at, open_entry, plan_name, read_plan
from engine.plans.sidecar import PlanKey, PlanRecord, Proof
from engine.plans.store import Store
from engine.plans.trust import own_folder, read_own_file
from engine.text import shown

__all__ = ["FAILED_KEPT", "CacheEntry", "CachedPlan", "PlanCache", "PlanKey", "Pruned", "cache_folder"]

FAILED_KEPT: Final = 8
"""Plans that failed their proof are kept for a look at them, the newest of them only."""

_FAILED: Final = "failed"
_TIMING: Final = "timing"
_RUNTIME: Final = "runtime"
_LOGS: Final = "logs"
_ENTRY_NAME: Final = re.compile(r"(?:classifier|segmenter)-[0-9a-f]{16}")
_FAILED_NAME: Final = re.compile(_ENTRY_NAME.pattern + r"-[0-9a-f]{8}")
_LOCK_NAME: Final = re.compile(_ENTRY_NAME.pattern + r"\.lock")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed; `freed` is in bytes."""

    entries: tuple[CacheEntry, ...]
    freed: int


def cache_folder(option: Path | None) -> Path:
    """The plan cache of this call: `option`, else $TUMORSCAN_PLAN_CACHE, else in the user's cache folder.

    MachineError when no home folder is known. Touches nothing.
    """
    named = option or os.environ.get("TUMORSCAN_PLAN_CACHE")
    if named:
        return Path(named).absolute()
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(caches).is_absolute():  # as the XDG specification has it
        caches = f"{_home()}/.cache"
    return Path(caches, "tumorscan", "plans")


class PlanCache:
    """The plan cache in `folder`, which the first change makes; until then it is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._store = Store(self.folder)

    def find(self, key: PlanKey) -> CachedPlan | None:
        """The plan of exactly this `key`, verified; None when there is none and it is to be built.

        Raises UsageError when it is there but not to be trusted (damaged, another user's, open to others),
        MachineError when it cannot be read.
        """
        path = self.folder / key.name / plan_name(key.model)
        try:
            with open_entry(self.folder, key.name) as (inside, record):
                if PlanKey.of(record) != key or record.proof.status == "failed":
                    return None
                plan = CachedPlan(path, record)
                read_plan(inside, plan)
                return plan
        except FileNotFoundError:
            return None

    def read(self, plan: CachedPlan) -> bytes:
        """The bytes of `plan`, whose sha256 is the record's. Raises UsageError and MachineError as `find`."""
        try:
            with open_entry(self.folder, *self._below(plan)) as (inside, record):
                _check_same(plan, record)
                if record.proof.status == "failed":
                    raise UsageError(f"{shown(plan.path)} failed its proof and is never loaded: build again")
                content = read_plan(inside, plan)
        except FileNotFoundError:
            raise _gone(plan) from None
        with suppress(OSError):  # a cache on a read-only disk serves plans too
            os.utime(plan.path)
        return content

    @contextmanager
    def lock(self, key: PlanKey, waiting: Callable[[str], None]) -> Iterator[None]:
        """Be the only one who builds the plan of `key`. Who had to wait looks with `find` before building.

        `waiting` is told the holder ("process 12 on gpu-3") five times a second while another builds; what it
        raises ends the wait. A dead holder's lock is free. Raises UsageError when the folder is not to be
        trusted, MachineError when it cannot be written.
        """
        with self._store.hold(f"{key.name}.lock", waiting):
            yield

    def place(self, key: PlanKey, plan: bytes, record: PlanRecord) -> CachedPlan:
        """Put a built plan in the cache, in place of what stood under its key.

        Raises MachineError when it does not fit or cannot be written, UsageError as `lock`, ValueError when
        the record is of another plan.
        """
        if PlanKey.of(record) != key or (record.plan_size, record.plan_sha256) != (len(plan), _sha256(plan)):
            raise ValueError("the record is of another plan")
        path = self.folder / key.name / plan_name(key.model)
        with self._store.changing(len(plan)):
            self._store.put_folder(path.parent, {path.name: plan, SIDECAR: record.to_json()})
        return CachedPlan(path, record)

    def prove(self, plan: CachedPlan, proof: Proof) -> CachedPlan:
        """Write down what the parity gate said of a plan that did not fail. Raises as `place`."""
        if proof.status == "failed":
            raise ValueError("a plan that failed is set aside")
        with self._store.changing():
            return self._judge(plan, proof)

    def set_aside(self, plan: CachedPlan, proof: Proof) -> Path:
        """Take a plan that failed its proof out of use; returns the folder that keeps it and its report.

        The newest FAILED_KEPT are kept. Raises as `place`.
        """
        if proof.status != "failed":
            raise ValueError(f"a plan that is {proof.status} stays in the cache")
        entry = plan.path.parent
        kept = self.folder / _FAILED / f"{entry.name}-{plan.record.plan_sha256[:8]}"
        with self._store.changing():
            self._judge(plan, proof)  # first: killed before the move, it is not found either
            self._store.move(entry, kept)
            for old in self._failed_newest_first()[FAILED_KEPT:]:
                self._store.discard(old)
        return kept

    def timing_cache(self, key: PlanKey) -> bytes | None:
        """What earlier builds measured on the same GPU with the same builder; None when nothing is kept."""
        return self._kept(_TIMING, key.timing_name)

    def keep_timing_cache(self, key: PlanKey, timings: bytes) -> None:
        """Keep what a build measured. Raises as `place`."""
        self._keep(_TIMING, key.timing_name, timings)

    def runtime_cache(self, plan: CachedPlan, gpu: Gpu) -> bytes | None:
        """The kernels that TensorRT-RTX compiled of `plan` for such a GPU; None when nothing is kept.

        They are code as plans are: raises UsageError and MachineError as `read`.
        """
        return self._kept(_RUNTIME, _runtime_name(plan, gpu))

    def keep_runtime_cache(self, plan: CachedPlan, gpu: Gpu, kernels: bytes) -> None:
        """Keep compiled kernels, in place of earlier ones. Raises as `place`."""
        self._keep(_RUNTIME, _runtime_name(plan, gpu), kernels)

    def log(self, key: PlanKey) -> Path:
        """Where the builder's own messages belong. Nothing is made; a file there is pruned with its plan."""
        return self.folder / _LOGS / f"{key.name}.log"

    def plans(self) -> list[CacheEntry]:
        """Every plan of the cache, those that failed last; a damaged one is listed with its fault.

        Raises UsageError when the folder is not to be trusted, MachineError when it cannot be read.
        """
        found = []
        for below, pattern in ((), _ENTRY_NAME), ((_FAILED,), _FAILED_NAME):
            for name in filter(pattern.fullmatch, self._names(*below)):
                with suppress(FileNotFoundError):  # removed since it was listed
                    found.append(look_at(self.folder, *below, name))
        return found

    def prune(self, goes: Callable[[CacheEntry], bool]) -> Pruned:
        """Remove the entries that `goes` is true of, damaged ones, and what else is of no plan left.

        Raises MachineError when something cannot be removed, UsageError as `lock`.
        """
        if not self._names():
            return Pruned((), 0)
        with self._store.changing():
            entries = self.plans()
            gone = [entry for entry in entries if entry.plan is None or goes(entry)]
            for entry in gone:
                self._store.discard(entry.folder)
            left = [entry.plan.record for entry in entries if entry.plan and entry not in gone]
            keys = [PlanKey.of(record) for record in left]
            freed = sum(entry.size for entry in gone)
            freed += self._drop_others(_TIMING, "*.timing", {key.timing_name for key in keys})
            freed += self._drop_others(_RUNTIME, "*.runtime", self._runtime_names(left))
            names = {key.name for key in keys} | self._free_dead_locks()
            freed += self._drop_others(_LOGS, "*.log", {f"{name}.log" for name in names})
        return Pruned(tuple(gone), freed)

    def _kept(self, folder: str, name: str) -> bytes | None:
        """What `_keep` wrote; None where there is nothing, or a part of it."""
        try:
            with own_folder(self.folder, folder) as inside:
                kept = read_own_file(inside, self.folder / folder / name)
        except FileNotFoundError:
            return None
        digest, content = kept[:32], kept[32:]
        return content if hashlib.sha256(content).digest() == digest else None

    def _keep(self, folder: str, name: str, content: bytes) -> None:
        with self._store.changing(len(content)):
            path = self.folder / folder / name
            self._store.put_file(path, hashlib.sha256(content).digest() + content)

    def _names(self, *below: str) -> list[str]:
        try:
            with own_folder(self.folder, *below) as inside, os.scandir(inside) as entries:
                return sorted(entry.name for entry in entries)
        except FileNotFoundError:
            return []

    def _judge(self, plan: CachedPlan, proof: Proof) -> CachedPlan:
        try:
            with open_entry(self.folder, *self._below(plan)) as (_, record):
                _check_same(plan, record)
        except FileNotFoundError:
            raise _gone(plan) from None
        judged = record.model_copy(update={"proof": proof})
        self._store.put_file(plan.path.with_name(SIDECAR), judged.to_json())
        return CachedPlan(plan.path, judged)

    def _below(self, plan: CachedPlan) -> tuple[str, ...]:
        return plan.path.parent.relative_to(self.folder).parts

    def _failed_newest_first(self) -> list[Path]:
        folders = [
            self.folder / _FAILED / name for name in self._names(_FAILED) if _FAILED_NAME.fullmatch(name)
        ]
        return sorted(folders, key=lambda folder: -folder.stat().st_mtime_ns)

    def _drop_others(self, folder: str, pattern: str, kept: set[str]) -> int:
        """Remove the files of the `pattern` but those `kept`; returns the bytes freed."""
        freed = 0
        for path in (self.folder / folder).glob(pattern):
            if path.name not in kept:
                freed += path.lstat().st_size
                path.unlink()
        return freed

    def _runtime_names(self, records: list[PlanRecord]) -> set[str]:
        """The files of compiled kernels of these plans, for whatever GPU."""
        plans = {_runtime_prefix(record) for record in records}
        return {name for name in self._names(_RUNTIME) if name.partition("-")[0] in plans}

    def _free_dead_locks(self) -> set[str]:
        """Remove the locks of dead builds; returns the names of the plans that are being built."""
        building = set()
        for path in map(Path, filter(_LOCK_NAME.fullmatch, self._names())):
            try:
                FileLock.acquire(self.folder / path).release()
            except LockHeldError:
                building.add(path.stem)
        return building


def _runtime_prefix(record: PlanRecord) -> str:
    return record.plan_sha256[:16]


def _runtime_name(plan: CachedPlan, gpu: Gpu) -> str:
    kind = f"{gpu.name} {gpu.compute_capability}".encode()
    return f"{_runtime_prefix(plan.record)}-{_sha256(kind)[:8]}.runtime"


def _home() -> str:
    user = os.geteuid()
    try:
        return os.environ.get("HOME") or pwd.getpwuid(user).pw_dir
    except KeyError:
        raise MachineError(
            f"no home folder is known for user {user}, so there is no plan cache: "
            "name a folder with --plan-cache DIR or TUMORSCAN_PLAN_CACHE"
        ) from None


def _check_same(plan: CachedPlan, record: PlanRecord) -> None:
    if record.plan_sha256 != plan.record.plan_sha256:
        raise _gone(plan)


def _gone(plan: CachedPlan) -> UsageError:
    return UsageError(f"{shown(plan.path)} was removed or replaced meanwhile: run the same command again")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
