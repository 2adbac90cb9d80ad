"""The Ray cluster under everything: a local one unless `RAY_ADDRESS` names another, and what it can hold."""

import logging
import os
import warnings
from dataclasses import dataclass

import ray
import torch

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
}
# What a worker must know to find the same recipes and results.
PASSED_ON = ("SEGSWEEP_PROJECT", "SEGSWEEP_WORKSPACE")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each worker of a run gets: CPU cores and GPUs."""

    cpus: int
    gpus: float = 0.0


def connect() -> None:
    """Join the cluster that `RAY_ADDRESS` names, or start a local one. Does nothing when already connected."""
    if ray.is_initialized():
        return
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
    else:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def share(*, workers: int, concurrent: int = 1) -> Resources:
    """Resources of each worker when `concurrent` runs of `workers` workers share the cluster.

    With GPUs each worker gets one; otherwise the cores are divided. Raises ResourceError when the cluster can never hold them all.
    """
    total = ray.cluster_resources()
    cpus, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    kind, there = ("GPU", gpus) if gpus else ("CPU core", cpus)
    wanted = workers * concurrent
    if wanted > there:
        asked = f"{workers} workers" if concurrent == 1 else f"{concurrent} runs of {workers} workers at once"
        hint = f"workers={there}" if concurrent == 1 else f"concurrent={there // workers}"
        advice = f"ask for at most {hint}, or add nodes" if there >= workers else f"ask for at most workers={there}"
        raise ResourceError(f"{asked} were asked for, one {kind} a worker; the cluster has {there}; {advice}")
    return Resources(cpus=max(1, cpus // max(gpus, wanted)), gpus=1.0 if gpus else 0.0)


def plain_resources() -> Resources:
    """One core a worker, and one GPU where the cluster has any."""
    return Resources(cpus=1, gpus=1.0 if ray.cluster_resources().get("GPU", 0) else 0.0)


def demand_resources(resources: Resources, *, workers: int) -> None:
    """Raise ResourceError when the cluster can never start that many workers at once: Ray Train would wait for ever."""
    total = ray.cluster_resources()
    for kind, each in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        if workers * each > total.get(kind, 0):
            raise ResourceError(
                f"{workers} workers with {each:g} {kind} each were asked for; the cluster has {total.get(kind, 0):g} {kind}; "
                "ask for fewer workers, or add nodes"
            )


def most_concurrent(*, workers: int) -> int:
    """How many runs of `workers` workers fit at once, one core or GPU a worker."""
    total = ray.cluster_resources()
    return max(1, int(total.get("GPU", 0) or total.get("CPU", 1)) // workers)


def memory_per_worker(*, workers: int) -> int:
    """Bytes that each of so many workers may use: a GPU's memory, or its share of the cluster's, at most the largest node's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    nodes = [int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]]
    return min(max(nodes), sum(nodes) // workers)
