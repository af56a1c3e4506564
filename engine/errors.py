"""What can go wrong, in the two forms a user meets: an error that ends a run, a failure of one slice."""

from __future__ import annotations

from dataclasses import dataclass


class TumorscanError(Exception):
    """Ends a run with one line on the screen. `exit_status` is what the command returns."""

    exit_status = 1


class UsageError(TumorscanError):
    """The call cannot be done as asked: a missing folder, a damaged bundle, options that contradict."""

    exit_status = 2


class MachineError(TumorscanError):
    """This machine lacks what was asked for: a GPU, a runtime, disk space, a permission."""

    exit_status = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one slice is quarantined.

    `stage` is where (discover, read, decode, write), `code` a stable word for programs, `message` one line
    for people. A `transient` failure (an I/O error) is tried again whenever the run is continued.
    """

    stage: str
    code: str
    message: str
    transient: bool = False


class SliceError(Exception):
    """Carries a `Failure` out of a reader."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
