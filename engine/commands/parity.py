"""`tumorscan parity`: parses, validates, prints; `engine.trial` compares."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from engine.errors import Failure, MachineError, UsageError
from engine.sources.discovery import Discovery
from engine.text import shown

if TYPE_CHECKING:
    from pydantic import JsonValue

    from engine.bundle import Bundle
    from engine.cascade import Cascade, OperatingPoint
    from engine.parity import Limits, ParityReport
    from engine.plans.sidecar import Flavour
    from engine.proof import Watch
    from engine.trial import Block

FAILED_STATUS = 5


def register(app: typer.Typer) -> None:
    """Hang the command on the app."""
    app.command(name="parity")(parity_command)


def parity_command(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT...", help="Folders and files to compare on.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="The model bundle (else the one that is installed).")
    ] = None,
    against: Annotated[
        Literal[
            "openvino:bf16",
            "openvino:fp32",
            "openvino:int8+bf16",
            "openvino:int8+fp32",
            "openvino:int8",
            "onnxruntime:fp32",
            "tensorrt:fp16",
            "tensorrt-rtx:fp16",
            "onnxruntime-cuda:fp16",
        ],
        typer.Option(
            help="The runtime and precision that is compared with the reference; plans of TensorRT that are "
            "not in the plan cache are built first."
        ),
    ] = "openvino:bf16",
    files_from: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-", help="Compare on the paths listed there, one a line or NUL-separated."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N slices of the input.")] = None,
    no_gate: Annotated[
        bool,
        typer.Option(
            "--no-gate",
            help="Segment what the gate would stop too: more masks are compared, and a slice flips where "
            "has_mask differs with the gate or without.",
        ),
    ] = False,
    truth: Annotated[
        bool, typer.Option("--truth", help="Also Dice a volume, by the true masks X_mask.tif beside X.tif.")
    ] = False,
    limits: Annotated[
        Literal["cpu", "fp16"] | None,
        typer.Option(help="What parity may lose (else fp16 for plans in FP16, cpu for all others)."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report there as well.")
    ] = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Write the report into the bundle; needs --truth, and slices of validation."
        ),
    ] = False,
) -> int:
    """Compare a runtime and precision with ONNX Runtime in float32, on slices of your own.

    Both run the whole cascade on the same slices; the limits say how far they may be apart.
    Exit status: 0 parity holds; 2 wrong use; 3 the machine lacks something; 5 parity does not hold.
    """
    _refuse_wrong_use(inputs or [], files_from, bundle, json_file)
    if record and (no_gate or not truth):
        raise UsageError("--record is of the whole cascade against truth: give --truth, and no --no-gate")

    from engine.bundle import Bundle
    from engine.parity import CPU_LIMITS, FP16_LIMITS, standing

    asked = limits or ("fp16" if against.endswith(":fp16") else "cpu")
    chosen = {"cpu": CPU_LIMITS, "fp16": FP16_LIMITS}[asked]
    source = _Source(tuple(inputs or ()), files_from, limit, truth)
    loaded = Bundle.load(bundle or Bundle.default_folder())
    if record:
        _refuse_unwritable(loaded)
    report, who = _compare(loaded, against, source, gated=not no_gate)
    stands = standing(report, chosen)
    broken = report.broken(chosen)
    if json_file is not None:
        facts: dict[str, JsonValue] = {
            "bundle": {"name": loaded.manifest.name, "sha256": loaded.sha256},
            **who,
            "gate": not no_gate,
            "unreadable": source.unreadable,
            **report.record(chosen),
            "broken": list(broken),
        }
        _write_json(json_file, facts)
    typer.echo(_table(report, chosen, source))
    typer.echo(f"{against}: {_verdict(report, broken, stands == 'weakly proven')}")
    if record:
        _record(loaded, against, report, chosen)
    return FAILED_STATUS if broken else 0


def _refuse_wrong_use(
    inputs: list[str], files_from: str | None, bundle: Path | None, json_file: Path | None
) -> None:
    """What can be told before the slow imports."""
    Discovery(inputs, None if files_from is None else (), None)
    if files_from is not None and files_from != "-" and not Path(files_from).exists():
        raise UsageError(f"--files-from {files_from}: no such file")
    if bundle is not None and not bundle.is_dir():
        raise UsageError(f"--bundle {bundle}: no such folder")
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise UsageError(f"--json {json_file}: give a file in a folder that is there")


@dataclass(slots=True)
class _Source:
    """The slices to compare on, and what became of those that could not be read."""

    inputs: tuple[str, ...]
    files_from: str | None
    limit: int | None
    truth: bool
    unreadable: int = 0
    first_unreadable: str = ""

    def blocks(self) -> Iterator[Block]:
        """Read them. Raises UsageError where there are none."""
        from engine.trial import read_slices

        blocks = read_slices(
            self.inputs, self._listed(), limit=self.limit, truth=self.truth, on_bad=self._note
        )
        first = next(blocks, None)
        if first is None:
            where = ", ".join(map(shown, self.inputs)) or "the list"
            why = f" that can be read ({self.first_unreadable})" if self.unreadable else ""
            raise UsageError(f"no slices in {where}{why}: give a folder with .tif, .png, .jpg or .webp files")
        return chain((first,), blocks)

    def count(self) -> int | None:
        """How many files there are; None for a pipe, which gives each line to one reader only."""
        if self.files_from is not None and not Path(self.files_from).is_file():
            return None
        found = sum(1 for _ in Discovery(self.inputs, self._listed(), None))
        return found if self.limit is None else min(found, self.limit)

    def _listed(self) -> Iterator[bytes] | None:
        from engine.sources.lists import open_list

        return None if self.files_from is None else open_list(self.files_from, threading.Event())

    def _note(self, path: str, failure: Failure) -> None:
        self.unreadable += 1
        self.first_unreadable = self.first_unreadable or f"{path}: {failure.message}"


def _compare(
    bundle: Bundle, against: str, source: _Source, *, gated: bool
) -> tuple[ParityReport, dict[str, JsonValue]]:
    """The report, and what was compared with what."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from engine.cascade import OperatingPoint
    from engine.trial import open_cascade, trial

    point = OperatingPoint.of(bundle, gated=gated)
    blocks = source.blocks()
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ExitStack() as stack:
        bar = stack.enter_context(
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        )
        task = bar.add_task("loading the models", total=None)
        other = stack.enter_context(
            _opened(bundle, against, point, lambda text, _: bar.update(task, description=text))
        )
        reference = stack.enter_context(open_cascade(bundle, "onnxruntime", "fp32", point))

        def shown_blocks(blocks: Iterable[Block]) -> Iterator[Block]:
            for block in blocks:
                yield block
                bar.advance(task, len(block.images))

        bar.update(task, description="comparing", total=source.count() if console.is_terminal else None)
        report = trial(reference, other, shown_blocks(blocks))
        return report, {"reference": _described(reference), "other": _described(other)}


