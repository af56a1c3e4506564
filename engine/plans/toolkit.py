"""Which TensorRT is installed, loaded on demand: TensorRT itself or TensorRT-RTX, of a version we know."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.driver import probe_driver
from engine.errors import MachineError
from engine.plans.sidecar import TITLES
from engine.plans.sidecar import Flavour as Flavour
from engine.runners.base import first_line

OLDEST_CAPABILITY: Final = (7, 5)
"""Of a GPU that TensorRT knows: Turing, since 10.5."""
_TURING = "7.5"


@dataclass(frozen=True, slots=True)
class _Edition:
    title: str
    module: str
    extra: str
    oldest: tuple[int, int]
    too_new: tuple[int, int]


_EDITIONS: Final[Mapping[Flavour, _Edition]] = {
    "tensorrt": _Edition(TITLES["tensorrt"], "tensorrt", "tensorrt", (10, 8), (12, 0)),
    "tensorrt-rtx": _Edition(TITLES["tensorrt-rtx"], "tensorrt_rtx", "rtx", (1, 4), (2, 0)),
}


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A loaded TensorRT. `version` is its own, such as "10.16.1.11"; `module` the Python module.

    Where the type checker is to know the module's names, a function says so itself:
    `if TYPE_CHECKING: import tensorrt as trt`, `else: trt = toolkit.module`.
    """

    flavour: Flavour
    version: str
    module: Any

    @property
    def title(self) -> str:
        """What people call it."""
        return _EDITIONS[self.flavour].title


def load_toolkit(flavour: Flavour) -> Toolkit:
    """Import that flavour's module, which touches no driver.

    `MachineError` for one that is missing, half installed (its import may raise anything) or of a version
    that was never looked at.
    """
    edition = _EDITIONS[flavour]
    try:
        module = importlib.import_module(edition.module)
    except ModuleNotFoundError as error:
        if error.name == edition.module:
            raise MachineError(f"{edition.title} is not installed: {_install(edition)}") from None
        raise _unloadable(edition, error) from error
    except Exception as error:
        raise _unloadable(edition, error) from error
    version = getattr(module, "__version__", None)
    numbers = re.match(r"(\d+)\.(\d+)", str(version))
    if numbers is None:
        raise MachineError(
            f"{edition.title} cannot be loaded (the module has no version, so it is a remnant): "
            f"remove {_place(module)}, then {_install(edition)}"
        )
    if not edition.oldest <= (int(numbers[1]), int(numbers[2])) < edition.too_new:
        raise MachineError(
            f"{edition.title} {version} is installed, tumorscan works with {_dotted(edition.oldest)} "
            f"to below {edition.too_new[0]}: {_install(edition)}"
        )
    return Toolkit(flavour, str(version), module)


def build_targets(toolkit: Toolkit) -> tuple[str, ...]:
    """The compute capabilities ("8.6") that a plan built here is for. Ask before any TensorRT object is made.

    TensorRT builds for the first visible GPU, and without a driver its objects come into being and crash the
    process later: `MachineError` then. TensorRT-RTX needs no GPU: its plans are portable to all that it
    names, but for Turing, which NVIDIA wants built for alone and which is chosen where it is the GPU here.
    """
    if toolkit.flavour == "tensorrt":
        return (_dotted(probe_driver().gpus[0].compute_capability),)
    try:
        here = _dotted(probe_driver().gpus[0].compute_capability)
    except MachineError:
        here = ""
    if here == _TURING:
        return (_TURING,)
    members = map(re.compile(r"SM(\d+)(\d)").fullmatch, toolkit.module.ComputeCapability.__members__)
    named = [(int(member[1]), int(member[2])) for member in members if member]
    return tuple(_dotted(pair) for pair in sorted(named) if _dotted(pair) != _TURING)


def _install(edition: _Edition) -> str:
    return f"pip install 'tumorscan[{edition.extra}]'"


def _unloadable(edition: _Edition, error: Exception) -> MachineError:
    return MachineError(
        f"{edition.title} cannot be loaded ({type(error).__name__}: {first_line(error)}): "
        f"{_install(edition)} again, with --force-reinstall"
    )


def _place(module: Any) -> str:
    paths = list(getattr(module, "__path__", ()))
    return paths[0] if paths else str(getattr(module, "__file__", module.__name__))


def _dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
