"""What many tests share: one local Ray, and one small phantom that was made and converted with the real code."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray of two cores for the whole session."""
    import ray  # noqa: PLC0415  tests that need no Ray do not wait for it

    from segsweep.sweeps.cluster import connect  # noqa: PLC0415

    connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def phantom_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw phantom scans: sixteen cases."""
    from segsweep import recipes  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("phantom") / "raw"
    recipes.load("datasets", name="phantom").make(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def phantom_store(phantom_raw: Path, cluster: None) -> Path:  # noqa: ARG001
    """The phantom as a store; tests that change it copy it first."""
    from segsweep.data.conversion import convert  # noqa: PLC0415

    folder = phantom_raw.parent / "store"
    convert("phantom", raw=phantom_raw, store=folder)
    return folder
