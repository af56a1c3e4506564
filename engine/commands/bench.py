"""`tumorscan bench`: parses, validates, prints; `engine.bench` measures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine.commands.score import batch_of
from engine.errors import MachineError, UsageError
from engine.sources.discovery import Discovery
from engine.text import shown

if TYPE_CHECKING:
    from pydantic import JsonValue

    from engine.bench import Measured, Rates, Timed
    from engine.bundle import Bundle
    from engine.run import GpuUse

FEW_SLICES = 200
"""Below this, filling and emptying the pipeline is a good part of the time."""
SHORT_SECONDS = 1.0
"""Below this it is as well."""
BUSY_LOAD = 0.5
"""Load average a core from which a machine is called busy."""


def register(app: typer.Typer) -> None:
    """Hang the command on the app."""
    app.command(name="bench")(bench_command)


def bench_command(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Folders and files; the first ones are scored.")
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="The model bundle (else the one that is installed).")
    ] = None,
    backend: Annotated[
        Literal["auto", "tensorrt", "cuda", "openvino", "onnxruntime"],
        typer.Option(help="What computes; auto is what tumorscan score would take."),
    ] = "auto",
    gpus: Annotated[str | None, typer.Option(metavar="all|0,2", help="As for tumorscan score.")] = None,
    lanes: Annotated[int, typer.Option(min=1, max=16, help="Batches that a GPU works at side by side.")] = 2,
    plan_cache: Annotated[
        Path | None,
        typer.Option(help="TensorRT's plans (else $TUMORSCAN_PLAN_CACHE, else in your cache folder)."),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Measure this one only; may be repeated (else all there are).")
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="auto|N", help="Slices decoded and scored together.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Decode processes (else by the cores).")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="About how long it may take.")] = 60,
    limit: Annotated[int | None, typer.Option(min=1, help="At most the first N slices of the input.")] = None,
    scratch: Annotated[
        Path | None, typer.Option(help="Where outputs are written for a while (else the temporary folder).")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there as well.")
    ] = None,
) -> int:
    """Measure how fast this machine scores your own slices, in about a minute.

    Three rates at each precision: both models alone, from RAM (with masks, rows and ledger), and disk to disk
    as `tumorscan score` does it. The input is only read. Exit status: 0; 2 wrong use; 3 the machine lacks
    something.
    """
    _refuse_wrong_use(inputs, bundle, scratch, json_file)
    from rich.console import Console

    from engine.bench import Request, measure
    from engine.bundle import Bundle
    from engine.run import Options

    loaded = Bundle.load(bundle or Bundle.default_folder())
    options = Options(
        inputs=tuple(inputs),
        out=Path(os.devnull),
        bundle=loaded.folder,
        limit=limit,
        batch=batch_of(batch),
        workers=workers,
        backend=backend,
        gpus=gpus,
        lanes=lanes,
        plan_cache=plan_cache,
    )
    load_before = os.getloadavg()[0]
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    with console.status("loading the models") as status:
        measured = measure(
            Request(options, tuple(precision) if precision else None, seconds, scratch), status.update
        )
    typer.echo(_table(measured, load_before))
    if json_file is not None:
        _write_json(json_file, _facts(measured, loaded, load_before))
    return 0


def _refuse_wrong_use(
    inputs: list[str], bundle: Path | None, scratch: Path | None, json_file: Path | None
) -> None:
    """What can be told before the slow imports."""
    Discovery(inputs, None, None)
    if bundle is not None and not bundle.is_dir():
        raise UsageError(f"--bundle {bundle}: no such folder")
    if scratch is not None and not scratch.is_dir():
        raise UsageError(f"--scratch {scratch}: no such folder")
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise UsageError(f"--json {json_file}: give a file in a folder that is there")


def _table(measured: Measured, load_before: float) -> str:
    head = ("precision", "runner only", "from RAM", "disk to disk")
    rows: list[tuple[str, ...]] = [head]
    for rates in measured.rates:
        base = rates.runner_only.per_second
        others = (rates.from_ram.per_second, rates.disk_to_disk.per_second)
        rows.append((_name(rates), f"{base:,.1f}", *(f"{each:,.1f} ({each / base:.2f})" for each in others)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    first = measured.rates[0]
    share = first.runner_only.passed / first.runner_only.slices
    lines.append(
        f"slices a second, and as a share of runner only; {measured.slices:,} slices "
        f"({measured.size / 1e6:,.0f} MB), {share:.0%} of them segmented, on {first.plan.backend}"
    )
    if first.plan.gpus is not None:
        lines.append(
            f"{len(first.plan.gpus.devices)} x {first.plan.gpus.model}, lanes: {first.plan.gpus.lanes} each, "
            f"batches of {first.batch}; runner only holds the way of the slices to the GPU"
        )
    lines += [f"left out: {name} ({why})" for name, why in measured.left_out.items()]
    if measured.slices < FEW_SLICES:
        lines.append(
            f"rough: of {measured.slices} slices, beginning and end are a good part; "
            f"give {FEW_SLICES} or more and time for them (--seconds)"
        )
    elif first.disk_to_disk.seconds < SHORT_SECONDS:
        lines.append(
            f"rough: {first.disk_to_disk.seconds:.1f} s are short; python -m benchmarks.gpu_check measures "
            "longer"
        )
    cores = len(os.sched_getaffinity(0))
    if load_before > BUSY_LOAD * cores:
        lines.append(f"the machine was busy before (load {load_before:.1f} on {cores} cores): it can do more")
    return "\n".join(lines)


def _name(rates: Rates) -> str:
    other = rates.plan.precision[1]
    return rates.asked if other == rates.asked else f"{rates.asked} (segmenter {other})"


def _facts(measured: Measured, bundle: Bundle, load_before: float) -> dict[str, JsonValue]:
    from datetime import UTC, datetime

    import engine
    from engine.outputs.runjson import describe_machine, package_versions

    return {
        "tumorscan": engine.__version__,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": {"name": bundle.manifest.name, "sha256": bundle.sha256},
        "backend": measured.rates[0].plan.backend,
        "batch": measured.rates[0].batch,
        "gpus": gpus_as_json(measured.rates[0].plan.gpus),
        "slices": measured.slices,
        "bytes": measured.size,
        "rates": [_rates(each) for each in measured.rates],
        "left_out": dict(measured.left_out),
        "load_before": load_before,
        "machine": describe_machine().model_dump(mode="json"),
        "packages": dict(package_versions()),
    }


def gpus_as_json(use: GpuUse | None) -> dict[str, JsonValue] | None:
    """The GPUs that were measured; None on the CPU."""
    if use is None:
        return None
    return {"model": use.model, "indexes": [each.index for each in use.devices], "lanes": use.lanes}


def _rates(rates: Rates) -> dict[str, JsonValue]:
    def facts(timed: Timed) -> dict[str, JsonValue]:
        return {
            "slices_per_second": timed.per_second,
            "of_runner_only": timed.per_second / rates.runner_only.per_second,
            "seconds": timed.seconds,
            "slices": timed.slices,
            "passed": timed.passed,
            "has_mask": timed.has_mask,
        }

    return {
        "precision": {"classifier": rates.plan.precision[0], "segmenter": rates.plan.precision[1]},
        "runner_only": facts(rates.runner_only),
        "from_ram": facts(rates.from_ram),
        "disk_to_disk": facts(rates.disk_to_disk),
    }


def _write_json(path: Path, facts: dict[str, JsonValue]) -> None:
    import json

    from engine.outputs.atomic import replacing

    try:
        with replacing(path) as file:
            file.write((json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise MachineError(
            f"--json {shown(path)}: cannot be written ({error.strerror}): give another file"
        ) from error