def _opened(
    bundle: Bundle, against: str, point: OperatingPoint, watch: Watch
) -> AbstractContextManager[Cascade]:
    """The cascade that is compared with the reference."""
    backend, precision = against.split(":")
    if backend in ("openvino", "onnxruntime"):
        from engine.trial import open_cascade

        return open_cascade(bundle, backend, precision, point)
    from engine.build import BATCH, BuildOptions, build_plans
    from engine.plans.cache import PlanCache, cache_folder
    from engine.runners.device import visible_gpu
    from engine.trial import open_cuda, open_plans

    visible_gpu(0)  # before minutes of building
    if backend == "onnxruntime-cuda":
        return open_cuda(bundle, point, batch=BATCH)
    outcome = build_plans(BuildOptions(bundle=bundle.folder, flavour=cast("Flavour", backend)), watch)
    plans = {made.plan.record.model: made.plan for made in outcome.plans}
    return open_plans(PlanCache(cache_folder(None)), plans, point)


def _described(cascade: Cascade) -> dict[str, JsonValue]:
    runner = cascade.classifier
    return {"runtime": runner.name, "version": runner.version, "precision": runner.precision}


def _table(report: ParityReport, limits: Limits, source: _Source) -> str:
    rows = {"slices": f"{report.slices:,}"}
    if source.unreadable:
        rows["left out"] = f"{source.unreadable:,} that cannot be read, first {source.first_unreadable}"
    if report.probability_error_max is not None:
        mean, most = report.probability_error_mean, report.probability_error_max
        rows["probability error"] = f"mean {mean:.2g}, at most {most:.2g}"
    rows["has_mask flips"] = (
        f"{report.flips:,} ({report.flip_fraction:.2%}; limit {limits.flip_fraction:.2%})"
    )
    rows["not empty masks"] = (
        f"{report.masks_reference:,} of the reference, {report.masks_other:,} of the other, "
        f"{report.masks_both:,} of both"
    )
    if report.mask_dice is not None:
        rows["mask Dice"] = f"{report.mask_dice:.4f} (limit {limits.mask_dice})"
    if report.dice_fall is not None:
        rows["Dice against truth"] = (
            f"{report.dice_reference:.4f} and {report.dice_other:.4f} over {report.volumes:,} volumes "
            f"(falls by {report.dice_fall:.5f}; limit {limits.dice_fall})"
        )
    elif source.truth:
        rows["Dice against truth"] = "unknown: no X_mask.tif lies beside a slice X.tif"
    rows["not a number"] = f"{report.non_finite:,}"
    widest = max(map(len, rows))
    return "\n".join(f"{name:<{widest}}  {value}" for name, value in rows.items())


def _verdict(report: ParityReport, broken: tuple[str, ...], is_weak: bool) -> str:
    if broken:
        return f"parity does not hold: {'; '.join(broken)}"
    if is_weak:
        return f"parity holds, weakly proven: masks of {report.masks_both:,} slices only were compared"
    return "parity holds"


def _write_json(path: Path, facts: Mapping[str, JsonValue]) -> None:
    from engine.outputs.atomic import replacing

    try:
        with replacing(path) as file:
            file.write((json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise MachineError(
            f"--json {path}: cannot be written ({error.strerror}): give another file"
        ) from error


def _record(bundle: Bundle, key: str, report: ParityReport, limits: Limits) -> None:
    from engine.bundle import record_parity
    from engine.parity import ENOUGH_MASKS, standing

    if report.volumes == 0:
        raise UsageError("not recorded: no X_mask.tif lies beside a slice; --record needs true masks")
    if standing(report, limits) == "weakly proven":
        raise UsageError(f"not recorded: give slices on which both draw {ENOUGH_MASKS} masks or more")
    try:
        record_parity(bundle, key, report.record(limits))
    except OSError as error:
        raise _unwritable(bundle, error.strerror) from error
    typer.echo(f"recorded as {key} in {shown(bundle.folder / 'bundle.json')}")


def _refuse_unwritable(bundle: Bundle) -> None:
    if not os.access(bundle.folder, os.W_OK):
        raise _unwritable(bundle, "no permission, or a file system that is read only")


def _unwritable(bundle: Bundle, why: str | None) -> MachineError:
    return MachineError(
        f"{shown(bundle.folder)}: --record cannot write there ({why}): copy the bundle, and name the copy "
        "with --bundle"
    )
