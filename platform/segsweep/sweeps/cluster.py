"""The Ray cluster under everything: a local one unless `RAY_ADDRESS` names another, and what it can hold."""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from segsweep.errors import ResourceError

# Users meet Ray's own words only where they help: warnings and errors.
QUIET = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # By default Ray starts a task again for ever when the machine's memory ends.
    "RAY_task_oom_retries": "2",
}
# Folders that a worker must know to find the same recipes and results.
PASSED_ON = ("SEGSWEEP_PROJECT", "SEGSWEEP_WORKSPACE")

# What a node offers, by Ray's names: CPU, GPU, memory (bytes).
Node = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each worker of a run gets: CPU cores and GPUs."""

    cpus: int
    gpus: float = 0.0


def connect() -> bool:
    """Join the cluster that `RAY_ADDRESS` names, or start a local one. Does nothing when already connected; whether it was not.

    Folders in the environment become absolute: workers run in folders of their own.
    """
    for name in PASSED_ON:
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).expanduser().resolve())
    if ray.is_initialized():
        return False
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"ray\..*")
    # It repeats what failed; `Follow` says it in one line and keeps the log.
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
    address = os.environ.get("RAY_ADDRESS")
    environment = {"env_vars": {name: os.environ[name] for name in PASSED_ON if name in os.environ}}
    if address:
        try:
            ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError) as error:
            raise ResourceError(
                f"RAY_ADDRESS={address}: cannot connect ({error}); check the address and the token"
            ) from None
        return True
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return True


def disconnect() -> None:
    """Leave the cluster; a local one ends."""
    ray.shutdown()


def share(*, workers: int, concurrent: int = 1) -> Resources:
    """Resources of each worker when `concurrent` runs of `workers` workers share the cluster.

    With GPUs each worker gets one; otherwise the cores are divided. Raises ResourceError when the cluster can never hold them all.
    """
    return divide(_nodes(), workers=workers, concurrent=concurrent)


def divide(nodes: Sequence[Node], *, workers: int, concurrent: int) -> Resources:
    """`share` for these nodes. A worker lies on one node, so what counts is how many fit on each.

    Cores of GPUs that stay free stay free too.
    """
    gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    least = Resources(cpus=1, gpus=gpus)
    there, wanted = room(nodes, each=least), workers * concurrent
    if wanted > there:
        asked = f"{workers} workers" if concurrent == 1 else f"{concurrent} runs of {workers} workers at once"
        hint = f"workers={there}" if concurrent == 1 else f"concurrent={there // workers}"
        advice = f"ask for at most {hint}, or add nodes" if there >= workers else f"ask for at most workers={there}"
        kind = "GPU" if gpus else "CPU core"
        raise ResourceError(f"{asked} were asked for, one {kind} a worker; the cluster has {there}; {advice}")
    usable = [node for node in nodes if _holds(node, least)]
    most = max(int(node["CPU"] // (node["GPU"] if gpus else 1)) for node in usable)
    sizes = (Resources(cpus=cpus, gpus=gpus) for cpus in range(most, 1, -1))
    return next((each for each in sizes if room(usable, each=each) >= wanted), least)


def room(nodes: Sequence[Node], *, each: Resources) -> int:
    """How many workers of this size the nodes hold at once."""
    return sum(_holds(node, each) for node in nodes)


def plain_resources() -> Resources:
    """One core a worker, and one GPU where the cluster has any."""
    return Resources(cpus=1, gpus=1.0 if ray.cluster_resources().get("GPU", 0) else 0.0)


def demand_resources(resources: Resources, *, workers: int) -> None:
    """Raise ResourceError when the cluster can never start that many workers at once: Ray Train would wait for ever."""
    there = room(_nodes(), each=resources)
    if workers > there:
        gpus = f" and {resources.gpus:g} GPU" if resources.gpus else ""
        raise ResourceError(
            f"{workers} workers with {resources.cpus} CPU{gpus} each were asked for; the cluster's nodes hold {there}; "
            "ask for fewer workers, or add nodes"
        )


def most_concurrent(*, workers: int) -> int:
    """How many runs of `workers` workers fit at once, one core a worker, and one GPU where the cluster has any."""
    return max(1, room(_nodes(), each=plain_resources()) // workers)


def memory_per_worker(*, workers: int) -> int:
    """Bytes that each of so many workers may use: a GPU's memory, or its share of the cluster's, at most the largest node's."""
    import torch  # noqa: PLC0415  seconds and 200 MB that conversions, which start here too, do without

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    memory = [int(node.get("memory", 0)) for node in _nodes()]
    return min(max(memory), sum(memory) // workers)


def _nodes() -> list[Node]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _holds(node: Node, each: Resources) -> int:
    cpus = node.get("CPU", 0) // each.cpus
    return int(min(cpus, node.get("GPU", 0) // each.gpus) if each.gpus else cpus)
