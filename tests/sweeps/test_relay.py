"""Reports of a job reach whoever waits for it, in order and before its result."""

from collections.abc import Mapping
from typing import Any

import pytest

from segsweep.sweeps.relay import Relay, relayed


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
