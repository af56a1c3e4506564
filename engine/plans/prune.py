"""Which plans `PlanCache.prune` removes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta

from engine.plans.entry import CacheEntry
from engine.plans.sidecar import Flavour


def unused_for(age: timedelta) -> Callable[[CacheEntry], bool]:
    """Plans that were neither built nor read within `age`."""
    limit = datetime.now(UTC) - age
    return lambda entry: entry.used < limit


def made_for_other(
    versions: Mapping[Flavour, str], gpus: Collection[tuple[str, str]]
) -> Callable[[CacheEntry], bool]:
    """Plans of a TensorRT that is not among `versions`, or that run on none of `gpus`.

    `gpus` are names and compute capabilities; without any, no plan goes for its GPU.
    """

    def goes(entry: CacheEntry) -> bool:
        if entry.plan is None:
            return True
        record = entry.plan.record
        fits = any(
            capability in record.compute_capabilities and record.gpu in (None, name)
            for name, capability in gpus
        )
        return versions.get(record.flavour) != record.tensorrt_version or (bool(gpus) and not fits)

    return goes
