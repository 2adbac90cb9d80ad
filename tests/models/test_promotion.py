"""A candidate becomes champion only where it is better on cases that neither model has seen, and every decision is written down."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segsweep.data.manifest import seal, unseal
from segsweep.data.planning import Normalisation
from segsweep.data.store import Store, open_store
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import ModelError, RecipeError, SegsweepError, StoreError
from segsweep.learning import checkpoint
from segsweep.learning.task import Task
from segsweep.learning.transfer import pinned
from segsweep.models import registry
from segsweep.models.catalogue import Registered, resolve, set_alias, versions
from segsweep.models.contenders import choices, contender, unseen
from segsweep.models.ensemble import build
from segsweep.models.promotion import promote
from segsweep.models.scores import file_of
from segsweep.models.tracking import DATA_TAG, SWEEP_TAG, TRIAL_TAG, Tracker
from segsweep.run import Run
from segsweep.workspace import Workspace

FOLDS = [["c00", "c01", "c02", "c03", "c04", "c05", "c06", "c07"], ["c08", "c09"]]
VALIDATION = ["c10", "c11"]
# Thresholds: one finds a good part of the organ, the other nothing at all.
GOOD, BAD = 55.0, 1000.0

Put = Callable[..., Registered]


def changed(folder: Path, **values: object) -> Path:
    """Rewrite a store's index with other values; `splits` are those of single cases."""
    index = dict(unseal((folder / "index.json").read_bytes(), name="index").body)
    splits = dict(values.pop("splits", {}))  # type: ignore[call-overload]
    for case in index["cases"]:
        case["split"] = splits.get(case["case_id"], case["split"])
    (folder / "index.json").write_bytes(seal({**index, **values}))
    return folder


