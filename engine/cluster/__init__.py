"""A run on the machines of a Ray cluster: each worker a whole local pipeline, and one driver that commits."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Final

from engine.bundle import Bundle
from engine.cloud.addresses import Address, is_address
from engine.cloud.scattered import Scattered, token_in
from engine.cluster.board import Board
from engine.cluster.drive import PATIENCE_S, Drive
from engine.cluster.faults import plain
from engine.cluster.node import Terms, look, open_there, settle_there, versions
from engine.cluster.session import Node, Share, connected, nodes, share_of_cpus, share_of_gpus
from engine.cluster.units import BLOCKS, Slice, source_of
from engine.cluster.worker import AT_ONCE, Worker
from engine.disk import cannot_write
from engine.errors import MachineError, UsageError
from engine.here import paths_of
from engine.ledger import Ledger
from engine.outputs.atomic import clean_stale
from engine.outputs.runjson import ClusterReport, GpuReport
from engine.ray_address import refuse_address
from engine.run import PROOF_SLICES, Options, Plan, Ran
from engine.settle import identity, refuse_outputs
from engine.stop import Stop, StoppedError
from engine.watch.watcher import Watcher

_OF_GPUS: Final = ("auto", "tensorrt", "cuda")
_POLL_S: Final = 0.25
"""How often a wait looks whether the run is to stop."""


@contextmanager
def open_cluster(
    options: Options, watcher: Watcher, stop: Stop, scattered: Scattered | None
) -> Iterator[Cluster]:
    """The cluster that `options` name. It is not spoken to before it is needed.

    `scattered` keeps account of what its workers put into an object store.
    """
    assert options.ray is not None
    refuse_address(options.ray)
    if options.gpus is not None:
        raise UsageError(f"--gpus {options.gpus}: Ray hands out the GPUs of a cluster: leave it out")
    with ExitStack() as stack:
        yield Cluster(options, watcher, stop, stack, scattered)


class Cluster:
    """A Ray cluster, as far as a run is concerned. Use `open_cluster`."""

    def __init__(
        self, options: Options, watcher: Watcher, stop: Stop, stack: ExitStack, scattered: Scattered | None
    ) -> None:
        self._options = options
        self._watcher = watcher
        self._stop = stop
        self._stack = stack
        self._scattered = scattered
        self._is_connected = False
        self._cwd = os.getcwd()  # noqa: PTH109 - text for another machine

    def settle(self, bundle: Bundle) -> Plan:
        """What the options of a new run come to on one of the nodes that will score it.

        Raises as `engine.settle.settle` does, and as `engine.cluster.session.connected`.
        """
        refuse_outputs(self._options)
        self._connect()
        found = nodes()
        uses_gpus = self._options.backend in _OF_GPUS and share_of_gpus(found).workers > 0
        share = share_of_gpus(found) if uses_gpus else share_of_cpus(found)
        self._ask(self._fit(share), versions)  # a node without the package is named, wherever Ray settles
        plan: Plan = self._call(settle_there, self._sent, self._cwd, share=share)
        return replace(plan, bundle=bundle)

    def run(self, plan: Plan, ledger: Ledger, entries: Iterator[Slice]) -> Ran:
        """Score `entries` by `plan`.

        Raises MachineError where a node is not as it must be, where a worker fails, and where the cluster has
        no room; what is committed by then stays, and the same command continues.
        """
        clock = time.monotonic()
        try:
            with self._token() as token:
                self._connect()
                head = list(islice(entries, PROOF_SLICES)) if plan.gpus else []
                began, gpu = plan, None
                if plan.gpus is not None:
                    plan, gpu = self._open(plan, head)
                if plan != began and not plan.continued:
                    ledger.declare(identity(self._options, plan))
                share = self._room(plan)
                terms = self._agreed(plan, share, token)
                board = self._board()
                drive = self._drive(plan, share, terms, board, ledger)
                start_up = time.monotonic() - clock
                drive.run(chain(head, entries))
        except StoppedError:
            return Ran(plan, all_fed=False)
        self._clean()
        report = ClusterReport(
            nodes=len(drive.names),
            workers=share.workers,
            cpus=share.cpus,
            gpus=share.gpus,
            lost_nodes=len(drive.lost_nodes),
        )
        return Ran(plan, drive.all_fed, drive.totals, start_up, gpu, report)

    @property
    def _sent(self) -> Options:
        """The options as other machines are told them: a list of slices is walked here."""
        return replace(self._options, listed=None, gpus=None)

    def _connect(self) -> None:
        if not self._is_connected:
            assert self._options.ray is not None
            self._watcher.prepares("connecting to the Ray cluster", None)
            self._stack.enter_context(connected(self._options.ray))
            self._is_connected = True

    @contextmanager
    def _token(self) -> Iterator[str]:
        """A file in the output, by which nodes know that theirs is the same. The next run clears it away."""
        name = f".tumorscan-{secrets.token_hex(4)}-{os.getpid()}-0.tmp"
        if self._options.store is not None:
            with token_in(Address.parse(self._options.store), name) as address:
                yield address
            return
        path = self._options.out / name
        try:
            path.touch()
        except OSError as error:
            raise cannot_write(self._options.out, error) from error
        try:
            yield str(path)
        finally:
            path.unlink(missing_ok=True)

    def _clean(self) -> None:
        """Take away what workers that died left half written; they are all gone by now."""
        if self._options.store is None:
            try:
                clean_stale(self._options.out)
            except OSError as error:
                raise cannot_write(self._options.out, error) from error

    def _open(self, plan: Plan, head: list[Slice]) -> tuple[Plan, GpuReport | None]:
        """The plan that came up on one GPU; the others take its models."""
        self._watcher.prepares("preparing the models on a GPU of the cluster", None)
        share = share_of_gpus(nodes())
        paths = [path for path in paths_of(head) if not is_address(path)]
        opened, report = self._call(open_there, self._sent, self._cwd, plan, paths, share=share)
        return replace(opened, bundle=plan.bundle, continued=plan.continued), report

    def _room(self, plan: Plan) -> Share:
        """What each worker gets. Waits for a node that has any."""
        until = time.monotonic() + PATIENCE_S
        while True:
            share = share_of_cpus(nodes()) if plan.gpus is None else share_of_gpus(nodes())
            if share.workers:
                return share
            if time.monotonic() > until:
                raise MachineError(
                    f"the Ray cluster has no node with {'a GPU' if plan.gpus else 'a CPU'} for a worker: add "
                    "one, and run the same command to continue"
                )
            self._pause()

    def _agreed(self, plan: Plan, share: Share, token: str) -> Terms:
        """What all nodes agree on, seen on each of them. Raises MachineError for one that does not."""
        self._watcher.prepares("looking at the nodes", None)
        terms = Terms(
            options=self._sent,
            identity=identity(self._options, plan),
            flags=None,
            versions=versions(),
            cwd=self._cwd,
            token=token,
            cores=share.cpus,
        )
        flags = self._ask(self._fit(share), look, terms)
        if plan.gpus is not None:
            return terms
        first, *others = flags
        for other in others:
            if differs := ", ".join(sorted(flags[first] ^ flags[other])):
                raise MachineError(
                    f"the CPUs of {first} and {other} compute otherwise (only one has {differs}), and "
                    "results would differ in their last bits: give the run a cluster of nodes of one kind"
                )
        return replace(terms, flags=flags[first])

    def _fit(self, share: Share) -> list[Node]:
        """The nodes that a worker fits on."""
        return [node for node in nodes() if node.cpus >= share.cpus and node.gpus >= share.gpus]

    def _board(self) -> Any:
        import ray

        return ray.remote(num_cpus=0, scheduling_strategy=_beside_driver())(Board).remote()

    def _drive(self, plan: Plan, share: Share, terms: Terms, board: Any, ledger: Ledger) -> Drive:
        import ray

        self._watcher.prepares("starting the workers", None)
        found = self._fit(share)
        self._watcher.says(
            f"on the Ray cluster: nodes {len(found)}, workers {share.workers}, each with CPUs {share.cpus}"
            f"{', GPUs 1' if share.gpus else ''}"
        )
        context = ray.data.DataContext.get_current().copy()
        context.target_max_block_size = 1  # a unit is a block: it is handed out, and comes back, by itself
        with ray.data.DataContext.current(context):
            dataset = ray.data.read_datasource(
                source_of(board),
                override_num_blocks=1,
                num_cpus=0,
                label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
            ).map_batches(
                Worker,
                fn_constructor_args=(terms, board),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(
                    min_size=1,
                    initial_size=share.workers,
                    max_concurrent_calls_per_actor=AT_ONCE,
                    max_tasks_in_flight_per_actor=2 * AT_ONCE,
                    enable_true_multi_threading=True,
                ),
                num_cpus=share.cpus,
                num_gpus=share.gpus,
            )
        return Drive(
            dataset=dataset,
            board=board,
            ledger=ledger,
            watcher=self._watcher,
            stop=self._stop,
            size=BLOCKS * (plan.batch if plan.gpus is None else plan.gpus.batch or plan.batch),
            workers=share.workers,
            names={node.node_id: node.name for node in found},
            scattered=self._scattered,
        )

    def _ask(self, found: list[Node], work: Callable[..., Any], *arguments: object) -> dict[str, Any]:
        """What `work` says on each node, by their names."""
        asked = [self._remote(work, Share(0, 0, 1), node).remote(*arguments) for node in found]
        return {node.name: self._answer(ref, node) for node, ref in zip(found, asked, strict=True)}

    def _call(self, work: Callable[..., Any], *arguments: object, share: Share) -> Any:
        """Do `work` on a node with room for a worker."""
        return self._answer(self._remote(work, share).remote(*arguments))

    def _remote(self, work: Callable[..., Any], share: Share, node: Node | None = None) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = "DEFAULT" if node is None else NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        return ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=1, scheduling_strategy=where)(
            work
        )

    def _answer(self, ref: Any, node: Node | None = None) -> Any:
        """What remote work came to. Raises what it raised, as one line; StoppedError."""
        import ray

        until = time.monotonic() + PATIENCE_S
        while not ray.wait([ref], timeout=_POLL_S)[0]:
            self._pause(0.0)
            if time.monotonic() > until:
                where = "the Ray cluster" if node is None else node.name
                raise MachineError(
                    f"{where} has not answered for {PATIENCE_S / 60:.0f} minutes: `ray status` tells what it "
                    "waits for"
                )
        try:
            return ray.get(ref)
        except Exception as error:
            raise plain(error, "a node of the cluster" if node is None else node.name) from error

    def _pause(self, seconds: float = _POLL_S) -> None:
        """Raises StoppedError when the run is to stop."""
        self._stop.look_at_clock()
        if self._stop.asked.wait(seconds):
            raise StoppedError


def _beside_driver() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
