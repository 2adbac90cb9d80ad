"""What all trials of a sweep share is refused before it starts when nothing could be compared."""

from types import SimpleNamespace
from typing import Any

import pytest

from segsweep.errors import RecipeError, StoreError
from segsweep.sweeps import tuning_shared
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.sweeps.tuning_shared import base_run, first_config, folds_of, settings_of


def test_a_published_comparison_is_not_searched() -> None:
    searching: tuple[dict[str, Any], ...] = ({"sampler": "gp"}, {"objective": "nsd"}, {"warm": "earlier"})
    for options in searching:
        with pytest.raises(RecipeError, match="gtv_loss is a published comparison, whose rows are the trials"):
            first_config("gtv_loss", store="store", options=SweepOptions(**options))
    for folds in ("0,1", "all"):
        with pytest.raises(
            RecipeError, match=f"folds={folds}: gtv_loss is a published comparison, whose rows are trained on one"
        ):
            first_config("gtv_loss", store="store", options=SweepOptions(folds=folds))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store of three folds, of which the first holds nothing out."""
    store = SimpleNamespace(uri="store", digest="d", num_folds=3, validation=lambda fold: ("a",) if fold else ())
    monkeypatch.setattr(tuning_shared, "open_stores", lambda _: store)
    return store


@pytest.mark.usefixtures("bare")
def test_fold_that_holds_nothing_out_is_refused() -> None:
    for folds in ("0", "1,0", "all"):
        with pytest.raises(StoreError, match="store: fold 0 holds out no annotated case to compare trials by"):
            base_run("default", store="store", options=SweepOptions(folds=folds), params={})
    assert base_run("default", store="store", options=SweepOptions(folds="2,1"), params={}).fold == 2


def test_all_folds_of_a_store_and_what_a_sweep_remembers_of_them(bare: Any) -> None:
    bare.validation = lambda _fold: ("a",)

    def settings(folds: str) -> dict[str, Any]:
        options = SweepOptions(folds=folds)
        base = base_run("default", store="store", options=options, params={})
        return settings_of("default", base=base, store=bare, options=options)

    assert folds_of(bare, options=SweepOptions(folds="all")) == (0, 1, 2)
    assert settings("all") == {**settings("0"), "folds": [0, 1, 2]}
    assert settings("1") == {**settings("0"), "fold": 1}, "sweeps of one fold are as they were"


@pytest.mark.usefixtures("bare")
def test_nsd_is_measured_where_it_is_an_objective() -> None:
    def tolerance(objective: str, **params: Any) -> float | None:
        options = SweepOptions(folds="1", objective=objective)
        return base_run("default", store="store", options=options, params=params).params.get("nsd_tolerance")

    assert [tolerance("dice"), tolerance("nsd"), tolerance("dice,nsd"), tolerance("nsd", nsd_tolerance=1)] == [
        None,
        2,
        2,
        1,
    ]
    with pytest.raises(RecipeError, match="objective=nsd cannot be measured with nsd_tolerance=0"):
        tolerance("nsd", nsd_tolerance=0)
