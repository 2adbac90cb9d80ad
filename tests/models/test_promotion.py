"""A candidate becomes champion only where it is better on cases that neither model has seen, and every decision is written down."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segsweep import cli
from segsweep.data.store import Store
from segsweep.errors import ModelError, RecipeError, SegsweepError, StoreError
from segsweep.evaluation.measure import Measure
from segsweep.evaluation.whole_scans import Scores
from segsweep.learning import checkpoint
from segsweep.learning.transfer import pinned
from segsweep.models import promotion, registry
from segsweep.models.catalogue import Registered, resolve, set_alias, versions
from segsweep.models.promotion import promote
from segsweep.models.tracking import TRIAL_TAG, Tracker
from segsweep.workspace import Workspace

VALIDATION = ["c10", "c11"]
# Thresholds: one finds a good part of the organ, the other nothing at all.
GOOD, BAD = 55.0, 1000.0

Enter = Callable[..., Registered]


def tags_of(model: Registered, workspace: Workspace) -> dict[str, str]:
    return dict(versions(model.name, workspace=workspace)[model.version - 1].tags)


def champion(name: str, workspace: Workspace) -> int:
    return resolve(f"models:/{name}@champion", workspace=workspace).version


def duel(
    enter: Enter, name: str, workspace: Workspace, *, thresholds: tuple[float, float], **values: object
) -> list[Registered]:
    """A champion and a candidate, registered under one name."""
    pair = [enter(name, threshold, **values) for threshold in thresholds]
    set_alias(name, alias="champion", version=1, workspace=workspace)
    set_alias(name, alias="candidate", version=2, workspace=workspace)
    return pair


def test_the_first_candidate_has_no_champion_to_beat(enter: Enter, workspace: Workspace) -> None:
    first = enter("first", GOOD)
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


def test_a_model_that_cannot_segment_is_no_first_champion(
    enter: Enter, workspace: Workspace, tracker: Tracker, tmp_path: Path
) -> None:
    folder = registry.fetch(enter("whole", GOOD).uri, workspace=workspace)
    document = json.loads((folder / "run.json").read_text())
    document["run"]["trainable"] = "recipe_of_someone_else"
    checkpoint.save(tmp_path / "foreign", snapshot=checkpoint.load(folder), run=document)
    new = registry.register(tmp_path / "foreign", name="lost", tracker=tracker, run_id=tracker.start("lost"))
    with pytest.raises(SegsweepError, match="no 'recipe_of_someone_else' among trainables"):
        promote(new.uri, workspace=workspace)
    assert all("champion" not in version.aliases for version in versions("lost", workspace=workspace))


def test_a_better_candidate_is_promoted_and_the_decision_written_down(
    enter: Enter, workspace: Workspace, tracker: Tracker, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    run_id = tracker.start("better")
    old, new = duel(enter, "better", workspace, thresholds=(BAD, GOOD), run_id=run_id)
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
    assert done.page is not None
    page = done.page.read_text()
    assert "models:/better/2 against models:/better/1" in page and "c00" in page and "c11" in page and "c08" not in page
    artifact = tracker.client.download_artifacts(run_id, f"promotion/{done.page.name}", str(tmp_path))
    assert Path(artifact).read_text() == page


def test_a_candidate_can_be_measured_by_its_surfaces(enter: Enter, workspace: Workspace) -> None:
    _, new = duel(enter, "surfaces", workspace, thresholds=(BAD, GOOD))
    done = promote("surfaces", workspace=workspace, measure=Measure(metric="nsd", nsd_tolerance=1.0))
    assert done.outcome == "promoted" and done.page is not None
    assert done.reason.startswith("better: NSD at 1 mm +0.")
    assert json.loads(tags_of(new, workspace)["segsweep.promotion.numbers"])["metric"] == "NSD at 1 mm"
    assert "Difference in NSD at 1 mm" in done.page.read_text()


def test_by_default_nothing_is_promoted(enter: Enter, workspace: Workspace) -> None:
    _, new = duel(enter, "equal", workspace, thresholds=(GOOD, GOOD + 0.1))
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


def test_a_champion_that_came_meanwhile_stays(
    enter: Enter, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, other, new = (enter("meanwhile", threshold) for threshold in (BAD, GOOD, GOOD + 1))
    set_alias("meanwhile", alias="champion", version=old.version, workspace=workspace)
    segmenting = promotion.scan_scores

    def crossed(model: Registered, **values: Any) -> Scores:
        """Another process promotes while this one compares."""
        set_alias("meanwhile", alias="champion", version=other.version, workspace=workspace)
        return segmenting(model, **values)

    monkeypatch.setattr(promotion, "scan_scores", crossed)
    with pytest.raises(
        ModelError, match=r"^models:/meanwhile/2 is champion now; expected models:/meanwhile/1, as when .*/3"
    ):
        promote(new.uri, workspace=workspace)
    assert champion("meanwhile", workspace) == 2 and "segsweep.promoted" not in tags_of(new, workspace)
    assert promote(new.uri, workspace=workspace).champion == other


def test_too_few_cases_promote_nothing(enter: Enter, workspace: Workspace) -> None:
    duel(enter, "few", workspace, thresholds=(BAD, GOOD), fold="all")
    done = promote("few", workspace=workspace)
    assert done.outcome == "not promoted" and champion("few", workspace) == 1
    assert done.reason == (
        "2 cases are too few to tell; expected at least 6 that neither model was trained on, at level 0.95"
    )


def test_weights_of_unknown_origin_are_named(enter: Enter, workspace: Workspace, tmp_path: Path) -> None:
    elsewhere = enter("origin", GOOD)
    folder = registry.fetch(elsewhere.uri, workspace=workspace)
    document = json.loads((folder / "run.json").read_text())
    document["run"]["store"] = "nnunet:Dataset001"
    checkpoint.save(tmp_path / "foreign", snapshot=checkpoint.load(folder), run=document)
    duel(enter, "fine-tuned", workspace, thresholds=(BAD, GOOD), initial=pinned(tmp_path / "foreign"))
    page = promote("fine-tuned", workspace=workspace).page
    assert page is not None and "began with weights whose training cases are not known" in page.read_text()


def test_the_best_of_a_sweep_has_to_make_up_for_the_choice(
    enter: Enter, workspace: Workspace, tracker: Tracker
) -> None:
    parent = tracker.start("sweep")
    trials = [tracker.start(f"trial-{number}", parent=parent, tags={TRIAL_TAG: number}) for number in range(20)]
    duel(enter, "chosen", workspace, thresholds=(BAD, GOOD), run_id=trials[3])
    for trial in trials[10:]:  # the choice was made all the same
        tracker.client.delete_run(trial)
    done = promote("chosen", workspace=workspace)
    assert done.verdict is not None and done.verdict.choices == 20 and done.verdict.least_cases == 10
    assert ", as the best of 20, on 10 cases" in done.reason


@pytest.fixture
def purged(enter: Enter, workspace: Workspace, tracker: Tracker) -> Callable[..., str]:
    """A champion and a candidate whose run is gone for good, as after `mlflow gc`."""

    def make(name: str, **values: object) -> str:
        run_id = tracker.start(name)
        duel(enter, name, workspace, thresholds=(BAD, GOOD), run_id=run_id, **values)
        tracker.client.delete_run(run_id)
        store: Any = tracker.client._tracking_client.store
        store._hard_delete_run(run_id)
        return run_id

    return make


def test_a_run_that_is_gone_is_named_before_any_scan_is_segmented(
    purged: Callable[..., str], workspace: Workspace
) -> None:
    run_id = purged("purged")
    told: list[tuple[str, int, int]] = []
    with pytest.raises(ModelError, match=rf"^models:/purged/2: MLflow holds its run {run_id} no longer.*--force"):
        promote("purged", workspace=workspace, progress=lambda *words: told.append(words))
    assert not told
    assert promote("purged", workspace=workspace, force=True).outcome == "forced"


def test_a_decision_is_kept_although_its_run_is_gone(purged: Callable[..., str], workspace: Workspace) -> None:
    purged("unchosen", fold="all")  # compared on the validation split, by which no trial was chosen
    done = promote("unchosen", workspace=workspace, force=True)
    assert done.reason.startswith("2 cases are too few") and done.page is not None and done.page.is_file()
    assert champion("unchosen", workspace) == 2


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
    difference: dict[str, object], sentence: str, enter: Enter, workspace: Workspace
) -> None:
    name = f"unlike-{next(iter(difference))}-{len(sentence)}"
    enter(name, BAD)
    set_alias(name, alias="champion", version=1, workspace=workspace)
    new = enter(name, GOOD, **difference)
    with pytest.raises(ModelError, match=sentence):
        promote(new.uri, workspace=workspace)
    assert champion(name, workspace) == 1 and "segsweep.promoted" not in tags_of(new, workspace)
    forced = promote(new.uri, workspace=workspace, force=True)
    assert forced.outcome == "forced" and forced.reason.startswith("not compared: ") and forced.page is None
    assert champion(name, workspace) == 2
    assert tags_of(new, workspace)["segsweep.promotion.reason"] == forced.reason


def test_models_without_a_common_case_and_other_data_are_refused(
    enter: Enter, reindex: Callable[..., Path], workspace: Workspace, organs: Store
) -> None:
    reindex(Path(organs.uri), splits=dict.fromkeys(VALIDATION, "test"))
    enter("apart", BAD, fold=0)
    set_alias("apart", alias="champion", version=1, workspace=workspace)
    new = enter("apart", GOOD, fold=1)
    with pytest.raises(ModelError, match=r"share no annotated case .*\(2 are new to the one, 8 to the other\)"):
        promote(new.uri, workspace=workspace)
    reindex(Path(organs.uri), digest="fedcba9876543210")
    with pytest.raises(StoreError, match=r"holds data fedcba987654, expected digest of"):
        promote(new.uri, workspace=workspace)
    Path(organs.uri).rename(f"{organs.uri}-moved")
    with pytest.raises(StoreError, match=r"cannot be opened .*or say with store=… where it is"):
        promote(new.uri, workspace=workspace)
    with pytest.raises(StoreError, match="holds data fedcba987654"):
        promote(new.uri, workspace=workspace, store=f"{organs.uri}-moved")


def test_the_verb_says_what_was_decided(enter: Enter, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    duel(enter, "told", workspace, thresholds=(GOOD, GOOD + 0.1))
    assert cli.main(["promote", "told"]) == 0
    shown = capsys.readouterr().out
    assert "not promoted: models:/told/2 against models:/told/1: not better with confidence: Dice +0.0000" in shown
    assert f"report: {workspace.reports / 'promotion-told-v1-v2.html'}" in shown and "next:" not in shown
    assert cli.main(["promote", "models:/told/2", "level=0.9", "--force"]) == 0
    shown = capsys.readouterr().out
    assert "forced: models:/told/2" in shown and "next: segsweep predict models:/told@champion" in shown
    assert champion("told", workspace) == 2


def test_damage_is_refused_whatever_is_forced(enter: Enter, workspace: Workspace) -> None:
    duel(enter, "damaged", workspace, thresholds=(BAD, GOOD))
    weights = registry.fetch("models:/damaged/2", workspace=workspace) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    for force in (False, True):
        with pytest.raises(SegsweepError, match=r"weights\.safetensors"):
            promote("damaged", workspace=workspace, force=force)
    assert champion("damaged", workspace) == 1
    with pytest.raises(RecipeError, match=r"level=1\.5 cannot be used"):
        promote("damaged", workspace=workspace, level=1.5)
