"""CUDA's errors as pycuda raises them, and failures ordered by a test."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Final


class Error(Exception):
    """pycuda.driver.Error."""


class MemoryError(Error):
    """pycuda.driver.MemoryError: no child of Python's own."""


class LogicError(Error):
    """pycuda.driver.LogicError: most errors are this one."""


class LaunchError(Error):
    """pycuda.driver.LaunchError."""


class RuntimeError(Error):
    """pycuda.driver.RuntimeError."""


for _class in (Error, MemoryError, LogicError, LaunchError, RuntimeError):
    _class.__module__, _class.__qualname__ = "pycuda._driver", _class.__name__


@dataclass(frozen=True, slots=True)
class Code:
    """One CUresult: its number, cuGetErrorString's text, the class pycuda raises, whether it is sticky."""

    number: int
    text: str
    kind: type[Error] = LogicError
    sticky: bool = False


# Numbers and texts: cuda.h and cuGetErrorString; classes: translate_cuda_error of wrap_cudadrv.cpp.
CODES: Final = {
    code.text: code
    for code in (
        Code(1, "invalid argument"),
        Code(2, "out of memory", MemoryError),
        Code(3, "initialization error"),
        Code(201, "invalid device context"),
        Code(214, "uncorrectable ECC error encountered", sticky=True),
        Code(400, "invalid resource handle"),
        Code(700, "an illegal memory access was encountered", sticky=True),
        Code(712, "part or all of the requested memory range is already mapped"),
        Code(713, "pointer does not correspond to a registered memory region"),
        Code(719, "unspecified launch failure", LaunchError, sticky=True),
        Code(801, "operation not supported"),
        Code(999, "unknown error", Error, sticky=True),
    )
}
INVALID: Final = CODES["invalid argument"]
NO_MEMORY: Final = CODES["out of memory"]
NOT_INITIALISED: Final = CODES["initialization error"]
NO_CONTEXT: Final = CODES["invalid device context"]
BAD_HANDLE: Final = CODES["invalid resource handle"]
ALREADY_REGISTERED: Final = CODES["part or all of the requested memory range is already mapped"]
NOT_REGISTERED: Final = CODES["pointer does not correspond to a registered memory region"]
ILLEGAL_ADDRESS: Final = CODES["an illegal memory access was encountered"]


class CudaFailure(Exception):  # noqa: N818
    """A function's status, on its way to whatever form its caller gives it."""

    def __init__(self, code: Code, message: str = "") -> None:
        super().__init__(message or code.text)
        self.code = code
        self.message = message


def raised(routine: str, failure: CudaFailure) -> Error:
    """What pycuda raises for a failure of that CUDA function."""
    detail = f" - {failure.message}" if failure.message else ""
    return failure.code.kind(f"{routine} failed: {failure.code.text}{detail}")


ANY: Final = "*"


@dataclass(slots=True)
class Faults:
    """Which call fails and how. Calls are counted by name, from 0, and all together under `ANY`."""

    steps: list[str] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter)
    _now: dict[tuple[str, int], Code] = field(default_factory=dict)
    _later: dict[tuple[str, int], Code] = field(default_factory=dict)
    _enqueued: Counter[str] = field(default_factory=Counter)

    def order(self, name: str, at: int, error: str, count: int, *, later: bool) -> None:
        """Have `count` calls fail from the one numbered `at`; `later`: when their operation runs."""
        code = CODES[error]
        for number in itertools.islice(itertools.count(at), count):
            (self._later if later else self._now)[name, number] = code

    def enter(self, name: str) -> None:
        """Count a call; raises `CudaFailure` where it was ordered to fail."""
        self.steps.append(name)
        for key in (name, ANY):
            number = self._counts[key]
            self._counts[key] += 1
            if (code := self._now.get((key, number))) is not None:
                self.fired.append(name)
                raise CudaFailure(code)

    def enqueue(self, name: str) -> Code | None:
        """Count an operation; the error that it is to end in."""
        for key in (name, ANY):
            number = self._enqueued[key]
            self._enqueued[key] += 1
            if (code := self._later.get((key, number))) is not None:
                self.fired.append(name)
                return code
        return None
