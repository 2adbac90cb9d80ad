"""The Ray cluster under everything: a local one unless `RAY_ADDRESS` names another, and what it can hold."""

import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import ray
from ray._private import ray_constants
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segsweep import recipes
from segsweep.data import storage
from segsweep.data.parallel import Node, known_nodes, largest_memory
from segsweep.errors import ResourceError
from segsweep.sweeps.admission import CLIENT, asks_for_token, demand_admission, is_alone
from segsweep.sweeps.head import watch_head
from segsweep.sweeps.token import keep_token, use_token

# Users meet Ray's own words only where they help: warnings and errors.
QUIET = {
    "RAY_DEDUP_LOGS": "1",
    # Workers that find no room are asked for again each minute, and whoever waits is told (`relay.py`).
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    # A worker that does not answer so long hangs, and is replaced: 10 minutes by default. The network may be cut for less.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # Workers wait with each report until the one before it was fetched: 2 s by default, longer than a short epoch.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial's process is handed to the next trial; when the one before does not leave it in 2 s, that one fails.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # By default Ray starts a task again for ever when the machine's memory ends.
    "RAY_task_oom_retries": "2",
}
# Set where Ray starts here: such a cluster is one machine, has no dashboard, and ends with its driver. Nobody takes its nodes away, and
# nobody reads its metrics.
ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}
# Ray's words, in a plain Exception, where its own processes did not start in 30 s.
TOO_SLOW = "timed out during startup"
# Folders that a worker must know to find the same recipes and results.
PASSED_ON = ("SEGSWEEP_PROJECT", "SEGSWEEP_WORKSPACE")
# How long a node may take to tell of its GPU: a process starts there, and imports torch.
ANSWER_SECONDS = 60.0
# What is read in a trial's process, not in the driver's.
READ_IN_TRIALS = tuple(name for name in QUIET if name.startswith(("RAY_TRAIN_", "TUNE_FUNCTION_")))


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each worker of a run gets: CPU cores, and a GPU or a share of one. Raises ResourceError for what no worker can use."""

    cpus: int
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.cpus < 1 or not 0.0 <= self.gpus <= 1.0:
            raise ResourceError(
                f"a worker with {describe(self)} cannot be started; expected at least 1 CPU core and at most 1 GPU, or a share of one"
            )


def describe(resources: Resources) -> str:
    """`2 CPU and 0.5 GPU`."""
    return f"{resources.cpus} CPU" + (f" and {resources.gpus:g} GPU" if resources.gpus else "")


def connect() -> bool:
    """Join the cluster that `RAY_ADDRESS` names, or start a local one. Does nothing when already connected; whether it was not.

    Folders in the environment become absolute: workers run in folders of their own.
    """
    for name in PASSED_ON:
        if os.environ.get(name):
            os.environ[name] = storage.address(os.environ[name])
    if ray.is_initialized():
        return False
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"ray\..*")
    # It repeats what failed; `Follow` says it in one line and keeps the log.
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
    address = os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        _start()
    else:
        _join(address)
    return True


def disconnect() -> None:
    """Leave the cluster; a local one ends."""
    ray.shutdown()


def _start() -> None:
    """A Ray of this machine alone: it listens on loopback only, and asks for the user's token even there."""
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    keep_token()
    use_token()
    with _alone():
        try:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            if TOO_SLOW not in str(error):
                raise
            raise ResourceError(
                "Ray did not start within half a minute, for this machine is too busy; give the same command again when it is less so"
            ) from None


@contextmanager
def _alone(really: bool = True) -> Iterator[None]:
    """Ray's own switch, off by default where it makes no clusters (macOS, Windows): nodes have the address 127.0.0.1.

    Without it Ray takes 127.0.0.1 for another name of this machine's address, where a Ray of one machine does not listen.
    """
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = clusters and not really
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def _join(address: str) -> None:
    """The cluster at an address. Raises ResourceError when it cannot be used."""
    demand_admission(address, token=use_token() if asks_for_token(address) else "")
    known = {name: os.environ[name] for name in (*PASSED_ON, *READ_IN_TRIALS) if name in os.environ}
    try:
        with _alone(is_alone(address)):
            ray.init(
                address=address,
                runtime_env={"env_vars": known, **_project()},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError) as error:
        raise ResourceError(
            f"RAY_ADDRESS={address}: the cluster answers, but Ray cannot join it from here ({error}); give the command on one of its nodes "
            "(`ray attach FILE` logs in to the head)"
        ) from None
    if not address.startswith(CLIENT):  # with Ray's client the driver is a process on the head
        head = ray.get_runtime_context().gcs_address
        watch_head(head, joined=lambda: ray.is_initialized() and ray.get_runtime_context().gcs_address == head)


def _project() -> dict[str, list[str]]:
    """The user's own recipes for nodes that do not have their folder (`recipes.search_path` finds the copy), and nothing beside them."""
    project = os.environ.get("SEGSWEEP_PROJECT")
    if not project or not Path(project).is_dir():
        return {}
    kinds = get_args(recipes.Kind)
    # In the manner of .gitignore, for paths without a slash at their end; the folder itself is `.`.
    return {"py_modules": [project], "excludes": ["/*", "!/.", *(f"!/{kind}" for kind in kinds), "__pycache__"]}


def share(*, workers: int, concurrent: int = 1, gpus: float = 1.0) -> Resources:
    """Resources of each worker when `concurrent` runs of `workers` workers share the cluster.

    With GPUs each worker gets the share `gpus` of one; otherwise the cores are divided. Raises ResourceError when the cluster can
    never hold them all.
    """
    return divide(known_nodes(), workers=workers, concurrent=concurrent, gpus=gpus)


