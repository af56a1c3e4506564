"""`tumorscan score`: parses, validates, prints; `engine.scoring` does it."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from engine.commands.carry_out import say_dry, watched
from engine.commands.configured import ConfiguredCommand
from engine.commands.optional import AddressOptional
from engine.commands.screen import speak_json
from engine.commands.signals import SignalStop
from engine.errors import UsageError
from engine.ray_address import refuse_address
from engine.sources.channels import Patterns
from engine.sources.discovery import Discovery
from engine.sources.shards import Shard
from engine.stop import Stop
from engine.text import shown

MOST_BATCH = 1024


class ScoreCommand(ConfiguredCommand, AddressOptional):
    """Its options may stand in a file, and --ray without an address."""


def register(app: typer.Typer) -> None:
    """Hang the command on the app."""
    app.command(name="score", cls=ScoreCommand)(score_command)


def score_command(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...", help="Folders and files to score, or their addresses (s3://, gs://)."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The output folder, or its address; a run in it is continued.")
    ] = Path("results"),
    bundle: Annotated[
        Path | None, typer.Option(help="The model bundle (else the one that is installed).")
    ] = None,
    files_from: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="Score the paths listed there, one a line or NUL-separated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N slices of the input.")] = None,
    batch: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            help="Slices decoded and scored together. auto: 16 on the CPU; on a GPU 64, or fewer where its "
            "memory is taken. There another N gives other bits, so a run keeps the one it began with.",
        ),
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Decode processes (else by the cores).")
    ] = None,
    backend: Annotated[
        Literal["auto", "tensorrt", "cuda", "openvino", "onnxruntime"],
        typer.Option(
            help="What computes. auto: tensorrt on an NVIDIA GPU (plans are built on first use), else cuda "
            "(ONNX Runtime), else openvino; it says which and why."
        ),
    ] = "auto",
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="all|0,2", help="GPUs to use, all of one model (else all of the first one's model)."
        ),
    ] = None,
    lanes: Annotated[int, typer.Option(min=1, max=16, help="Batches that a GPU works at side by side.")] = 2,
    plan_cache: Annotated[
        Path | None,
        typer.Option(help="TensorRT's plans (else $TUMORSCAN_PLAN_CACHE, else in your cache folder)."),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "int8", "fp16"],
        typer.Option(
            help="auto: the fastest that this CPU has and whose parity is recorded in the bundle; on a GPU "
            "fp16. int8: the classifier, with the segmenter in the lowest whose masks hold."
        ),
    ] = "auto",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Tumour probability from which a slice passes the gate (else the bundle's)."
        ),
    ] = None,
    mask_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Probability from which a pixel is tumour, in steps of 1/255."),
    ] = None,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Send every slice to the segmenter.")] = False,
    flips: Annotated[
        Literal["none", "horizontal", "all"],
        typer.Option(
            help="Test-time augmentation: masks are cut from the mean over a slice and its mirror image "
            "(horizontal: the segmenter runs twice, a tenth more CPU time where a third pass the gate) or "
            "all four (all). CPU only."
        ),
    ] = "none",
    flip_classifier: Annotated[
        bool,
        typer.Option(
            "--flip-classifier",
            help="Average the tumour probability over the same flips: the classifier runs as often, on all "
            "slices (horizontal: 2.3 times the CPU time).",
        ),
    ] = False,
    masks: Annotated[
        Literal["png", "rle", "none"],
        typer.Option(
            help="Write masks as PNG, as run lengths into results.csv (COCO's, for millions of slices), or "
            "only count them."
        ),
    ] = "png",
    components: Annotated[
        str,
        typer.Option(
            metavar="all|largest|N|Nml",
            help="What is kept of each volume's mask: all, its largest component, or those of at least N "
            "voxels or N millilitres. A folder of pictures is taken for one volume.",
        ),
    ] = "all",
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also write the MRI with the mask's outline.")
    ] = False,
    save_probabilities: Annotated[
        bool,
        typer.Option(
            "--save-probabilities",
            help="Also write each pixel's probability, as PNG (0 to 255), of the slices that pass the gate.",
        ),
    ] = False,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write the tables as Parquet too (extra: tables).")
    ] = False,
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="t1=P,flair=P,t1c=P",
            help="Combine a patient's sequences (NIfTI, DICOM) as the three channels: patterns of file names "
            "or series, such as t1=*t1.nii.gz,flair=*flair*,t1c=*t1c*. FLAIR stands in for a missing one.",
        ),
    ] = None,
    anonymise: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Hash the names of files and volumes in all that is written. The key, the ledger and who is "
            "who are kept in FOLDER, which is private.",
        ),
    ] = None,
    keep_patient: Annotated[
        bool, typer.Option("--keep-patient", help="Copy the patient's name and id into DICOM segmentations.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Score one of N parts of the input (1/16 to 16/16), for jobs of a cluster, each into an "
            "--out of its own; `tumorscan merge` puts them together. Names decide, folders stay whole.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:PORT|auto|local]",
            help="Score on a Ray cluster whose nodes share a disk or a store (extra: cluster). Without an "
            "address: $RAY_ADDRESS, else the one that runs here, else one started on this machine.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take options from the table `score` of this TOML file; those typed here win.",
        ),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(help="json: what happens goes to standard error as JSON, one object a line."),
    ] = "text",
    metrics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.prom",
            help="Write counts and rates there every 15 seconds, for Prometheus (node_exporter's textfiles).",
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Score quarantined slices again.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete an earlier run in --out and start over.")
    ] = False,
    max_runtime: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Stop in order after this long (90, 30m, 4h); resumable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> int:
    """Score slices: which show a tumour, and where.

    Writes results.csv, errors.csv, run.json and masks/ below --out. After a stop or a kill the same command
    continues. Exit status: 0 all scored; 2 wrong use; 3 the machine lacks something, or a GPU fails; 4
    finished with quarantined slices; 75 stopped by --max-runtime; 130, 143 interrupted, resumable.
    """
    if log_format == "json":
        speak_json()
    seconds = None if max_runtime is None else _seconds(max_runtime)
    slices = batch_of(batch)
    part = None if shard is None else Shard.parse(shard)
    _refuse_wrong_use(inputs or [], files_from, out, bundle, channels)
    if ray is not None:
        refuse_address(ray)
    # Before the slow imports: the first process of a container gets no signal that it does not listen to.
    signals = SignalStop(Stop())
    with nullcontext() if dry_run else signals:
        from engine.flips import Flips
        from engine.outputs.components import Rule
        from engine.scoring import Options

        options = Options(
            inputs=tuple(inputs or ()),
            out=out,
            bundle=bundle,
            files_from=files_from,
            limit=limit,
            batch=slices,
            workers=workers,
            backend=backend,
            gpus=gpus,
            lanes=lanes,
            plan_cache=plan_cache,
            precision=precision,
            threshold=threshold,
            mask_threshold=mask_threshold,
            gate=not no_gate,
            flips=Flips(flips, flip_classifier),
            masks=masks,
            components=Rule.parse(components),
            overlays=overlays,
            save_probabilities=save_probabilities,
            parquet=parquet,
            anonymise=anonymise,
            keep_patient=keep_patient,
            channels=channels,
            shard=part,
            ray=ray,
            retry=retry,
            fresh=fresh,
            max_runtime=seconds,
            arguments=tuple(map(shown, sys.argv[1:])),
        )
        if dry_run:
            return say_dry(options, config)
        return watched(options, signals, quiet=quiet, as_json=log_format == "json", metrics=metrics)


def _refuse_wrong_use(
    inputs: list[str], files_from: str | None, out: Path, bundle: Path | None, channels: str | None
) -> None:
    """What can be told before the slow imports: numpy, OpenCV and a runtime take a second or more."""
    patterns = None if channels is None else Patterns.parse(channels)
    Discovery(inputs, None if files_from is None else (), out, patterns)
    if files_from is not None and files_from != "-" and not Path(files_from).exists():
        raise UsageError(f"--files-from {files_from}: no such file")
    if bundle is not None and not bundle.is_dir():
        raise UsageError(f"--bundle {bundle}: no such folder")


def batch_of(text: str) -> int | None:
    """The slices that --batch means, None for auto. UsageError for what is no number of them."""
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_BATCH:
        raise UsageError(f"--batch {text}: give auto, or 1 to {MOST_BATCH:,} slices")
    return int(text)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--max-runtime {text}: give seconds, or a number with s, m, h or d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
