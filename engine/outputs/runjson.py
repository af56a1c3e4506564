"""run.json: what was run, on what, and how fast."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

import engine
from engine.disk import cannot_write
from engine.outputs.atomic import replacing

_PACKAGES: Final = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless", "openvino", "pandas", "pycuda",
    "tensorrt", "tensorrt-rtx",
)  # fmt: skip
_MEMORY_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),  # cgroup v2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # v1
)

Probability = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleReport(_Part):
    """Which bundle scored; `sha256` is that of its bundle.json, which holds those of its graphs."""

    name: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class OperatingReport(_Part):
    """The thresholds that were used, and the flips that were averaged over.

    `gate` is False when every slice went to the segmenter.
    """

    gate: bool
    gate_threshold: Probability
    mask_threshold: Probability
    min_pixels: NonNegativeInt
    flips: str = "none"
    flip_classifier: bool = False


class Machine(_Part):
    """The machine, without its name. `memory_bytes` is what a container may use where one is set less."""

    cpu: str
    logical_cores: int
    memory_bytes: int
    kernel: str
    python: str


class CountsReport(_Part):
    """Slices of the whole run, continuations together; `gated_out` ended at the classifier.

    `skipped_masks` and `skipped_other` are files of the input that are no slices.
    """

    slices: NonNegativeInt
    ok: NonNegativeInt
    quarantined: NonNegativeInt
    has_mask: NonNegativeInt
    gated_out: NonNegativeInt
    skipped_masks: NonNegativeInt
    skipped_other: NonNegativeInt


class Timings(_Part):
    """Seconds. `seconds` is this call's, from its first slice read to its last row committed.

    `seconds_total` adds those of the calls that it continues. `start_up_seconds` (models loaded and warmed)
    and `tables_seconds` lie outside both. `slices` is how many this call scored or quarantined.
    """

    slices: NonNegativeInt
    seconds: NonNegativeFloat
    seconds_total: NonNegativeFloat
    start_up_seconds: NonNegativeFloat
    tables_seconds: NonNegativeFloat


class GpuReport(_Part):
    """The GPUs that a run used, all of one model, `indexes` counting those visible.

    `batch` are the slices a batch, `proof` how FP16 was compared with float32. Without `ring_pagelocked` the
    driver would not read the decoded slices where they lie, so that each is copied once more. `lost` are the
    errors of GPUs that failed while others went on.
    """

    model: str
    indexes: list[NonNegativeInt]
    lanes: NonNegativeInt
    batch: NonNegativeInt
    proof: str
    ring_pagelocked: bool
    lost: list[str]


class ClusterReport(_Part):
    """The Ray cluster of a run: its nodes and workers, what of a node each worker had, and nodes lost."""

    nodes: NonNegativeInt
    workers: NonNegativeInt
    cpus: NonNegativeInt
    gpus: NonNegativeInt
    lost_nodes: NonNegativeInt


class ShardReport(_Part):
    """What one shard of a merged run did, in `seconds` of all its calls together."""

    shard: str
    folder: str
    started: AwareDatetime
    ended: AwareDatetime
    slices: NonNegativeInt
    ok: NonNegativeInt
    quarantined: NonNegativeInt
    has_mask: NonNegativeInt
    seconds: NonNegativeFloat
    slices_per_second: NonNegativeFloat
    gpu: GpuReport | None
    machine: Machine


class MergeReport(_Part):
    """The shards of a merged run.

    `slices_per_second_summed` adds up their rates, which is that of all side by side; the run's own
    `slices_per_second` is the mean of one, its slices over the seconds of all.
    """

    shards: list[ShardReport]
    slices_per_second_summed: NonNegativeFloat


class RunReport(_Part):
    """All of run.json, in its order. `precision` is by model; `slices_per_second` is this call's.

    `arguments` is the command line as it was typed, `options` are those that held, wherever they were set.
    `shard` is 3/16 of a run that is the third of 16 parts of its input, and of no use without the others;
    `merged` tells of a run that was made of all. `why` says why on this runtime, "" where it was named; `gpu`
    is None on the CPU.
    """

    tumorscan: str = engine.__version__
    arguments: list[str]
    options: list[str] = []
    started: AwareDatetime
    ended: AwareDatetime
    finished: bool
    continued: bool
    shard: str | None = None
    merged: MergeReport | None = None
    bundle: BundleReport
    runtime: str
    runtime_version: str
    why: str = ""
    gpu: GpuReport | None = None
    cluster: ClusterReport | None = None
    precision: dict[str, str]
    operating_point: OperatingReport
    counts: CountsReport
    timings: Timings
    slices_per_second: NonNegativeFloat
    machine: Machine
    packages: dict[str, str]


def write_report(path: Path, report: RunReport) -> None:
    """Write `report` as JSON, whole or not at all. Raises MachineError when it cannot be written."""
    try:
        with replacing(path, durable=True) as file:
            file.write(f"{report.model_dump_json(indent=2)}\n".encode())
    except OSError as error:
        raise cannot_write(path, error) from error


def describe_machine() -> Machine:
    """This machine, as far as Linux tells it."""
    return Machine(
        cpu=_cpu_model(),
        logical_cores=len(os.sched_getaffinity(0)),
        memory_bytes=min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_container_limits()]),
        kernel=platform.release(),
        python=platform.python_version(),
    )


def package_versions() -> dict[str, str]:
    """The versions of those installed packages that can change a result or a speed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    """The name that the kernel gives the first core, or the architecture where it gives none (ARM)."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named[1].strip() if named else platform.machine()


def _container_limits() -> list[int]:
    limits = []
    for path in _MEMORY_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such cgroup; "max"
            continue
    return limits
