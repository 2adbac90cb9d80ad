"""What every dataset recipe promises. A recipe is enrolled here by itself as soon as its file is there."""

import inspect
import re
from pathlib import Path

import pytest

from segsweep import recipes
from segsweep.data.case import CaseSource
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

DATASETS = recipes.names("datasets")
# Stated as a constant, or found in the folder by a function of this name.
STATED = {"LABELS": "labels", "CHANNELS": "channels"}


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_says_where_it_comes_from_and_on_what_terms(name: str) -> None:
    text = " ".join((recipes.load("datasets", name=name).__doc__ or "").split())
    assert re.search(r"\bfrom\b|\byour own\b|\bour own\b|source", text, re.IGNORECASE), "no source"
    assert re.search(
        r"licen[cs]e|\bCC0?\b|\bterms\b|for research|on request|\b(y?our|the dataset's) own\b", text, re.IGNORECASE
    ), "no licence or terms"


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_states_its_labels_and_channels_or_finds_them(name: str) -> None:
    recipe = recipes.load("datasets", name=name)
    for constant, function in STATED.items():
        assert hasattr(recipe, constant) != hasattr(recipe, function), f"either {constant} or {function}(raw), not both"
        if hasattr(recipe, function):
            assert list(inspect.signature(getattr(recipe, function)).parameters) == ["raw"]
    if hasattr(recipe, "LABELS"):
        assert isinstance(recipe.LABELS, LabelSet) and recipe.LABELS.structures
    if hasattr(recipe, "CHANNELS"):
        assert isinstance(recipe.CHANNELS, tuple) and all(isinstance(channel, str) for channel in recipe.CHANNELS)
    assert list(inspect.signature(recipe.cases).parameters) == ["raw"]


@pytest.mark.parametrize("name", DATASETS)
def test_a_folder_that_is_empty_or_holds_rubbish_is_refused(name: str, tmp_path: Path) -> None:
    recipe = recipes.load("datasets", name=name)
    questions = ["cases", *(function for function in STATED.values() if hasattr(recipe, function))]
    for question in questions:
        with pytest.raises(InputError, match=r"(holds no|has no|no \w+\.json) .*; expected"):
            getattr(recipe, question)(tmp_path)
    for file in ("dataset.json", "labels.json", "cases.json", "meta.csv", "imagesTr", "notes.txt"):
        (tmp_path / file).write_bytes(b"\xff\0 rubbish")
    for question in questions:
        with pytest.raises(InputError, match=r"\w; \w|expected"):
            getattr(recipe, question)(tmp_path)


def test_the_phantoms_cases_keep_the_contract(phantom_raw: Path) -> None:
    recipe = recipes.load("datasets", name="phantom")
    found = recipe.cases(phantom_raw)
    assert found and all(isinstance(case, CaseSource) for case in found)
    for case in found:
        assert len(case.images) == len(recipe.CHANNELS)
        assert set(case.annotated) <= set(recipe.LABELS.structures)
        assert all(path.is_file() for path in (*case.images, *(label.path for label in case.labels)))
