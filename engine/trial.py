"""Two cascades on the same slices: read from files, scored by both, summed up by `engine.parity`."""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH113, PTH122

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from engine.bundle import Bundle, Model
from engine.cascade import Cascade, OperatingPoint, Scores
from engine.errors import Failure, SliceError, TumorscanError, UsageError
from engine.gpu.device import open_device
from engine.gpu.host import HostRunner, host_outputs
from engine.parity import Compared, Mask, ParityReport, Truth, compare
from engine.plans.cache import CachedPlan, PlanCache
from engine.plans.half import half_graph
from engine.plans.toolkit import load_toolkit
from engine.runners import open_runner
from engine.runners.base import SIDE, Images, Precision
from engine.runners.device import DeviceModel
from engine.sources.discovery import Discovery, SourceFile, Unlisted
from engine.sources.files import read_file
from engine.sources.geometry import place
from engine.sources.headers import PNG_SIGNATURE, read_png_header, refused
from engine.sources.reader import VolumeReader
from engine.sources.tiff import TIFF_SIGNATURES, read_tiff
from engine.text import shown

BLOCK = 32
"""Slices read and scored together: 8 MB with their truth."""

TRUTH_ENDINGS = (b".tif", b".tiff", b".png")
"""Of true masks, tried in this order after the slice's own ending: lossy formats draw no masks."""

OnBad = Callable[[str, Failure], None]
"""Hears of each file that could not be read: its path as shown, and why."""


@dataclass(frozen=True, slots=True)
class Block:
    """A few slices: `images` uint8 [n,256,256,3], and what is true of them where that was asked for."""

    images: Images
    truth: Truth | None = None


@contextmanager
def open_cascade(
    bundle: Bundle, backend: str, precision: str, operating: OperatingPoint
) -> Iterator[Cascade]:
    """Both models of the bundle on one runtime, for one caller at a time. Raises what `open_runner` does.

    `precision` is that of both models, or classifier's and segmenter's as in "int8+bf16".
    """
    on_classifier, _, on_segmenter = cast("tuple[Precision, str, Precision]", precision.partition("+"))
    on_segmenter = on_segmenter or on_classifier
    threads = len(os.sched_getaffinity(0)) if backend == "onnxruntime" else None
    outputs = operating.segmenter_outputs
    with (
        open_runner(backend, bundle, "classifier", on_classifier, threads=threads) as classifier,
        open_runner(
            backend, bundle, "segmenter", on_segmenter, threads=threads, outputs=outputs
        ) as segmenter,
    ):
        yield Cascade(classifier, segmenter, operating)


@contextmanager
def open_plans(
    cache: PlanCache, plans: Mapping[Model, CachedPlan], operating: OperatingPoint, *, device: int = 0
) -> Iterator[Cascade]:
    """Both plans of the cache, of one flavour, as a cascade on GPU `device`; to be left in the same thread.

    It makes a CUDA context in this process, which a fault of the GPU ends: a run's parent never calls it.

    Raises:
        MachineError: no driver, GPU, pycuda, TensorRT or memory, or a plan that cannot be loaded here.
        UsageError: a plan that is refused, or one that lacks what the operating point needs.
    """
    toolkit = load_toolkit(plans["segmenter"].record.flavour)
    lacking = set(operating.segmenter_outputs) - set(host_outputs(plans["segmenter"].record.outputs))
    if lacking:
        raise UsageError(
            f"the segmenter's plan gives no {', '.join(sorted(lacking))}, which another mask threshold than "
            "the bundle's needs: leave --mask-threshold out"
        )

    def opened(model: Model) -> DeviceModel:
        from engine.runners.tensorrt import TensorRtModel

        return TensorRtModel(toolkit, cache, plans[model], device)

    batches = {model: plan.record.batch for model, plan in plans.items()}
    with _on_gpu(opened, batches, operating, device) as cascade:
        yield cascade


@contextmanager
def open_cuda(
    bundle: Bundle, operating: OperatingPoint, *, batch: int, device: int = 0, prefer_nhwc: bool = False
) -> Iterator[Cascade]:
    """Both FP16 graphs on ONNX Runtime's CUDA provider, as `open_plans`. Raises what `CudaModel` does."""
    probabilities = "mask_probability" in operating.segmenter_outputs

    def opened(model: Model) -> DeviceModel:
        from engine.runners.cuda import CudaModel

        graph = half_graph(bundle.graph(model).read_bytes(), model, probabilities=probabilities)
        return CudaModel(graph, model, device=device, prefer_nhwc=prefer_nhwc)

    with _on_gpu(opened, {"classifier": batch, "segmenter": batch}, operating, device) as cascade:
        yield cascade


def trial(reference: Cascade, other: Cascade, blocks: Iterable[Block]) -> ParityReport:
    """Score every block by both cascades, which work at the same operating point, and sum up.

    Where that is not gated, every slice is segmented, so that more masks are compared; the gate's decisions
    are judged all the same (see `Compared.gate`).
    """
    return compare(_scored_twice(reference, other, blocks))


