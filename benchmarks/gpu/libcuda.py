"""libcuda.so.1 for what pycuda asks more of than there is: a stream that is known by its handle alone."""

from __future__ import annotations

import ctypes

from engine.driver import LIBCUDA
from engine.errors import MachineError


def call(name: str, *arguments: object) -> None:
    """Call a function of the driver; `arguments` are ctypes values. MachineError where it refuses."""
    library = ctypes.CDLL(LIBCUDA)
    code = int(getattr(library, name)(*arguments))
    if code:
        raise MachineError(f"the GPU fails ({name} gives error {code}): see nvidia-smi and dmesg")
