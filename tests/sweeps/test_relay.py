"""Reports of a job reach whoever waits for it, in order and before its result."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState, SchedulingState

from segsweep.sweeps import relay as relays
from segsweep.sweeps.relay import SINCE, WAITING, Relay, Waiting, relayed


@pytest.mark.usefixtures("cluster")
def test_all_is_told_in_order_before_the_end_and_an_error_is_raised_after_it() -> None:
    told: list[Mapping[str, Any]] = []

    def work(relay: Relay) -> Mapping[str, Any]:
        for epoch in range(3):
            relay.after_report(None, [{"epoch": epoch}, {"epoch": "another worker's"}], None)
        if fails:
            raise RuntimeError("the job failed")
        return {"dice": 0.5}

    fails = False
    assert relayed(work, tell=told.append) == {"dice": 0.5}
    assert told == [{"epoch": 0}, {"epoch": 1}, {"epoch": 2}]
    fails = True
    with pytest.raises(RuntimeError, match="the job failed"):
        relayed(work, tell=told.append)
    assert [report["epoch"] for report in told] == [0, 1, 2, 0, 1, 2]


def test_whoever_waits_for_room_says_so_once_with_the_time_since_when(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Mapping[str, Any]] = []
    freed: list[int] = []
    clock = iter([100.0, 900.0])
    monkeypatch.setattr(relays, "time", SimpleNamespace(time=lambda: next(clock)))
    monkeypatch.setattr(relays, "free_orphans", lambda: freed.append(1))
    waiting = Waiting(SimpleNamespace(reports=SimpleNamespace(put=told.append)))  # type: ignore[arg-type]

    def enter(*states: type) -> None:
        for kind in states:
            decision = SimpleNamespace(num_workers=2)
            state = kind() if kind is RunningState else kind(decision)
            waiting.after_controller_state_update(None, state)

    enter(SchedulingState, ReschedulingState, SchedulingState, ReschedulingState, SchedulingState, RunningState)
    assert told == [{WAITING: 2, SINCE: 100.0}] and len(freed) == 2
    enter(SchedulingState, RunningState)
    assert len(told) == 1, "there was room at once"
