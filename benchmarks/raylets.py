"""Several Ray nodes on this machine, each of which can be killed with all that runs on it. (`faults.py` does.)"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors
from ray._raylet import GcsClient  # type: ignore[attr-defined]  compiled
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.util import placement_group_table

from segsweep.sweeps.cluster import connect

PATIENCE = 900.0
# A node is given up after two looks, half a second apart: with Ray's own settings it takes about 15 s.
QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 2}


class Raylets:
    """A head without cores, on which drivers run, and nodes of one core each."""

    def __init__(self, *, nodes: int, quick: bool) -> None:
        settings = {"_system_config": QUICK} if quick else {}
        # Without memory no trial's process lies on the head either.
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "memory": 0, "include_dashboard": False, **settings}
        )
        self.nodes: dict[str, Any] = {}
        for _ in range(nodes):
            self.add()

    def add(self) -> str:
        """Start one more node; its id."""
        node = self.cluster.add_node(num_cpus=1, memory=2 * 10**9)
        self.nodes[node.node_id] = node
        return node.node_id

    def kill(self, node_id: str) -> float:
        """End a node and all its processes at once, as a power cut does; when that was (seconds of the epoch)."""
        node = self.nodes.pop(node_id)
        moment = _end(node, kinds=("raylet",))
        self.cluster.remove_node(node, allow_graceful=False)
        return moment

    def kill_head(self) -> float:
        """End the head at once; when that was (seconds of the epoch)."""
        return _end(self.cluster.head_node, kinds=("raylet", "gcs_server"))

    def drain(self, node_id: str, *, seconds: int) -> float:
        """Say that a node will be taken away after so many seconds; when that was said (seconds of the epoch)."""
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]  made by protobuf
        moment = time.time()
        accepted, why = GcsClient(address=self.cluster.gcs_address).drain_node(
            node_id, reason, "spot notice", int((moment + seconds) * 1000)
        )
        if not accepted:
            raise SystemExit(f"the node would not be drained: {why}")
        return moment


@contextmanager
def raylets(*, nodes: int, quick: bool = True) -> Iterator[Raylets]:
    """A cluster for the time of a `with` block, which this process has joined."""
    found = Raylets(nodes=nodes, quick=quick)
    os.environ["RAY_ADDRESS"] = str(found.cluster.address)
    try:
        connect()
        yield found
    finally:
        ray.shutdown()
        found.cluster.shutdown()


def alive(*kinds: str) -> list[dict[str, Any]]:
    """Living actors of these classes."""
    return [one for one in actors().values() if one["State"] == "ALIVE" and one["ActorClassName"] in kinds]


def nodes_of(*kinds: str) -> list[str]:
    """Ids of the nodes on which actors of these classes lie."""
    return [actor["Address"]["NodeID"] for actor in alive(*kinds)]


def hold(kind: str) -> None:
    """Stop the processes of one living actor of that class; they answer no more."""
    os.kill(alive(kind)[0]["Pid"], signal.SIGSTOP)


def leftovers() -> list[str]:
    """What of a sweep's trainings still holds resources, after a while in which it may leave."""
    end = time.monotonic() + 15
    while (found := _held()) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def wait_for(condition: Callable[[], Any]) -> Any:
    """What the condition returns once it is true."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain for {condition}")
        time.sleep(0.02)
    return found


def _end(node: Any, *, kinds: tuple[str, ...]) -> float:
    doomed = [pid for kind in kinds for pid in _with_children(node.all_processes[kind][0].process.pid)]
    for pid in doomed:
        os.kill(pid, signal.SIGSTOP)  # or some would still hear that others are gone
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    return time.time()


def _with_children(pid: int) -> list[int]:
    """A process and all that it and they began."""
    begun = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in begun for one in _with_children(int(child)))]


def _held() -> list[str]:
    groups = [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
    living = [
        actor["ActorClassName"]
        for actor in actors().values()
        if actor["State"] != "DEAD" and "Coordinator" not in actor["ActorClassName"]
    ]
    return [*(f"a placement group is {state}" for state in groups), *(f"{name} is alive" for name in living)]
