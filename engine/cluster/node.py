"""One node of a cluster: what it must share with the driver, and the cores that a worker there keeps to."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import engine
from engine.bundle import Bundle
from engine.cloud.addresses import is_address
from engine.cloud.scattered import expect_token
from engine.errors import MachineError, UsageError
from engine.opening import open_run
from engine.outputs import runjson
from engine.outputs.runjson import GpuReport
from engine.run import Options, Plan
from engine.runners import BF16_FLAGS, INT8_FLAGS, cpu_flags
from engine.settle import identity, settle
from engine.stop import Stop
from engine.text import shown

COMPUTING_FLAGS: Final = BF16_FLAGS | INT8_FLAGS | {"avx", "avx2", "fma", "avx512f", "avx512_fp16", "sve"}
"""What runtimes choose their kernels by: with others the last bits are others."""
_PACKAGES: Final = ("numpy", "opencv-python-headless")
"""What can change a decoded pixel."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a node must be and have for its results to be the run's.

    `options` are as typed, to be understood in the folder `cwd`; `token` is a file that the driver has put
    into the output. `identity` is the run's, `flags` are those of COMPUTING_FLAGS that all have (None where
    they do not matter). `cores` are a worker's, 0 for all.
    """

    options: Options
    identity: Mapping[str, object]
    flags: frozenset[str] | None
    versions: Mapping[str, str]
    cwd: str
    token: str
    cores: int


def versions() -> dict[str, str]:
    """What has to be the same on all nodes, beside what is in a run's identity."""
    found = runjson.package_versions()
    return {"tumorscan": engine.__version__, **{name: found.get(name, "none") for name in _PACKAGES}}


def computing_flags() -> frozenset[str]:
    """Those of this CPU."""
    return cpu_flags() & COMPUTING_FLAGS


def name_of_node() -> str:
    """How this node is named to the user: several may be on one machine."""
    import ray

    context = ray.get_runtime_context()
    return f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}, {context.get_node_id()[:8]})"


def check(terms: Terms) -> Plan:
    """The run's plan, as this node would carry it out. MachineError names the node and what it lacks."""
    with _named():
        return _checked(terms)


def look(terms: Terms) -> frozenset[str]:
    """What `check` does, and the node's computing flags."""
    check(terms)
    return computing_flags()


def settle_there(options: Options, cwd: str) -> Plan:
    """The plan of a run that begins, as this node would choose it. Raises as `check` does."""
    with _named():
        go_to(cwd)
        return settle(options, Bundle.load(options.bundle or Bundle.default_folder()), None)


def open_there(options: Options, cwd: str, plan: Plan, slices: list[bytes]) -> tuple[Plan, GpuReport | None]:
    """Have the models of a plan on GPUs built and proven; the plan that came up. Raises as `check` does."""
    with _named():
        go_to(cwd)
        plan = replace(plan, gpus=None if plan.gpus is None else replace(plan.gpus, devices=()))
        with open_run(options, plan, slices, Silent(), Stop()) as opened:
            use = opened.plan.gpus
            if use is None or opened.gpus is None:
                return opened.plan, None
            return replace(opened.plan, gpus=replace(use, devices=())), opened.gpus.report()


class Silent:
    """A `Listener` to what comes up elsewhere."""

    def prepares(self, text: str, done: float | None) -> None:
        """See `engine.on_gpus.Listener`."""

    def says(self, line: str) -> None:
        """See `engine.on_gpus.Listener`."""


@contextmanager
def _named() -> Iterator[None]:
    """Have errors name this node."""
    try:
        yield
    except (MachineError, UsageError) as error:
        raise type(error)(f"{name_of_node()}: {error}") from None


def _checked(terms: Terms) -> Plan:
    for name, found in versions().items():
        if found != terms.versions[name]:
            raise MachineError(
                f"has {name} {found}, the driver {terms.versions[name]}: install the same everywhere"
            )
    go_to(terms.cwd)
    _expect_shared(terms)
    bundle = Bundle.load(terms.options.bundle or Bundle.default_folder())
    if bundle.sha256 != terms.identity["bundle"]:
        raise MachineError(f"the bundle {shown(bundle.folder)} is another there than the driver's")
    plan = settle(terms.options, bundle, terms.identity)
    here = identity(terms.options, plan)
    if here["backend_version"] != terms.identity["backend_version"]:
        raise MachineError(
            f"has {plan.backend} {here['backend_version']}, the run was begun with "
            f"{terms.identity['backend_version']}: install the same everywhere"
        )
    if here["anonymise"] != terms.identity["anonymise"]:
        raise MachineError(f"{terms.options.anonymise} holds another key there than the driver's")
    _expect_same_cpu(terms.flags)
    return plan


def go_to(cwd: str) -> None:
    """Relative paths are meant from where the command was typed."""
    try:
        os.chdir(cwd)
    except OSError as error:
        raise MachineError(
            f"cannot go to {shown(cwd)} ({error.strerror}), from where the run was started: start it "
            "in a folder that all nodes have"
        ) from error


def _expect_shared(terms: Terms) -> None:
    everywhere = "all nodes must have input, output and bundle at the same paths (a shared file system)"
    out, bundle, private = terms.options.out, terms.options.bundle, terms.options.anonymise
    needed = [("input", Path(text)) for text in terms.options.inputs if not is_address(text)]
    needed += [("bundle", bundle)] if bundle is not None else []
    needed += [("folder of names", private)] if private is not None else []
    for what, path in needed:
        if not path.exists():
            raise MachineError(f"the {what} {shown(path)} is not there: {everywhere}")
    if terms.options.store is not None:
        expect_token(terms.token)
        return
    if not Path(terms.token).exists():
        kind = "is another folder than the driver's" if out.is_dir() else "is not there"
        raise MachineError(f"the output {shown(out)} {kind}: {everywhere}")
    if not os.access(out, os.W_OK | os.X_OK):
        raise MachineError(f"the output {shown(out)} cannot be written by the user that Ray runs as there")


def _expect_same_cpu(flags: frozenset[str] | None) -> None:
    here = computing_flags()
    if flags is None or flags == here:
        return
    differs = ", ".join(sorted(flags ^ here))
    raise MachineError(
        f"its CPU computes otherwise than the one that the run began with (only one of them has {differs}), "
        "and results would differ in their last bits: give the run a cluster of nodes of one kind"
    )


def keep_to(cores: int, among: str = "workers") -> socket.socket | None:
    """Have this process keep to `cores` cores of its own; what is returned holds them while it is open.

    None, and no core of its own, where a machine has no more of them than a worker is given, or where all are
    taken `among` processes that say the same. The name of a socket is free again however a process ended.
    """
    own = sorted(os.sched_getaffinity(0))
    for first in range(0, len(own) - cores + 1, cores) if cores < len(own) else ():
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(f"\0tumorscan-{among}-{own[first]}-{cores}")
        except OSError:
            held.close()
            continue
        os.sched_setaffinity(0, own[first : first + cores])
        return held
    return None
