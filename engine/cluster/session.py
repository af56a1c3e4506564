"""The connection to a Ray cluster: found or started, kept quiet, and what it has to give."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from engine.errors import MachineError
from engine.ray_address import AUTO, HOST_PORT, LOCAL, refuse_address

_ENVIRONMENT: Final = MappingProxyType(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
)
_ANSWER_S: Final = 10.0
_STORE_BYTES: Final = 128 << 20
"""For objects of a cluster that is started here: units are small."""
_FULL: Final = 0.9


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive: its name among Ray's and to the user, and what Ray counts there."""

    node_id: str
    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker is given of a node, as Ray counts it, and how many of them there is room for."""

    cpus: int
    gpus: int
    workers: int


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a driver of the cluster at `address` meanwhile.

    "auto" is $RAY_ADDRESS, else a cluster that runs on this machine, else one that is started, as "local" is,
    and ends with this process. A connection that is there already, as in a notebook, is used and kept.
    Raises MachineError where ray is not installed and where nothing answers.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MachineError(f"--ray needs Ray ({error}): pip install 'tumorscan[cluster]'") from None
    _hush(ray)
    if ray.is_initialized():
        yield
        return
    with _raylets_unheard():
        with _signals_kept(), _muted():
            _connect(ray, address)
        try:
            yield
        finally:
            with _signals_kept(), _muted():
                ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    named = os.environ.get("RAY_ADDRESS", "") if address == AUTO else address
    if named and named not in (AUTO, LOCAL):
        refuse_address(named)
        _expect_answer(named)
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if named != LOCAL and _join(ray, named or AUTO, quiet):
            return
        ray.init(
            address=LOCAL,
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            **quiet,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise MachineError(f"--ray {address}: {_first_line(error)}") from error


def _join(ray: Any, address: str, quiet: dict[str, Any]) -> bool:
    """Connect to a cluster that is there; False where none was named and none runs here."""
    try:
        ray.init(address=address, **quiet)
    except ConnectionError:
        if address == AUTO:
            return False
        raise
    return True


def _expect_answer(address: str) -> None:
    """Ray itself would try for minutes."""
    found = HOST_PORT.fullmatch(address)
    assert found is not None
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise MachineError(
            f"--ray {address}: nothing answers there ({error}): is the cluster up? (ray status)"
        ) from error


def _hush(ray: Any) -> None:
    """Nothing but this program's own lines on the screen; Ray's logs stay in its session's folder."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    log = logging.getLogger("ray.data")
    for handler in list(log.handlers):
        if handler.name == "console":
            log.removeHandler(handler)


@contextmanager
def _raylets_unheard() -> Iterator[None]:
    """What raylets say of the dead is not printed among the output: the run itself tells of them."""
    try:
        from ray._private import worker  # Ray has no public way

        kept = worker.print_to_stdstream
    except (ImportError, AttributeError):
        yield
        return
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = kept


@contextmanager
def _muted() -> Iterator[None]:
    """Nothing of this process reaches the screen meanwhile: Ray's native parts write there by themselves."""
    sys.stderr.flush()
    screen, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts its own handlers in the place of those that end a run in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def nodes() -> list[Node]:
    """Those that are alive."""
    import ray

    return [
        Node(
            node["NodeID"],
            f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})",
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def share_of_gpus(found: list[Node]) -> Share:
    """A GPU a worker, and as many CPUs as the node with the fewest for each has."""
    having = [node for node in found if node.gpus >= 1]
    cpus = min((int(node.cpus // node.gpus) for node in having), default=0)
    return Share(cpus, 1, sum(int(node.gpus) for node in having))


def share_of_cpus(found: list[Node]) -> Share:
    """The largest number of CPUs a worker for which nearly all of the cluster's are used.

    A worker fills the cores that it has, and few large ones take less memory than many.
    """
    counts = [int(node.cpus) for node in found if node.cpus >= 1]
    for cpus in range(max(counts, default=0), 0, -1):
        workers = sum(count // cpus for count in counts)
        if workers * cpus >= _FULL * sum(counts):
            return Share(cpus, 0, workers)
    return Share(0, 0, 0)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
