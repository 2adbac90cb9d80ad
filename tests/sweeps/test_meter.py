"""Readings are of the time since the one before."""

from types import SimpleNamespace

import pytest

from segsweep.sweeps import meter as module
from segsweep.sweeps.meter import Meter, peak_memory


def test_cpu_is_that_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, cpu = iter([0.0, 2.0, 6.0]), iter([0.0, 3.0, 4.0])
    monkeypatch.setattr(
        module, "time", SimpleNamespace(perf_counter=lambda: next(clock), process_time=lambda: next(cpu))
    )
    meter = Meter()
    assert [meter.read()["system/cpu_percent"] for _ in range(2)] == [150.0, 25.0]


def test_memory_is_in_bytes() -> None:
    assert 5 * 10**7 < peak_memory() < 10**12
    assert Meter().read()["system/peak_memory_gb"] == pytest.approx(peak_memory() / 1e9, rel=0.1)
