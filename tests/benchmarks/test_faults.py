"""Nodes that go in the middle of the work: it goes on elsewhere, and what comes out is what would have come out."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def faults() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("faults")


def test_a_node_that_goes_during_a_conversion_takes_no_case_along(
    faults: ModuleType, phantom_store: Path, tmp_path: Path
) -> None:
    lab = faults.Lab(shared=phantom_store.parent, folder=tmp_path)
    row = faults.run_alone(lab, fault="conversion")
    assert row["wrong"] == [] and row["killed"] == "one of two nodes, after 3 cases"


@pytest.fixture(scope="module")
def shared(faults: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and what sweeps give that nobody disturbs."""
    folder = tmp_path_factory.mktemp("shared")
    faults.prepare(folder, workers={1, 2})
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", ["worker-node", "trial-node", "node-in-sweep", "spot-notice", "hang", "head"])
def test_a_sweep_loses_an_epoch_at_most(faults: ModuleType, shared: Path, tmp_path: Path, fault: str) -> None:
    lab = faults.Lab(shared=shared, folder=tmp_path)
    assert faults.run_alone(lab, fault=fault)["wrong"] == []
