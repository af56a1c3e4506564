"""`from engine import score`: a run as an iterator of results, for notebooks and programs."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, get_args

from engine.cloud.addresses import local, of_path
from engine.disk import cannot_write
from engine.errors import UsageError
from engine.flips import Flips
from engine.notebook.arrays import Images, as_files, expect_stack
from engine.notebook.iterating import Run
from engine.outputs.components import Rule
from engine.run import LANES, Options
from engine.sources.channels import Patterns
from engine.sources.discovery import Discovery
from engine.sources.shards import Shard

AnyPath = str | os.PathLike[str]
Backend = Literal["auto", "tensorrt", "cuda", "openvino", "onnxruntime"]
Precision = Literal["auto", "fp32", "bf16", "int8", "fp16"]
Masks = Literal["png", "rle", "none"]
Mirrors = Literal["none", "horizontal", "all"]

_OF_FILES: Final = ("overlays", "save_probabilities", "parquet", "anonymise", "keep_patient")
"""Options that only decide on files."""
_IMAGES: Final = "images"


def score(
    *inputs: AnyPath,
    images: Images | None = None,
    out: AnyPath | None = None,
    bundle: AnyPath | None = None,
    files_from: AnyPath | None = None,
    limit: int | None = None,
    batch: int | None = None,
    workers: int | None = None,
    backend: Backend = "auto",
    gpus: str | None = None,
    lanes: int = LANES,
    plan_cache: AnyPath | None = None,
    precision: Precision = "auto",
    threshold: float | None = None,
    mask_threshold: float | None = None,
    no_gate: bool = False,
    flips: Mirrors = "none",
    flip_classifier: bool = False,
    masks: Masks = "png",
    components: str = "all",
    overlays: bool = False,
    save_probabilities: bool = False,
    parquet: bool = False,
    channels: str | None = None,
    anonymise: AnyPath | None = None,
    keep_patient: bool = False,
    shard: str | None = None,
    ray: str | None = None,
    retry: bool = False,
    fresh: bool = False,
    max_runtime: float | None = None,
) -> Run:
    """Score slices, and iterate over what comes of them.

    Example:
        ```python
        from engine import score

        for result in score("slices", out="results"):
            if result.error is not None:
                print(result.path, "could not be scored:", result.error.message)
            elif result.has_mask:
                print(result.path, result.tumor_probability, result.mask.shape, result.mask_pixels)
        ```

    The run begins when the first result is asked for, in a thread of its own, and waits while none is taken.
    Results come as they are committed to the run's ledger: in about the order of the input, as slices get
    done. Each slice of the run comes once: what earlier calls scored comes first, so that a call that
    continues an interrupted run, or repeats a finished one, gives all of it. With `components` all results
    come at the end, in the order of the input, since a mask may change until its volume is whole.

    Leaving the loop stops the run in order, and the same call continues it. A run that `max_runtime` stopped
    just ends: see `Run.outcome`.

    The options that are not named below are the command's, of the same names: `tumorscan score --help`
    explains each. None stands for its default.

    Args:
        *inputs: Folders and files to score, as the command's INPUT.
        images: Instead of `inputs`, slices that are arrays: a stack `[n,h,w]` or `[n,h,w,3]` (RGB), or an
            iterable of `[h,w]` or `[h,w,3]`, which is gone over as the run goes on, in another thread. uint8
            is taken as it is; other integers and floats are windowed to 8 bits as files are, a stack by one
            window as a volume is. Without `out`.
        out: The output folder, as the command's `--out`. None keeps nothing: the run works in a private
            folder (of `tempfile`) that is deleted at its end, and writes no masks.
        batch: Slices decoded and scored together; None is the command's auto.
        max_runtime: Seconds after which the run stops in order.

    Returns:
        An iterator of `Result`; its `outcome` tells how the run ended, `to_frame()` gives a table.

    Raises:
        UsageError: Options that are none or contradict. While iterating also: a bundle that is refused,
            another run's output folder, a scored file that changed, an array that is no slice.
        MachineError: While iterating: a runtime, space or permission is missing.
    """
    for name, given, allowed in (
        ("backend", backend, Backend),
        ("precision", precision, Precision),
        ("masks", masks, Masks),
    ):
        if given not in get_args(allowed):
            raise UsageError(f"{name}={given!r}: choose from {', '.join(get_args(allowed))}")
    _expect_positive(limit=limit, batch=batch, workers=workers, lanes=lanes, max_runtime=max_runtime)
    options = Options(
        inputs=tuple(os.fspath(each) for each in inputs),
        out=Path() if out is None else local(Path(out)),
        bundle=_path(bundle),
        files_from=None if files_from is None else os.fspath(files_from),
        limit=limit,
        batch=batch,
        workers=workers,
        backend=backend,
        gpus=gpus,
        lanes=lanes,
        plan_cache=_path(plan_cache),
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
        channels=channels,
        anonymise=_path(anonymise),
        keep_patient=keep_patient,
        shard=None if shard is None else Shard.parse(shard),
        ray=ray,
        retry=retry,
        fresh=fresh,
        max_runtime=max_runtime,
    )
    if images is not None:
        _refuse_beside_images(options, images, out)
    else:
        listed = None if files_from is None else ()
        Discovery(
            options.inputs,
            listed,
            None if out is None else options.out,
            None if channels is None else Patterns.parse(channels),
        )
    if out is not None and of_path(options.out) is not None:
        raise UsageError(
            "out is an address: results are iterated over on a disk only; into an object store write "
            "with `tumorscan score`, or engine.scoring.score"
        )
    return Run(options) if out is not None else _private_run(options, images)


def _private_run(options: Options, images: Images | None) -> Run:
    """A run in a folder of its own, which goes when it does."""
    for name in _OF_FILES:
        if getattr(options, name):
            raise UsageError(f"{name} is about files, and none are kept: add out=FOLDER")
    if options.ray is not None:
        raise UsageError("a cluster needs an output folder that all its nodes share: add out=FOLDER")
    try:
        private = Path(tempfile.mkdtemp(prefix="tumorscan-"))
        (private / _IMAGES).mkdir()
    except OSError as error:
        raise cannot_write(Path(tempfile.gettempdir()), error) from error
    # The rows have masks as run lengths: nobody would read files.
    options = replace(options, out=private / "out", masks="none")
    if images is None:
        return Run(options, private=private)
    folder = private / _IMAGES
    return Run(replace(options, listed=as_files(images, folder)), private=private, images=folder)


def _refuse_beside_images(options: Options, images: Images, out: AnyPath | None) -> None:
    if options.inputs or options.files_from is not None:
        raise UsageError("both images and files to score are given: give one of them")
    if out is not None:
        raise UsageError(
            "images are scored without an output folder: leave out=, or write them to files first"
        )
    if options.channels is not None:
        raise UsageError("channels combines the files of folders: stack the sequences as [h,w,3] instead")
    expect_stack(images)


def _expect_positive(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and number <= 0:
            raise UsageError(f"{name}={number}: give more than 0, or leave it out")


def _path(given: AnyPath | None) -> Path | None:
    return None if given is None else Path(given)