@pytest.fixture
def store(tiny_store: Callable[..., Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Ten training cases in two folds and two validation cases, with the organ in the lower half; built once, copied for each test."""
    template = tmp_path_factory.getbasetemp() / "organs"
    if not template.exists():
        label = np.zeros((4, 8, 8))
        label[:2] = 1
        cases = {f"c{number:02d}": label for number in range(12)}
        shutil.copytree(tiny_store("built", labels=LabelSet(structures=("organ",)), cases=cases), template)
    folder = Path(shutil.copytree(template, tmp_path / "organs"))
    changed(folder, folds=FOLDS, splits=dict.fromkeys(VALIDATION, "validation"), digest=f"digest of {folder}")
    return open_store(folder)


@pytest.fixture
def put(tracker: Tracker, recipe: str, store: Store, tmp_path: Path) -> Put:
    """Registers a model that paints the organ above an intensity: `put("name", threshold, fold=0, data=…, tags=…)`."""

    def register(
        name: str,
        threshold: float,
        *,
        fold: int | str = 0,
        initial: str = "",
        structures: tuple[str, ...] = ("organ",),
        data: str | None = None,
        run_id: str | None = None,
    ) -> Registered:
        task = Task(
            channels=("CT",),
            table=LabelTable(labels=LabelSet(structures=structures), atoms=((), (0,))),
            head="softmax",
            patch_size=(8, 8, 8),
            spacing=(2.0, 1.0, 1.0),
            normalisation=(Normalisation(scheme="ct", low=-200.0, high=200.0),),
        )
        weights = {"conv.weight": torch.zeros(2, 1, 1, 1, 1), "conv.bias": torch.tensor([0.0, -threshold])}
        weights["conv.weight"][1] = 1.0
        run = Run(trainable=recipe, store=store.uri, fold=fold)  # type: ignore[arg-type]
        document = {
            "run": run.to_json(),
            "task": task.to_json(),
            "params": {"patch_size": [8, 8, 8], "initial": initial},
        }
        folder = tmp_path / f"{name}-{threshold}-{fold}"
        checkpoint.save(folder, snapshot=checkpoint.Snapshot(weights=weights, metrics={}, epoch=0), run=document)
        tags = {DATA_TAG: store.digest if data is None else data}
        run_id = run_id or tracker.start(name)
        return registry.register(folder, name=name, tracker=tracker, run_id=run_id, tags=tags)

    return register


def tags_of(model: Registered, workspace: Workspace) -> dict[str, str]:
    return dict(versions(model.name, workspace=workspace)[model.version - 1].tags)


def champion(name: str, workspace: Workspace) -> int:
    return resolve(f"models:/{name}@champion", workspace=workspace).version


def duel(
    put: Put, name: str, workspace: Workspace, *, thresholds: tuple[float, float], **values: object
) -> list[Registered]:
    """A champion and a candidate, registered under one name."""
    pair = [put(name, threshold, **values) for threshold in thresholds]
    set_alias(name, alias="champion", version=1, workspace=workspace)
    set_alias(name, alias="candidate", version=2, workspace=workspace)
    return pair


def test_the_first_candidate_has_no_champion_to_beat(put: Put, workspace: Workspace) -> None:
    first = put("first", GOOD)
    with pytest.raises(ModelError, match="no 'candidate' among aliases of first"):
        promote("first", workspace=workspace)
    set_alias("first", alias="candidate", version=1, workspace=workspace)
    done = promote("first", workspace=workspace)
    assert str(done) == "first: models:/first/1: no champion to beat" and done.promoted
    assert champion("first", workspace) == 1
    assert tags_of(first, workspace)["segsweep.promoted"] == "first"
    again = promote("models:/first/1", workspace=workspace)
    assert str(again) == "already champion: models:/first/1: nothing to decide"
    assert tags_of(first, workspace)["segsweep.promoted"] == "first", "the record of how it came about stays"


def test_a_better_candidate_is_promoted_and_the_decision_written_down(
    put: Put, workspace: Workspace, tracker: Tracker, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    run_id = tracker.start("better")
    old, new = duel(put, "better", workspace, thresholds=(BAD, GOOD), run_id=run_id)
    done = promote("better", workspace=workspace, progress=lambda *words: told.append(words))
    assert done.outcome == "promoted" and done.verdict is not None
    assert done.reason.startswith("better: Dice +0.") and done.reason.endswith("on 10 cases; better on organ")
    assert champion("better", workspace) == 2
    assert told == [(model.uri, case, 10) for model in (old, new) for case in range(1, 11)]
    tags = tags_of(new, workspace)
    assert (tags["segsweep.promoted"], tags["segsweep.promotion.against"]) == ("promoted", "models:/better/1")
    assert tags["segsweep.promotion.reason"] == done.reason
    numbers = json.loads(tags["segsweep.promotion.numbers"])
    assert numbers["difference"] == done.verdict.overall.interval.mean and numbers["low"] > 0
    assert (numbers["cases"], numbers["choices"], numbers["better"]) == (10, 1, ["organ"])
    assert done.page == workspace.reports / "promotion-better-v1-v2.html"
    page = done.page.read_text()
    assert "models:/better/2 against models:/better/1" in page and "c00" in page and "c11" in page and "c08" not in page
    artifact = tracker.client.download_artifacts(run_id, f"promotion/{done.page.name}", str(tmp_path))
    assert Path(artifact).read_text() == page


def test_by_default_nothing_is_promoted(put: Put, workspace: Workspace) -> None:
    _, new = duel(put, "equal", workspace, thresholds=(GOOD, GOOD + 0.1))
    done = promote("equal", workspace=workspace)
    assert not done.promoted and champion("equal", workspace) == 1
    assert str(done).startswith(
        "not promoted: models:/equal/2 against models:/equal/1: not better with confidence: Dice +0.0000"
    )
    assert tags_of(new, workspace)["segsweep.promoted"] == "not promoted"
    forced = promote("equal", workspace=workspace, force=True)
    assert forced.outcome == "forced" and forced.reason == done.reason and champion("equal", workspace) == 2
    assert tags_of(new, workspace)["segsweep.promoted"] == "forced"
    assert forced.page is not None and "forced: not better with confidence" in forced.page.read_text()


def test_too_few_cases_promote_nothing(put: Put, workspace: Workspace) -> None:
    duel(put, "few", workspace, thresholds=(BAD, GOOD), fold="all")
    done = promote("few", workspace=workspace)
    assert done.outcome == "not promoted" and champion("few", workspace) == 1
    assert done.reason == (
        "2 cases are too few to tell; expected at least 6 that neither model was trained on, at level 0.95"
    )


def test_what_was_segmented_once_is_kept_for_this_model_and_store_alone(
    put: Put, workspace: Workspace, store: Store
) -> None:
    told: list[str] = []

    def told_model(model: str, _done: int, _total: int) -> None:
        told.append(model)

    old, new = duel(put, "kept", workspace, thresholds=(GOOD, GOOD + 0.1))
    first = promote("kept", workspace=workspace, progress=told_model)
    assert len(told) == 20
    assert promote("kept", workspace=workspace, progress=told_model).verdict == first.verdict
    assert len(told) == 20
    kept, other = (file_of(model, store=store, workspace=workspace) for model in (old, new))
    kept.write_bytes(kept.read_bytes().replace(b"0.", b"1.", 1))  # damaged
    other.write_bytes(seal({"model": old.digest, "data": store.digest, "dice": {"c00": {"organ": 1.0}}}))  # of another
    assert promote("kept", workspace=workspace, progress=told_model).verdict == first.verdict
    assert told[20:] == [old.uri] * 10 + [new.uri] * 10


def test_cases_out_of_fold_are_those_that_no_training_saw(
    put: Put, workspace: Workspace, store: Store, tracker: Tracker
) -> None:
    def cases(model: Registered) -> list[str]:
        return sorted(unseen(contender(model, workspace=workspace), store=store).cases)

    zero, one, every = (put("seen", GOOD, fold=fold) for fold in (0, 1, "all"))
    assert cases(zero) == [*FOLDS[0], *VALIDATION]
    assert cases(one) == [*FOLDS[1], *VALIDATION]
    assert cases(every) == VALIDATION
    both = build([zero.uri, one.uri], name="seen-both", tracker=tracker)
    assert cases(both) == VALIDATION
    # What the weights that a training began with have seen, this model has seen.
    later = put("later", GOOD, fold=0, initial=pinned(registry.fetch(one.uri, workspace=workspace)))
    assert cases(later) == VALIDATION
    moved = dataclasses.replace(store, cases={name: store.cases[name] for name in ("c00", "c08", "c11")})
    assert unseen(contender(zero, workspace=workspace), store=moved).cases == {"c00", "c11"}


def test_weights_of_unknown_origin_are_named(put: Put, workspace: Workspace, tmp_path: Path) -> None:
    elsewhere = put("origin", GOOD)
    folder = registry.fetch(elsewhere.uri, workspace=workspace)
    document = json.loads((folder / "run.json").read_text())
    document["run"]["store"] = "nnunet:Dataset001"
    checkpoint.save(tmp_path / "foreign", snapshot=checkpoint.load(folder), run=document)
    duel(put, "fine-tuned", workspace, thresholds=(BAD, GOOD), initial=pinned(tmp_path / "foreign"))
    page = promote("fine-tuned", workspace=workspace).page
    assert page is not None and "began with weights whose training cases are not known" in page.read_text()


def test_the_best_of_a_sweep_has_to_make_up_for_the_choice(
    put: Put, workspace: Workspace, store: Store, tracker: Tracker
) -> None:
    parent = tracker.start("sweep")
    trials = [
        tracker.start(f"trial-{number}", parent=parent, tags={SWEEP_TAG: "s", TRIAL_TAG: f"trial-{number}"})
        for number in range(20)
    ]
    alone, best = put("chosen", BAD), put("chosen", GOOD, run_id=trials[3])
    set_alias("chosen", alias="champion", version=1, workspace=workspace)
    found = {
        model.version: choices(
            contender(model, workspace=workspace), store=store, cases=frozenset(cases), workspace=workspace
        )
        for model, cases in ((alone, FOLDS[0]), (best, FOLDS[0]))
    }
    assert found == {1: 1, 2: 20}
    side = contender(best, workspace=workspace)
    assert choices(side, store=store, cases=frozenset(VALIDATION), workspace=workspace) == 1, (
        "no trial was compared there"
    )
    done = promote(best.uri, workspace=workspace)
    assert done.verdict is not None and done.verdict.choices == 20 and done.verdict.least_cases == 10
    assert ", as the best of 20, on 10 cases" in done.reason


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (
            {"data": "0123456789abcdef"},
            r"/2 was trained on data 0123456789ab, .*/1 on digest of .*same version of the data",
        ),
        ({"data": ""}, r"/2 does not say what it was trained on \(no tag segsweep\.data\)"),
        ({"structures": ("liver",)}, r"/2 segments liver, expected organ as models:/.*/1 does"),
    ],
)
def test_models_that_cannot_be_compared_are_refused_and_forced_on_record(
    difference: dict[str, object], sentence: str, put: Put, workspace: Workspace
) -> None:
    name = f"unlike-{next(iter(difference))}-{len(sentence)}"
    put(name, BAD)
    set_alias(name, alias="champion", version=1, workspace=workspace)
    new = put(name, GOOD, **difference)
    with pytest.raises(ModelError, match=sentence):
        promote(new.uri, workspace=workspace)
    assert champion(name, workspace) == 1 and "segsweep.promoted" not in tags_of(new, workspace)
    forced = promote(new.uri, workspace=workspace, force=True)
    assert forced.outcome == "forced" and forced.reason.startswith("not compared: ") and forced.page is None
    assert champion(name, workspace) == 2
    assert tags_of(new, workspace)["segsweep.promotion.reason"] == forced.reason


def test_models_without_a_common_case_and_other_data_are_refused(put: Put, workspace: Workspace, store: Store) -> None:
    changed(Path(store.uri), splits=dict.fromkeys(VALIDATION, "test"))
    put("apart", BAD, fold=0)
    set_alias("apart", alias="champion", version=1, workspace=workspace)
    new = put("apart", GOOD, fold=1)
    with pytest.raises(ModelError, match=r"share no annotated case .*\(2 are new to the one, 8 to the other\)"):
        promote(new.uri, workspace=workspace)
    changed(Path(store.uri), digest="fedcba9876543210")
    with pytest.raises(StoreError, match=r"holds data fedcba987654, expected digest of"):
        promote(new.uri, workspace=workspace)
    Path(store.uri).rename(f"{store.uri}-moved")
    with pytest.raises(StoreError, match=r"cannot be opened .*or say with store=… where it is"):
        promote(new.uri, workspace=workspace)
    with pytest.raises(StoreError, match="holds data fedcba987654"):
        promote(new.uri, workspace=workspace, store=f"{store.uri}-moved")


def test_damage_is_refused_whatever_is_forced(put: Put, workspace: Workspace) -> None:
    duel(put, "damaged", workspace, thresholds=(BAD, GOOD))
    weights = registry.fetch("models:/damaged/2", workspace=workspace) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    for force in (False, True):
        with pytest.raises(SegsweepError, match=r"weights\.safetensors"):
            promote("damaged", workspace=workspace, force=force)
    assert champion("damaged", workspace) == 1
    with pytest.raises(RecipeError, match=r"level=1\.5 cannot be used"):
        promote("damaged", workspace=workspace, level=1.5)
