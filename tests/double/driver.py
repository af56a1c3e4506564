"""`pycuda` and `pycuda.driver`, as much of them as lanes use, after the sources of pycuda 2026.1.

What is missing is missing on purpose: the synchronous copies use the null stream, numpy integers are no
addresses, and nothing here needs a compiler.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from tests.double import faults
from tests.double.contexts import Context, Device, calling
from tests.double.double import Double
from tests.double.streams import Event, Stream
from tests.double.transfers import DeviceAllocation, PagelockedHostAllocation, transfer_functions

ERRORS = ("Error", "MemoryError", "LogicError", "LaunchError", "RuntimeError")


def make_pycuda(double: Double) -> dict[str, ModuleType]:
    """The two modules of that double."""

    def init(flags: int = 0) -> None:
        with calling(double, "init", "cuInit", context=False):
            double.initialised = True

    driver: Any = ModuleType("pycuda.driver")
    for kind in (Context, Device, Event, Stream):
        setattr(driver, kind.__name__, type(kind.__name__, (kind,), {"_double": double}))
    driver.DeviceAllocation = DeviceAllocation
    driver.PagelockedHostAllocation = PagelockedHostAllocation
    for name in ERRORS:
        setattr(driver, name, getattr(faults, name))
    for function in (init, *transfer_functions(double)):
        setattr(driver, function.__name__, function)
    double.driver = driver
    package: Any = ModuleType("pycuda")
    package.__path__ = []
    package.driver = driver
    return {"pycuda": package, "pycuda.driver": driver}
