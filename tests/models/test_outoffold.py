"""Cases out of fold: the validation split for every model, and what its own fold held out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.store import Store, open_store
from segsweep.data.structures import LabelSet
from segsweep.errors import StoreError
from segsweep.models.outoffold import out_of_fold


@pytest.fixture
def store(tiny_store: Callable[..., Path]) -> Store:
    """Five training cases in two folds, and two validation cases, one of them without annotation."""
    label = np.ones((4, 6, 6))
    folder = tiny_store("s", labels=LabelSet(structures=("organ",)), cases={f"c{number}": label for number in range(7)})
    opened = open_store(folder)
    changes = {"c5": {"split": "validation"}, "c6": {"split": "validation", "annotated": ()}}
    cases = {name: dataclasses.replace(record, **changes.get(name, {})) for name, record in opened.cases.items()}
    return dataclasses.replace(opened, cases=cases, given_folds=(("c0", "c1"), ("c2", "c3", "c4")))


def test_a_fold_adds_what_it_held_out(store: Store) -> None:
    assert out_of_fold(store, fold=0) == ("c0", "c1", "c5")
    assert out_of_fold(store, fold=1) == ("c2", "c3", "c4", "c5")


def test_a_model_of_all_training_cases_has_the_validation_split(store: Store) -> None:
    assert out_of_fold(store, fold="all") == ("c5",)


def test_an_unknown_fold_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="no fold 2; expected 0 to 1, or 'all'"):
        out_of_fold(store, fold=2)
