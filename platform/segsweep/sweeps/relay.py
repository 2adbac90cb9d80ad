"""What the workers of a trial report, told to Tune by the trial's own thread, one report after the other.

Ray's `TuneReportCallback` lets a third thread tell Tune: a trial that reports something itself, or ends, while that thread has a report
in its hands waits for ever (both fill a queue of one place that only the waiting thread empties).
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray.train import UserCallback
from ray.util.queue import Empty, Queue

# Seconds between two looks at whether the training has ended.
LOOK_EVERY = 1.0


class Relay(UserCallback):
    """Takes the first worker's reports of a Ray Train job to whoever holds the other end."""

    def __init__(self) -> None:
        self.reports = Queue(actor_options={"num_cpus": 0})

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """Called by Ray Train, with one entry a worker."""
        self.reports.put(metrics[0])


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
