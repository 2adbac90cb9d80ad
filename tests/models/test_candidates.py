"""Candidates for an ensemble: who may be one, and what they are compared by."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segsweep.data.joint import open_stores
from segsweep.data.store import Store, open_store
from segsweep.data.structures import LabelSet
from segsweep.errors import ModelError
from segsweep.evaluation.ensembles import Ensembles
from segsweep.evaluation.measure import Measure
from segsweep.models import registry
from segsweep.models.candidates import Comparison, compare, find_candidates
from segsweep.models.ensemble import build
from segsweep.models.tracking import DATA_TAG

Put = Callable[..., str]


@pytest.fixture
def store(tiny_store: Callable[..., Path]) -> Store:
    label = np.zeros((8, 12, 12))
    label[2:6, 2:8, 2:8] = 1
    return open_store(tiny_store("candid", labels=LabelSet(structures=("organ",)), cases={"a": label, "b": label}))


@pytest.fixture
def put_trained(tracker, make_checkpoint, store: Store) -> Put:
    """Registers a model as trained on a store of this digest."""

    def put(name: str, data: str = store.digest, **values: Any) -> str:
        folder, run_id = make_checkpoint(name, **values), tracker.start("candidates")
        return registry.register(folder, name=name, tracker=tracker, run_id=run_id, tags={DATA_TAG: data}).uri

    return put


def compared(uris: list[str], *, store: Store, workspace, scratch: Path) -> Comparison:
    scratch.mkdir(exist_ok=True)
    found = find_candidates(uris, store=store, workspace=workspace)
    return compare(found, store=store, cases=("a", "b"), workspace=workspace, measure=Measure(), scratch=scratch)


def test_cases_are_those_that_a_fold_held_out(store: Store, put_trained: Put, workspace) -> None:
    uris = [put_trained("of-fold-0", threshold=30.0), put_trained("of-fold-1", threshold=31.0, fold=1)]
    folds = dataclasses.replace(store, given_folds=(("a",), ("b",)))
    found = find_candidates(uris, store=folds, workspace=workspace)
    assert [candidate.cases for candidate in found] == [("a",), ("b",)]


def test_heads_are_compared_by_structure(store: Store, put_trained: Put, workspace, tmp_path: Path) -> None:
    # Of one structure a softmax over two atoms and a sigmoid say the same.
    soft = [put_trained("soft-1", threshold=1.0), put_trained("soft-2", threshold=5.0)]
    mixed = [soft[0], put_trained("sigmoid-2", threshold=5.0, head="sigmoid")]
    alike, unlike = (
        compared(uris, store=store, workspace=workspace, scratch=tmp_path / "scratch") for uris in (soft, mixed)
    )
    assert alike.contests[0].decision.channels == "atoms"
    assert unlike.contests[0].decision.channels == "structures"
    assert min(contest.lead.size for contest in unlike.contests) > 0
    for shares in ([1, 0], [0, 1], [1, 1]):
        tables = [Ensembles(one.contests).table(np.array(shares)) for one in (alike, unlike)]
        assert tables[0] == pytest.approx(tables[1], abs=0.01)


def test_truth_is_resampled_where_the_store_has_no_grid(
    store: Store, put_trained: Put, workspace, tmp_path: Path
) -> None:
    uris = [put_trained("near-1", threshold=2.0), put_trained("near-2", threshold=4.0)]
    found = find_candidates(uris, store=store, workspace=workspace)
    task = dataclasses.replace(found[0].task, spacing=(2.0, 2.0, 2.0))
    coarse = [dataclasses.replace(found[0], task=task), found[1]]
    assert not store.has_grid("a", spacing=task.spacing)
    done = compare(coarse, store=store, cases=("a",), workspace=workspace, measure=Measure(), scratch=tmp_path)
    contest = done.contests[0]
    organ = contest.membership[:, 0]
    assert contest.least[:, organ].sum() + organ[contest.truth].sum() == 4 * 3 * 3


def test_a_model_of_another_version_of_the_store_is_refused(store: Store, put_trained: Put, workspace) -> None:
    uris = [put_trained("here", threshold=21.0), put_trained("there", data="another", threshold=22.0)]
    with pytest.raises(
        ModelError, match=r"models:/there/1 was not trained on this version of 'candid', so it is not known"
    ):
        find_candidates(uris, store=store, workspace=workspace)


def test_an_ensemble_is_no_candidate(store: Store, put_trained: Put, tracker, workspace) -> None:
    uris = [put_trained("in-1", threshold=23.0), put_trained("in-2", threshold=24.0)]
    found = build(uris, name="inside", tracker=tracker)
    tracker.client.set_model_version_tag(found.name, str(found.version), DATA_TAG, store.digest)
    with pytest.raises(ModelError, match=r"models:/inside/1 holds no run\.json; expected a single trained model"):
        find_candidates([uris[0], found.uri], store=store, workspace=workspace)


def test_one_candidate_is_too_few(store: Store, workspace) -> None:
    with pytest.raises(ModelError, match="1 candidate to choose from; expected at least 2"):
        find_candidates(["models:/alone/1"], store=store, workspace=workspace)


def test_joined_stores_are_refused(store: Store, tiny_store, workspace) -> None:
    other = tiny_store("other", labels=LabelSet(structures=("organ",)), cases={"c": np.ones((4, 6, 6))})
    with pytest.raises(ModelError, match="joins stores, whose cases no choice can be made by yet"):
        find_candidates(["models:/a/1", "models:/b/1"], store=open_stores(f"{store.uri},{other}"), workspace=workspace)
