"""Slices on disk come back as they were, from a file that nobody else sees."""

import gc
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from segsweep.inference.spill import Spilled


def planes() -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(4, 3, 5, 7)).astype(np.float32))


def test_slices_come_back_in_any_order_and_may_be_replaced() -> None:
    kept, given = Spilled(), planes()
    for index, plane in enumerate(given):
        kept[index] = plane.transpose(0, 2, 1).copy().transpose(0, 2, 1)  # not contiguous
    for index in (2, 0, 3, 1):
        assert np.array_equal(kept[index], given[index])
    kept[1] = -given[1]
    assert np.array_equal(kept[1], -given[1]) and np.array_equal(kept[2], given[2])


def test_the_file_has_no_name_and_is_closed_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def opened() -> int:
        links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        return sum(link.startswith(str(tmp_path)) for link in links)

    kept = Spilled()
    kept[0] = planes()[0]
    assert list(tmp_path.iterdir()) == []
    assert opened() == 1
    del kept
    gc.collect()
    assert opened() == 0
