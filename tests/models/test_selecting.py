"""A greedy ensemble from registered models to a registered model, with the record of how it was chosen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segsweep import cli
from segsweep.data.manifest import seal, unseal
from segsweep.data.store import Store, open_store
from segsweep.data.structures import LabelSet
from segsweep.errors import ModelError
from segsweep.evaluation.measure import Measure
from segsweep.evaluation.selection import Limits
from segsweep.evaluation.surface import surfaces
from segsweep.evaluation.whole_scans import score_case
from segsweep.models import registry
from segsweep.models.ensemble import build, load_predictor
from segsweep.models.selecting import PAGE, RECORD, build_greedy
from segsweep.models.tracking import DATA_TAG
from segsweep.sweeps.validation import summarise

Put = Callable[..., list[str]]


def organs(count: int) -> dict[str, NDArray[np.bool_]]:
    """Labels (z, y, x) of random voxels."""
    generator = np.random.default_rng(3)
    return {f"c{number}": generator.random((8, 12, 12)) < 0.4 for number in range(count)}


@pytest.fixture
def store(tiny_store: Callable[..., Path], request: pytest.FixtureRequest) -> Store:
    """Seven cases of the validation split; of its own name and digest in every test."""
    folder = tiny_store(request.node.name, labels=LabelSet(structures=("organ",)), cases=organs(7))
    body: Any = unseal((folder / "index.json").read_bytes(), name=request.node.name).body
    for record in body["cases"]:
        record["split"] = "validation"
    (folder / "index.json").write_bytes(seal(body))
    return open_store(folder)


@pytest.fixture
def candidates(store: Store, tracker, make_checkpoint) -> Put:
    """Registers models that paint above these intensities, as trained on the store; returns their addresses."""

    def put(*thresholds: float, **values: Any) -> list[str]:
        run_id = tracker.start("candidates")
        found = []
        for number, threshold in enumerate(thresholds):
            name = f"{store.dataset}-{number}"
            folder = make_checkpoint(name, threshold=threshold, **values)
            tags = {DATA_TAG: store.digest}
            found.append(registry.register(folder, name=name, tracker=tracker, run_id=run_id, tags=tags).uri)
        return found

    return put


def built(uris: list[str], *, store: Store, tracker, metric: str = "dice", **limits: Any) -> Any:
    return build_greedy(
        uris,
        store=store,
        name=f"{store.dataset}-ensemble",
        tracker=tracker,
        limits=Limits(**limits),
        measure=Measure(metric=metric),
    )


def test_the_registered_ensemble_predicts_as_it_was_scored(store: Store, candidates: Put, tracker, workspace) -> None:
    uris = candidates(-8.0, 0.0, 8.0)
    done = built(uris, store=store, tracker=tracker, bags=1)
    assert done.record is not None
    chosen = done.record["rows"][-1]
    predictor = load_predictor(done.registered.uri, workspace=workspace)
    assert [member.weight for member in predictor.members] == [one["weight"] for one in done.record["members"]]
    scores = {case_id: score_case(predictor, store=store, case_id=case_id).dice for case_id in store.cases}
    assert summarise(scores)["dice"] == pytest.approx(chosen["score"]["mean"], abs=0.005)
    for row, uri in zip(done.record["rows"], uris, strict=False):
        single = load_predictor(uri, workspace=workspace)
        scores = {case_id: score_case(single, store=store, case_id=case_id).dice for case_id in store.cases}
        assert summarise(scores)["dice"] == pytest.approx(row["score"]["mean"], abs=0.005)


def test_the_record_lies_in_the_registered_folder(store: Store, candidates: Put, tracker, workspace) -> None:
    done = built(candidates(-8.0, 0.0, 8.0), store=store, tracker=tracker)
    folder = registry.fetch(done.registered.uri, workspace=workspace)
    record = json.loads((folder / RECORD).read_text())
    assert record == done.record
    assert [row["name"] for row in record["rows"][:7]] == ["A", "B", "C", "A+B", "A+C", "B+C", "A+B+C"]
    assert [row["kind"] for row in record["rows"]] == [*["single"] * 3, *["mean"] * 4, "greedy"]
    assert record["cases"] == sorted(store.cases)
    assert record["verdict"] in (folder / PAGE).read_text()
    ensemble = json.loads((folder / "ensemble.json").read_text())
    assert ensemble["rule"] == "greedy"
    assert [one["uri"] for one in ensemble["members"]] == [one["uri"] for one in record["members"]]
    assert sum(one["weight"] for one in ensemble["members"]) == pytest.approx(1, abs=1e-4)
    version = tracker.client.get_model_version(done.registered.name, "1")
    assert "| nested/gain |" in version.description and "| selection/dice |" in version.description


def test_the_choice_can_be_by_surfaces(store: Store, candidates: Put, tracker, workspace) -> None:
    done = built(candidates(-8.0, 0.0, 8.0), store=store, tracker=tracker, metric="nsd", bags=1)
    assert done.record is not None
    assert done.record["metric"].startswith("NSD at 2 mm at the candidates' common spacing")
    predictor = load_predictor(done.registered.uri, workspace=workspace)
    nsd = []
    for case_id in store.cases:
        grid = store.grid(case_id)
        found = predictor.segment(grid.read_image(), geometry=grid.geometry, structures=("organ",))
        pair = surfaces(found > 0, reference=grid.read_label() > 0, spacing=grid.geometry.spacing)
        nsd.append(pair.normalised_dice(2.0))
    assert np.mean(nsd) == pytest.approx(done.record["rows"][-1]["score"]["mean"], abs=0.005)


def test_chosen_again_it_is_the_same_version(store: Store, candidates: Put, tracker) -> None:
    uris = candidates(-8.0, 8.0)
    assert built(uris, store=store, tracker=tracker) == built(uris, store=store, tracker=tracker)


def test_where_no_mean_is_better_the_best_single_is_the_ensemble(
    store: Store, candidates: Put, tracker, workspace
) -> None:
    uris = candidates(50.0, 0.0, 60.0)  # the first and the last paint nothing, whatever they are averaged with
    done = built(uris, store=store, tracker=tracker, bags=1)
    assert (
        done.verdict
        == f"no weighted mean beats {uris[1]} on the 7 cases of the choice, so the ensemble is that model alone"
    )
    assert len(load_predictor(done.registered.uri, workspace=workspace).members) == 1


def test_a_name_that_cannot_be_used_is_refused_before_anything_is_computed(
    store: Store, candidates: Put, tracker, workspace
) -> None:
    uris = candidates(-8.0, 8.0)
    before = sorted(workspace.probabilities.rglob("*"))
    with pytest.raises(ModelError, match="model name 'best/1' cannot be used"):
        build_greedy(uris, store=store, name="best/1", tracker=tracker, limits=Limits(), measure=Measure())
    assert sorted(workspace.probabilities.rglob("*")) == before
    with pytest.raises(ModelError, match="model name 'best/1' cannot be used"):
        build(uris, name="best/1", tracker=tracker)
    assert not [run for run in tracker.client.search_runs([tracker.experiment_id]) if run.info.run_name == "best/1"]


def test_too_few_cases_out_of_fold_give_the_mean(tiny_store, tracker, make_checkpoint, workspace) -> None:
    store = open_store(tiny_store("few", labels=LabelSet(structures=("organ",)), cases=organs(6)))
    run_id = tracker.start("few")
    uris = [
        registry.register(
            make_checkpoint(f"few-{fold}", threshold=float(fold), fold=fold),
            name="few",
            tracker=tracker,
            run_id=run_id,
            tags={DATA_TAG: store.digest},
        ).uri
        for fold in (0, 1)
    ]
    done = built(uris, store=store, tracker=tracker)
    assert done.record is None
    assert done.verdict.startswith(
        f"the mean of {uris[0]}, {uris[1]}, since only 0 independent cases are out of fold for"
    )
    weights = [member.weight for member in load_predictor(done.registered.uri, workspace=workspace).members]
    assert weights == [1.0, 1.0]


def test_the_command_line_shows_singles_means_and_the_choice(
    store: Store, candidates: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    uris = candidates(-8.0, 8.0)
    assert cli.main(["ensemble", store.uri, "rule=greedy", f"candidates={','.join(uris)}", "bags=2", "most=2"]) == 0
    shown = capsys.readouterr().out
    rows = [line.split()[:2] for line in shown.splitlines()]
    assert [row for row in rows if row and row[0] in ("A", "B", "A+B")][:3] == [
        ["A", "single"],
        ["B", "single"],
        ["A+B", "mean"],
    ]
    assert f"A = {uris[0]}" in shown
    page = next(line for line in shown.splitlines() if line.startswith("selection: ")).removeprefix("selection: ")
    assert Path(page).is_file()
    assert f"registered models:/{store.dataset}-ensemble/1: " in shown
    assert f"next: segsweep predict models:/{store.dataset}-ensemble/1 SCANS" in shown