def divide(nodes: Sequence[Node], *, workers: int, concurrent: int, gpus: float = 1.0) -> Resources:
    """`share` for these nodes. A worker lies on one node, so what counts is how many fit on each.

    Cores of GPUs that stay free stay free too.
    """
    least = _least(nodes, workers=workers, gpus=gpus)
    there, wanted = room(nodes, each=least), workers * concurrent
    if wanted > there:
        asked = f"{workers} workers" if concurrent == 1 else f"{concurrent} runs of {workers} workers at once"
        hint = f"workers={there}" if concurrent == 1 else f"concurrent={there // workers}"
        fewer = f"ask for at most {hint}, or add nodes" if there >= workers else f"ask for at most workers={there}"
        advice = fewer if there else "add nodes"
        kind = {0.0: "one CPU core", 1.0: "one GPU"}.get(least.gpus, f"{least.gpus:g} of a GPU")
        found = f"room for {there}" if least.gpus % 1 else there
        raise ResourceError(f"{asked} were asked for, {kind} a worker; the cluster has {found}; {advice}")
    usable = [node for node in nodes if _holds(node, least)]
    most = max(int(node["CPU"] // (_shares(node, least) if least.gpus else 1)) for node in usable)
    sizes = (Resources(cpus=cpus, gpus=least.gpus) for cpus in range(most, 1, -1))
    return next((each for each in sizes if room(usable, each=each) >= wanted), least)


def room(nodes: Sequence[Node], *, each: Resources) -> int:
    """How many workers of this size the nodes hold at once."""
    return sum(_holds(node, each) for node in nodes)


def plain_resources() -> Resources:
    """One core a worker, and one GPU where the cluster has any."""
    return Resources(cpus=1, gpus=1.0 if any(node.get("GPU", 0) for node in known_nodes()) else 0.0)


def demand_resources(resources: Resources, *, workers: int) -> None:
    """Raise ResourceError when the cluster can never start that many workers at once: Ray Train would wait for ever."""
    demand_room(known_nodes(), each=resources, workers=workers)


def demand_room(nodes: Sequence[Node], *, each: Resources, workers: int) -> None:
    """`demand_resources` for these nodes."""
    _demand_own_gpus(each, workers=workers)
    there = room(nodes, each=each)
    if workers > there:
        raise ResourceError(
            f"{workers} workers with {describe(each)} each were asked for; the cluster's nodes hold {there} ({_listed(nodes)}); "
            "ask for fewer workers, or add nodes"
        )


def most_concurrent(*, workers: int, gpus: float = 1.0) -> int:
    """How many runs of `workers` workers fit at once, one core a worker, and the share `gpus` of a GPU where the cluster has any."""
    known = known_nodes()
    return max(1, room(known, each=_least(known, workers=workers, gpus=gpus)) // workers)


def memory_per_worker(*, workers: int, gpus: float = 1.0) -> int:
    """Bytes that each of so many workers may use: of a GPU's memory the share `gpus`, or its part of the cluster's, at most the largest
    node's. Where the GPUs are yet to come, more than anything needs.
    """
    known = known_nodes()
    here = _gpu_memory()
    if here:
        return int(here * gpus)
    if any(node.get("GPU") for node in known):
        there = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
        return int((_gpu_memory_of(there[0]) if there else 0) * gpus) or sys.maxsize
    largest = largest_memory(known)
    return min(largest, sum(int(node.get("memory", largest)) for node in known if node.get("CPU")) // workers)


def _gpu_memory() -> int:
    """Bytes of this machine's first GPU, 0 where it has none."""
    import torch  # noqa: PLC0415  seconds and 200 MB that conversions, which start here too, do without

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


@cache
def _gpu_memory_of(node: str) -> int:
    """`_gpu_memory` of another node, 0 where it does not answer. The task holds no GPU, or it would wait for one that is in use."""
    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    task: Any = ray.remote(num_cpus=0, max_calls=1)(_gpu_memory)
    try:
        return ray.get(task.options(scheduling_strategy=there).remote(), timeout=ANSWER_SECONDS)
    except RayError:
        return 0


def _least(nodes: Sequence[Node], *, workers: int, gpus: float) -> Resources:
    """The smallest worker: one core, and that share of a GPU where there is any."""
    some = any(node.get("GPU", 0) >= 1 for node in nodes)
    if gpus < 1.0 and not some:
        raise ResourceError(
            f"gpus={gpus:g} a worker was asked for; the cluster has no GPU ({_listed(nodes)}); leave gpus=… out"
        )
    least = Resources(cpus=1, gpus=gpus if some else 0.0)
    _demand_own_gpus(least, workers=workers)
    return least


def _demand_own_gpus(each: Resources, *, workers: int) -> None:
    if workers > 1 and each.gpus % 1:
        raise ResourceError(
            f"{workers} workers with {each.gpus:g} of a GPU each were asked for; workers that train together need a GPU each (NCCL takes "
            "one process a GPU); ask for workers=1, or for whole GPUs"
        )


def _listed(nodes: Sequence[Node]) -> str:
    """`2 nodes of 64 CPU and 8 GPU, 1 node of 4 CPU`."""
    sizes = Counter((int(node.get("CPU", 0)), node.get("GPU", 0)) for node in nodes)
    texts = []
    for (cpus, gpus), count in sizes.items():
        size = f"{cpus} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        texts.append(f"{count} node{'s' * (count > 1)} of {size}")
    return ", ".join(texts)


def _holds(node: Node, each: Resources) -> int:
    cpus = node.get("CPU", 0) // each.cpus
    return int(min(cpus, _shares(node, each)) if each.gpus else cpus)


def _shares(node: Node, each: Resources) -> int:
    """How many workers the node's GPUs hold: a worker's share lies on one of them."""
    return int(node.get("GPU", 0)) * int(1 / each.gpus + 1e-9)
