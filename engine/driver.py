"""The NVIDIA driver as it tells itself, asked through libcuda.so.1 without ever making a context.

TensorRT does not ask: without a driver its objects come into being and crash the process later. After
`cuInit` CUDA fails in a process forked from this one; this tool only spawns. CUDA_VISIBLE_DEVICES is
honoured, as libcuda does so itself.
"""

from __future__ import annotations

import ctypes
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.errors import MachineError

LIBCUDA: Final = "libcuda.so.1"

_VERSION_FILE: Final = Path("/proc/driver/nvidia/version")
_CONTAINER_MARKS: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
_NEEDED: Final = (
    "cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName",
    "cuDeviceGetAttribute", "cuDeviceTotalMem_v2", "cuDeviceGetUuid",
)  # fmt: skip
# From cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_MAJOR: Final = 75
_MINOR: Final = 76
_NO_DEVICE: Final = 100
_NAME_BYTES: Final = 256
_RELEASE_BYTES: Final = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE

# From cuda.h (35, which belongs to the runtime, from driver_types.h).
_ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    2: ("CUDA_ERROR_OUT_OF_MEMORY", "free host memory, or lift `ulimit -v`"),
    34: (
        "CUDA_ERROR_STUB_LIBRARY",
        f"the {LIBCUDA} that is found is the toolkit's stub: take the stubs folder out of LD_LIBRARY_PATH",
    ),
    35: (
        "CUDA_ERROR_INSUFFICIENT_DRIVER",
        "the driver is too old for its libraries: update the NVIDIA driver",
    ),
    _NO_DEVICE: ("CUDA_ERROR_NO_DEVICE", "see that nvidia-smi lists a GPU"),
    304: ("CUDA_ERROR_OPERATING_SYSTEM", "see that this user may open /dev/nvidia*"),
    802: ("CUDA_ERROR_SYSTEM_NOT_READY", "the GPUs are still coming up: see that nvidia-fabricmanager runs"),
    803: (
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        f"the kernel's driver and {LIBCUDA} are of different releases: reboot after a driver update; in a "
        "container take CUDA's compat folder out of LD_LIBRARY_PATH",
    ),
    804: (
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "CUDA's compat libraries do not work with this GPU: take the compat folder out of LD_LIBRARY_PATH, "
        "or update the NVIDIA driver",
    ),
    999: (
        "CUDA_ERROR_UNKNOWN",
        "see that nvidia-smi works and /dev/nvidia-uvm exists (`modprobe nvidia_uvm`); reboot if it does",
    ),
}


class NoGpuError(MachineError):
    """No NVIDIA driver, or none of its GPUs for us: what is absent, where other MachineErrors mean broken."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: `index` counts those visible, `memory` is in bytes, `uuid` as `nvidia-smi -L` ends it."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory: int
    uuid: str


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver: `cuda` is the newest version that it supports, `release` its own, "" where none tells."""

    cuda: tuple[int, int]
    release: str
    gpus: tuple[Gpu, ...]


def probe_driver() -> Driver:
    """The driver and the GPUs that this process may use, at least one.

    Raises:
        NoGpuError: there is no driver here, or no GPU is visible.
        MachineError: libcuda will not load, lacks a function, or fails; the line names the error.
    """
    library = _load()
    _call(library, "cuInit", ctypes.c_uint(0))
    version = ctypes.c_int()
    _call(library, "cuDriverGetVersion", ctypes.byref(version))
    count = ctypes.c_int()
    _call(library, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise _no_gpu()
    cuda = (version.value // 1000, version.value % 1000 // 10)
    return Driver(cuda, _release(), tuple(_gpu(library, index) for index in range(count.value)))


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBCUDA)
    except OSError as error:
        said = str(error)
        if said.startswith(f"{LIBCUDA}: cannot open shared object file"):
            raise NoGpuError(
                f"no NVIDIA driver here: {LIBCUDA} is not found; {_in_container('install the NVIDIA driver')}"
            ) from None
        raise MachineError(f"{LIBCUDA} cannot be loaded ({said}): install the NVIDIA driver again") from error
    lacking = [name for name in _NEEDED if not hasattr(library, name)]
    if lacking:
        raise MachineError(
            f"the {LIBCUDA} that is found lacks {', '.join(lacking)}: it is no whole NVIDIA driver, or one "
            "too old; install a current one, and see what LD_LIBRARY_PATH leads to"
        )
    return library


def _call(library: ctypes.CDLL, name: str, *arguments: object) -> None:
    code: int = getattr(library, name)(*arguments)
    if code == 0:
        return
    if code == _NO_DEVICE:
        raise _no_gpu()
    error, advice = _ERRORS.get(code, (_error_name(library, code), "see that nvidia-smi works"))
    raise MachineError(f"the NVIDIA driver does not answer: {name} gives {error} ({code}); {advice}")


def _error_name(library: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    known = hasattr(library, "cuGetErrorName") and not library.cuGetErrorName(code, ctypes.byref(text))
    return text.value.decode(errors="replace") if known and text.value else "an error"


def _no_gpu() -> NoGpuError:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        advice = (
            f"CUDA_VISIBLE_DEVICES={chosen!r} leaves none: unset it, or name one that nvidia-smi -L lists"
        )
    else:
        advice = _in_container(_ERRORS[_NO_DEVICE][1])
    return NoGpuError(f"the NVIDIA driver finds no GPU ({_ERRORS[_NO_DEVICE][0]}): {advice}")


def _in_container(otherwise: str) -> str:
    if any(mark.exists() for mark in _CONTAINER_MARKS):
        return "start the container with --gpus all, on a machine that has a GPU"
    return otherwise


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    handle = ctypes.c_int()
    _call(library, "cuDeviceGet", ctypes.byref(handle), ctypes.c_int(index))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call(library, "cuDeviceGetName", name, ctypes.c_int(_NAME_BYTES), handle)
    memory = ctypes.c_size_t()
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    # Of a slice of a GPU (MIG) only the second version tells its own.
    newest = "cuDeviceGetUuid_v2" if hasattr(library, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
    identity = (ctypes.c_ubyte * 16)()
    _call(library, newest, identity, handle)
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=(_attribute(library, _MAJOR, handle), _attribute(library, _MINOR, handle)),
        memory=memory.value,
        uuid=str(uuid.UUID(bytes=bytes(identity))),
    )


def _attribute(library: ctypes.CDLL, attribute: int, handle: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _call(library, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), handle)
    return value.value


def _release() -> str:
    """The driver's release: from the kernel module, else (WSL has none) from NVML, else ""."""
    try:
        found = re.search(r"Module(?: for \S+)?\s+(\d+[.\d]*)", _VERSION_FILE.read_text(errors="replace"))
    except OSError:
        found = None
    return found[1] if found else _release_by_nvml()


def _release_by_nvml() -> str:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        release = ctypes.create_string_buffer(_RELEASE_BYTES)
        if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(
            release, ctypes.c_uint(_RELEASE_BYTES)
        ):
            return ""
        library.nvmlShutdown()
    except (OSError, AttributeError):
        return ""
    return release.value.decode(errors="replace")
