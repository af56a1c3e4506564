"""A Ray cluster of several nodes on this machine, in a process of its own: a head without CPUs, and workers.

Run as a module it reads a command a line and answers each with one: "add" brings a node up, "kill" ends the
last one, or a worker's, as a power cut would. "odd" brings one up that is not as it must be: with an import
path of its own, or nothing in a folder (a mount that only it sees). "even" ends those.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.runs import environment

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
_NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
_DEADLINE_S = 90.0


@dataclass(slots=True)
class RayCluster:
    """The cluster, as tests see it."""

    process: subprocess.Popen[str]
    address: str

    def do(self, word: str, **more: str) -> None:
        """Have a command carried out."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([word, more]), file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"


@contextmanager
def ray_cluster(nodes: int) -> Iterator[RayCluster]:
    """A cluster of so many nodes with one CPU each."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.raycluster", str(nodes)],
        env={**environment(), **QUIET},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        yield RayCluster(process, process.stdout.readline().strip())


def main() -> None:
    """Serve the tests until they close standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints too
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={**_NODE, "num_cpus": 0, "include_dashboard": False}
    )
    added = [cluster.add_node(**_NODE) for _ in range(int(sys.argv[1]))]
    ray.init(address=cluster.address, log_to_driver=False)
    odd: list[subprocess.Popen[bytes]] = []
    print(cluster.address, file=answers, flush=True)
    for line in sys.stdin:
        word, more = json.loads(line)
        if word == "add":
            added.append(cluster.add_node(**_NODE))
        elif word == "kill":
            killed = _node_of(added, int(more["worker"])) if more else added[-1]
            added.remove(killed)
            cluster.remove_node(killed, allow_graceful=False)
        elif word == "odd":
            odd.append(_odd(cluster.address, **more))
        elif word == "even":
            while odd:
                odd.pop().terminate()
        _until_alive(ray, 1 + len(added) + len(odd))
        print("done", file=answers, flush=True)
    ray.shutdown()
    cluster.shutdown()


def _node_of(nodes: list[Any], worker: int) -> Any:
    """The node whose worker has this process number: its raylet has started it."""
    raylet = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    started = {each.process.pid: node for node in nodes for each in node.all_processes["raylet"]}
    return started[raylet]


def _odd(address: str, path: str = "", empty: str = "") -> subprocess.Popen[bytes]:
    started = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
    started += ["--address", address, "--object-store-memory", str(_NODE["object_store_memory"])]
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', empty]
    return subprocess.Popen(
        [*(hidden if empty else ()), *started],
        env={**os.environ, "PYTHONPATH": path or os.environ["PYTHONPATH"]},
        stdin=subprocess.DEVNULL,
    )


def _until_alive(ray: Any, count: int) -> None:
    until = time.monotonic() + _DEADLINE_S
    while sum(node["Alive"] for node in ray.nodes()) != count:
        assert time.monotonic() < until, f"the cluster has not come to {count} nodes"
        time.sleep(0.1)


if __name__ == "__main__":
    main()
