"""What all trials of a sweep share is refused before it starts when nothing could be compared."""

from types import SimpleNamespace
from typing import Any

import pytest

from segsweep.errors import RecipeError, StoreError
from segsweep.sweeps import tuning_shared
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.sweeps.tuning_shared import base_run, first_config


def test_a_published_comparison_is_not_searched() -> None:
    searching: tuple[dict[str, Any], ...] = ({"sampler": "gp"}, {"objective": "dice,memory_gb"}, {"warm": "earlier"})
    for options in searching:
        with pytest.raises(RecipeError, match="gtv_loss is a published comparison, whose rows are the trials"):
            first_config("gtv_loss", store="store", options=SweepOptions(**options))


def test_fold_that_holds_nothing_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = SimpleNamespace(uri="store", validation=lambda fold: ("a",) if fold else ())
    monkeypatch.setattr(tuning_shared, "open_stores", lambda _: bare)
    with pytest.raises(StoreError, match="store: fold 0 holds out no annotated case to compare trials by"):
        base_run("default", store="store", options=SweepOptions(), params={})
    assert base_run("default", store="store", options=SweepOptions(fold=1), params={}).fold == 1
