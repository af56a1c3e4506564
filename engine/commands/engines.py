"""`tumorscan engines list|inspect|prune`: what is in the plan cache."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from engine.errors import UsageError
from engine.text import shown

if TYPE_CHECKING:
    from engine.plans.cache import PlanCache
    from engine.plans.entry import CacheEntry
    from engine.plans.sidecar import Flavour

_Folder = Annotated[
    Path | None, typer.Option(help="The plan cache (else $TUMORSCAN_PLAN_CACHE, else in your cache folder).")
]

engines = typer.Typer(
    name="engines", help="Show and remove the TensorRT plans in the plan cache.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Hang the commands on the app."""
    app.add_typer(engines)


@engines.command(name="list")
def list_command(
    plan_cache: _Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every record as JSON.")] = False,
) -> None:
    """List the cached plans: model, batch, TensorRT, GPU, proof, size.

    Exit status: 0, also for an empty cache; 2 wrong use; 3 the machine lacks something.
    """
    cache = _cache(plan_cache)
    entries = cache.plans()
    if as_json:
        typer.echo(json.dumps([_as_json(entry) for entry in entries], indent=2))
        return
    if not entries:
        typer.echo(f"no plans in {shown(cache.folder)}")
        return
    typer.echo(_table(entries))
    typer.echo(f"{shown(cache.folder)}: {sum(entry.size for entry in entries) / 1e6:,.1f} MB")


@engines.command(name="inspect")
def inspect_command(
    plan: Annotated[str, typer.Argument(help="A plan's name (or how it begins), or its folder.")],
    plan_cache: _Folder = None,
    layers: Annotated[bool, typer.Option("--layers", help="Every layer, not only how many of each.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Show one plan: what it was built of and for, its proof, its layers with their precisions.

    Exit status: 0 shown; 2 no plan of that name, or more than one; 3 the machine lacks something.
    """
    entry = _one(_cache(plan_cache), plan)
    if as_json:
        typer.echo(json.dumps(_as_json(entry), indent=2))
        return
    if entry.plan is None:
        typer.echo(f"{shown(entry.folder)} cannot be used: {entry.fault}")
        return
    record = entry.plan.record
    facts = {
        "plan": shown(entry.plan.path),
        "model": f"{record.model}, {record.precision}, {record.batch} slices at a time",
        "runtime": record.runtime,
        "driver": f"{record.driver} (CUDA {record.cuda})" if record.driver else "built without one",
        "built": f"{record.built:%Y-%m-%d %H:%M} UTC in {record.build_seconds:.1f} s",
        "size": f"{record.plan_size:,} bytes",
        "outputs": ", ".join(record.outputs),
        "ONNX sha256": record.onnx_sha256,
        "plan sha256": record.plan_sha256,
        "proof": record.proof.status + (f" on {record.proof.slices}" if record.proof.slices else ""),
    }
    for name, value in facts.items():
        typer.echo(f"{name:<12} {value}")
    if record.proof.report is not None:
        typer.echo(f"{'parity':<12} {json.dumps(record.proof.report)}")
    typer.echo(f"\n{len(record.layers)} layers, {_WHENCE[record.layers_of]}:")
    if layers:
        for layer in record.layers:
            typer.echo(f"  {layer.precision:<8} {layer.kind:<24} {layer.name}")
        return
    for (kind, precision), count in Counter(
        (each.kind, each.precision) for each in record.layers
    ).most_common():
        typer.echo(f"  {count:4}  {kind:<24} {precision}")


_WHENCE = {
    "engine": "as the built engine runs them",
    "network": "as the network that was parsed has them (the engine could not be loaded where it was built)",
}


@engines.command(name="prune")
def prune_command(
    plan_cache: _Folder = None,
    every: Annotated[bool, typer.Option("--all", help="Remove all plans.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Remove plans that failed their proof.")] = False,
    other: Annotated[
        bool, typer.Option("--other", help="Remove plans of a TensorRT or GPU that is not here.")
    ] = False,
    unused: Annotated[
        int | None, typer.Option(metavar="DAYS", min=0, help="Remove plans not used for so many days.")
    ] = None,
) -> None:
    """Remove plans; damaged ones go with any of the options.

    Exit status: 0 removed; 2 wrong use; 3 the machine lacks something.
    """
    if not (every or failed or other or unused is not None):
        raise UsageError("engines prune: say which plans go: --all, --failed, --other or --unused DAYS")
    from engine.plans.prune import made_for_other, unused_for

    rules: list[Callable[[CacheEntry], bool]] = []
    if every:
        rules.append(_any)
    if failed:
        rules.append(_failed)
    if other:
        rules.append(made_for_other(*_here()))
    if unused is not None:
        rules.append(unused_for(timedelta(days=unused)))
    gone = _cache(plan_cache).prune(lambda entry: any(rule(entry) for rule in rules))
    for entry in gone.entries:
        typer.echo(f"removed {shown(entry.folder)}")
    count = len(gone.entries)
    typer.echo(f"{count} plan{'' if count == 1 else 's'} removed, {gone.freed / 1e6:,.1f} MB freed")


def _any(_entry: CacheEntry) -> bool:
    return True


def _failed(entry: CacheEntry) -> bool:
    return entry.failed


def _cache(option: Path | None) -> PlanCache:
    from engine.plans.cache import PlanCache, cache_folder

    return PlanCache(cache_folder(option))


def _one(cache: PlanCache, name: str) -> CacheEntry:
    """The entry of that name; `UsageError` when there is none, or more than one."""
    wanted = Path(name).name
    found = [entry for entry in cache.plans() if entry.folder.name.startswith(wanted)]
    exact = [entry for entry in found if entry.folder.name == wanted]
    if len(exact or found) != 1:
        some = ", ".join(entry.folder.name for entry in found) or "none"
        raise UsageError(
            f"engines inspect {name}: {some} of {shown(cache.folder)} begins so: take a name of engines list"
        )
    return (exact or found)[0]


def _table(entries: list[CacheEntry]) -> str:
    rows = [("name", "batch", "for", "proof", "MB", "built")]
    for entry in entries:
        if entry.plan is None:
            rows.append((entry.folder.name, "", entry.fault, "cannot be used", _megabytes(entry), ""))
            continue
        record = entry.plan.record
        proof = "failed, set aside" if entry.failed else record.proof.status
        built = f"{record.built:%Y-%m-%d}"
        rows.append((entry.folder.name, str(record.batch), record.runtime, proof, _megabytes(entry), built))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _megabytes(entry: CacheEntry) -> str:
    return f"{entry.size / 1e6:,.1f}"


def _as_json(entry: CacheEntry) -> dict[str, object]:
    return {
        "name": entry.folder.name,
        "folder": shown(entry.folder),
        "failed": entry.failed,
        "fault": entry.fault,
        "size": entry.size,
        "used": entry.used.isoformat(timespec="seconds"),
        "record": entry.plan.record.model_dump(mode="json") if entry.plan else None,
    }


def _here() -> tuple[dict[Flavour, str], list[tuple[str, str]]]:
    """The installed TensorRTs' versions, and the GPUs' names and compute capabilities."""
    from engine.plans.sidecar import Flavour
    from engine.probes import ask

    versions: dict[Flavour, str] = {}
    for flavour in get_args(Flavour):
        if (answer := ask(flavour)).ok:
            versions[flavour] = str(answer.facts["version"])
    driver = ask("driver")
    gpus = [
        (str(gpu["name"]), ".".join(map(str, gpu["compute_capability"])))
        for gpu in (driver.facts["gpus"] if driver.ok else ())
    ]
    return versions, gpus
