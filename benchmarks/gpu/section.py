"""One section in a process of its own: `python -m benchmarks.gpu.section NAME FILE`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.gpu import chip, dry, plans, scaling, speeds
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.told import Told
from benchmarks.gpu.worker import VARIABLE


@dataclass(frozen=True, slots=True)
class Section:
    """`share` is its part of the minutes for measuring. `limit` is what it may take at most, in minutes.

    A `here` section makes a CUDA context in its own process, others in processes that they start.
    """

    measure: Callable[[Settings, Told], None]
    share: float
    limit: float
    here: bool = False


SECTIONS: Final[dict[str, Section]] = {
    "plans": Section(plans.measure_plans, 0.0, 45, here=True),
    "chip": Section(chip.measure_chip, 0.05, 10, here=True),
    "parity": Section(plans.measure_parity, 0.05, 20, here=True),
    "models": Section(speeds.measure_models, 0.2, 25),
    "tools": Section(speeds.measure_tools, 0.05, 15),
    "rates": Section(speeds.measure_rates, 0.3, 40),
    "overlap": Section(chip.measure_overlap, 0.05, 15, here=True),
    "scaling": Section(scaling.measure_scaling, 0.2, 60),
    "host": Section(scaling.measure_host, 0.1, 15),
}


def main() -> None:
    name, path = sys.argv[1:]
    section, settings = SECTIONS[name], Settings.decode(os.environ[VARIABLE])
    told = Told(Path(path), name, dry=settings.dry)
    with told.left_out("what comes behind it"), dry.machine(settings.dry and section.here):
        section.measure(settings, told)


if __name__ == "__main__":
    main()