def read_slices(
    inputs: Sequence[str],
    files_from: Iterable[bytes] | None = None,
    *,
    limit: int | None = None,
    truth: bool = False,
    on_bad: OnBad,
) -> Iterator[Block]:
    """Read the slices that `tumorscan score` would, BLOCK at a time; `limit` takes the first files only.

    With `truth`, the mask X_mask.tif beside a slice X.tif (or .tiff, .png) is read as well. Files that cannot
    be read are left out and told to `on_bad`. Raises what Discovery does.
    """
    entries = islice(Discovery(inputs, files_from, None), limit)
    volumes = VolumeReader()
    slices = (each for entry in entries if (each := _read(entry, volumes, truth, on_bad)) is not None)
    while some := list(islice(slices, BLOCK)):
        images = np.stack([each.image for each in some])
        known = Truth([each.volume for each in some], np.stack([each.mask for each in some]))
        yield Block(images, known if truth else None)


def read_truth(path: bytes) -> Mask:
    """`read_true_pixels` as 0/1 [256,256], placed in the square as its slice is. Raises SliceError."""
    import cv2

    tumour = read_true_pixels(path)
    box = place(*tumour.shape)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[box.top : box.top + box.height, box.left : box.left + box.width] = cv2.resize(
        tumour.astype(np.uint8), (box.width, box.height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return mask


def read_true_pixels(path: bytes) -> npt.NDArray[np.bool_]:
    """The true mask in a TIFF or PNG at its own size [h,w]: true where any channel but alpha is not zero.

    Raises SliceError.
    """
    import cv2

    data = read_file(path)
    image: npt.NDArray[Any] | None
    if data.startswith(TIFF_SIGNATURES):
        image = read_tiff(data)
    elif data.startswith(PNG_SIGNATURE):
        read_png_header(data)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None:
            raise refused("decode", "the decoder refuses it, the file is damaged: copy it again")
    else:
        raise refused("not_an_image", "a true mask is a TIFF or a PNG")
    tumour: npt.NDArray[np.bool_] = image != 0 if image.ndim == 2 else (image[..., :3] != 0).any(axis=-1)
    return tumour


@contextmanager
def _on_gpu(
    opened: Callable[[Model], DeviceModel],
    batches: Mapping[Model, int],
    operating: OperatingPoint,
    index: int,
) -> Iterator[Cascade]:
    with open_device(index) as device, ExitStack() as stack:
        runners = {}
        for model, batch in batches.items():
            loaded = stack.enter_context(opened(model))
            runners[model] = stack.enter_context(HostRunner(loaded, batch, device))
        yield Cascade(runners["classifier"], runners["segmenter"], operating)


@dataclass(frozen=True, slots=True)
class _Slice:
    """`volume` is None where the truth is not known; `mask` is then empty."""

    image: npt.NDArray[np.uint8]
    volume: str | None
    mask: Mask


def _scored_twice(reference: Cascade, other: Cascade, blocks: Iterable[Block]) -> Iterator[Compared]:
    point = reference.operating
    gate = None if point.gated else point.gate_threshold
    for block in blocks:
        every = np.ones(len(block.images), np.bool_)
        yield Compared(
            every,
            _score(reference, block.images, every),
            _score(other, block.images, every),
            block.truth,
            gate,
        )


def _score(cascade: Cascade, images: Images, valid: npt.NDArray[np.bool_]) -> Scores:
    """`Cascade.score` that leaves a probability which is no number standing: it is one of the findings."""
    try:
        return cascade.score(images, valid)
    except TumorscanError:
        # Slices that are not valid come back as NaN, so these are left out and found in the scores.
        finite = valid.copy()
        finite[valid] = np.isfinite(cascade.classifier.infer(images[valid])["tumor_probability"])
        return cascade.score(images, finite)


def _read(entry: SourceFile | Unlisted, volumes: VolumeReader, truth: bool, on_bad: OnBad) -> _Slice | None:
    if isinstance(entry, Unlisted):
        on_bad(entry.image_path, entry.failure)
        return None
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    try:
        volumes.decode(entry, image)
    except Exception as error:  # whatever a decoder raises costs its file only
        on_bad(entry.image_path, _failure(error))
        return None
    path = _truth_beside(entry.path) if truth else None
    if path is not None:
        try:
            return _Slice(image, entry.volume, read_truth(path))
        except Exception as error:
            on_bad(shown(path), _failure(error))
    return _Slice(image, None, np.zeros((SIDE, SIDE), np.uint8))


def _truth_beside(path: bytes) -> bytes | None:
    stem, ending = os.path.splitext(path)
    candidates = (stem + b"_mask" + each for each in (ending, *TRUTH_ENDINGS))
    return next((each for each in candidates if os.path.isfile(each)), None)


def _failure(error: Exception) -> Failure:
    if isinstance(error, SliceError):
        return error.failure
    return Failure("decode", "decoder_error", f"{type(error).__name__}: {error}")
