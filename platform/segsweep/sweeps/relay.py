"""What the workers of a trial report, told to Tune by the trial's own thread, one report after the other.

Ray's `TuneReportCallback` lets a third thread tell Tune: a trial that reports something itself, or ends, while that thread has a report
in its hands waits for ever (both fill a queue of one place that only the waiting thread empties).
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState, SchedulingState
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segsweep.sweeps.orphans import free_orphans

# Seconds between two looks at whether the training has ended.
LOOK_EVERY = 1.0
# In a report: since when (seconds of the epoch) the training waits for that many workers.
WAITING, SINCE = "waiting", "since"


class Relay(UserCallback):
    """Takes the first worker's reports of a Ray Train job to whoever holds the other end."""

    def __init__(self) -> None:
        # On the trial's own node: one that lay elsewhere would end the trial with that node.
        here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
        self.reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """Called by Ray Train, with one entry a worker."""
        self.reports.put(metrics[0])


class Waiting(ControllerCallback):
    """Tells once, through a relay, that a training finds no room for its workers; Ray Train asks again without end, in silence."""

    def __init__(self, relay: Relay) -> None:
        self._reports = relay.reports
        self._since: float | None = None
        self._told = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:  # noqa: ARG002
        """Called by Ray Train: the workers run, shall be started, or could not be within RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S."""
        if isinstance(current_state, RunningState):
            self._since, self._told = None, False
        elif isinstance(current_state, SchedulingState):
            self._since = self._since or time.time()
            self._wanted = current_state.scaling_decision.num_workers  # type: ignore[attr-defined]  only a new size is scheduled
        elif isinstance(current_state, ReschedulingState):
            free_orphans()
            if not self._told:
                self._told = True
                self._reports.put({WAITING: self._wanted, SINCE: self._since})


def relayed(
    work: Callable[[Relay], Mapping[str, Any]], *, tell: Callable[[Mapping[str, Any]], None]
) -> Mapping[str, Any]:
    """Do the work in a thread of its own, `tell` here what its job reports, and return its result, or raise what it raised."""
    relay = Relay()
    with ThreadPoolExecutor(max_workers=1) as threads:
        working = threads.submit(work, relay)
        try:
            while not (working.done() and relay.reports.empty()):
                try:
                    report = relay.reports.get(timeout=LOOK_EVERY)
                except Empty:
                    continue
                tell(report)
        finally:
            relay.reports.shutdown(force=True)
        return working.result()
