"""One plan's folder in the cache: the plan, and plan.json beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from engine.bundle import Model
from engine.errors import TumorscanError, UsageError
from engine.plans.sidecar import PlanRecord, parse_record
from engine.plans.trust import delete, open_own_file, own_folder, read_own_file
from engine.text import shown

SIDECAR: Final = "plan.json"


@dataclass(frozen=True, slots=True)
class CachedPlan:
    """A plan file in the cache, and what is known of it."""

    path: Path
    record: PlanRecord


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One plan's folder as a listing shows it: sizes and owners checked, the plan's sha256 not.

    `plan` is None where it is damaged or not to be trusted, and `fault` says how. `size` is in bytes, `used`
    is when the plan was last read or, never read, built.
    """

    folder: Path
    plan: CachedPlan | None
    fault: str
    size: int
    used: datetime

    @property
    def failed(self) -> bool:
        """Whether the plan failed its proof."""
        return self.plan is not None and self.plan.record.proof.status == "failed"


@contextmanager
def open_entry(root: Path, *below: str) -> Iterator[tuple[int, PlanRecord]]:
    """The open folder `below` the cache folder `root`, and the record in it.

    Raises FileNotFoundError when there is no such entry, or no longer, while the block runs; UsageError when
    it is damaged or not to be trusted, MachineError when it cannot be read.
    """
    folder = root.joinpath(*below)
    with own_folder(root, *below) as inside:
        try:
            sidecar = folder / SIDECAR
            yield inside, parse_record(read_own_file(inside, sidecar), sidecar)
        except FileNotFoundError as error:
            if not os.path.samestat(folder.lstat(), os.fstat(inside)):
                raise  # another entry took its place while it was read
            missing = shown(folder / str(error.filename))
            raise UsageError(f"{missing} is missing: {delete(folder)}") from None


def read_plan(inside: int, plan: CachedPlan) -> bytes:
    """The bytes of `plan` in its open folder `inside`: those whose size and sha256 its record gives."""
    path, record = plan.path, plan.record
    content = read_own_file(inside, path, record.plan_size)
    found = hashlib.sha256(content).hexdigest()
    if found != record.plan_sha256:
        raise UsageError(
            f"{shown(path)} has sha256 {found}, its record says {record.plan_sha256}: {delete(path.parent)}"
        )
    return content


def look_at(root: Path, *below: str) -> CacheEntry:
    """What a listing shows of the entry `below` the cache folder `root`. FileNotFoundError if it is gone."""
    folder = root.joinpath(*below)
    plan, fault, status = None, "", folder.lstat()
    try:
        with open_entry(root, *below) as (inside, record):
            path = folder / plan_name(record.model)
            with open_own_file(inside, path, record.plan_size) as file:
                status = os.fstat(file.fileno())
            plan = CachedPlan(path, record)
    except TumorscanError as error:
        fault = str(error)
    used = datetime.fromtimestamp(status.st_mtime, UTC)
    return CacheEntry(folder, plan, fault, _size(folder), used)


def plan_name(model: Model) -> str:
    """The plan's file in its folder."""
    return f"{model}.plan"


def _size(folder: Path) -> int:
    try:
        return sum(path.lstat().st_size for path in folder.iterdir())
    except OSError:
        return 0
