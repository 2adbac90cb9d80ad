"""A model gets the clean-up that helps it as a new version, whose files say what was found; where nothing helps, there is none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep import cli
from segsweep.data.store import Store
from segsweep.errors import ModelError
from segsweep.learning.inference import CleanUp
from segsweep.models import registry
from segsweep.models.catalogue import Registered, set_alias, versions
from segsweep.models.ensemble import build, load_predictor
from segsweep.models.postprocessing import postprocess
from segsweep.models.promotion import promote
from segsweep.models.tracking import DATA_TAG, FROM_TAG, Tracker, connect
from segsweep.workspace import Workspace

# Thresholds: above one lie many voxels of the organ and a crumb or two of noise, above the other lies nothing.
CRUMBS, NOTHING = 40.0, 1000.0
# New to a model of fold 1.
CASES = ["c08", "c09", "c10", "c11"]
WHOLE = CleanUp(foreground="largest")

Enter = Callable[..., Registered]


def test_what_helps_is_recorded_in_a_new_version(
    enter: Enter, organs: Store, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = enter("crumbs", CRUMBS, fold=1)
    told: list[tuple[int, int]] = []
    done = postprocess(raw.uri, workspace=workspace, progress=lambda *counts: told.append(counts))
    assert done.registered is not None and done.registered.uri == "models:/crumbs/2" and done.found.rules == WHOLE
    assert told == [(number, 4) for number in range(1, 5)] and sorted(done.found.scores) == CASES
    assert str(done).startswith(
        "registered models:/crumbs/2: models:/crumbs/1 with the largest component of the whole foreground alone; Dice 0."
    )
    predictor = load_predictor(done.registered.uri, workspace=workspace)
    assert predictor.members[0].inference.clean_up == WHOLE
    assert load_predictor(raw.uri, workspace=workspace).members[0].inference.clean_up == CleanUp()

    record = json.loads((registry.fetch(done.registered.uri, workspace=workspace) / "run.json").read_text())["clean_up"]
    assert record["rules"] == {"foreground": "largest"} and record["cases"] == CASES
    assert record["from"] == {"uri": raw.uri, "digest": raw.digest} and record["data"] == organs.digest
    assert record["dice"]["organ"]["after"] > record["dice"]["organ"]["before"]
    first, second = versions("crumbs", workspace=workspace)
    assert (second.tags[FROM_TAG], second.tags[DATA_TAG]) == (raw.uri, first.tags[DATA_TAG])
    client = connect(workspace)
    old, new = (client.get_model_version("crumbs", number) for number in "12")
    assert new.run_id == old.run_id, "so that `promote` counts the trials that both were chosen from"
    assert "Clean-up" in str(new.description) and "**Dice" in str(new.description)

    set_alias("crumbs", alias="champion", version=1, workspace=workspace)
    page = promote("models:/crumbs/2", workspace=workspace).page
    assert page is not None and "The clean-up of models:/crumbs/2 was chosen on cases" in page.read_text()

    assert cli.main(["list", "models"]) == 0
    assert "  models:/crumbs/2  models:/crumbs/1 with a clean-up\n" in capsys.readouterr().out
    again = postprocess(done.registered.uri, workspace=workspace)
    assert (
        again.registered is None
        and "nothing registered: no rule raises the Dice of models:/crumbs/2 on 4 cases" in str(again)
    )


def test_an_ensemble_is_cleaned_as_a_whole(enter: Enter, tracker: Tracker, workspace: Workspace) -> None:
    members = [enter(name, CRUMBS + extra, fold=1).uri for name, extra in (("one", 0.0), ("two", 0.5))]
    raw = build(members, name="crumbs-ensemble", tracker=tracker)
    done = postprocess(raw.uri, workspace=workspace)
    assert done.registered is not None and done.registered.version == 2
    predictor = load_predictor(done.registered.uri, workspace=workspace)
    assert predictor.members[0].inference.clean_up == done.found.rules == WHOLE and len(predictor.members) == 2
    assert load_predictor(raw.uri, workspace=workspace).members[0].inference.clean_up == CleanUp()


def test_a_model_with_nothing_to_clean_stays_as_it_is(
    enter: Enter, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    enter("clean", NOTHING, fold=1)
    assert cli.main(["postprocess", "models:/clean/1"]) == 0
    shown = capsys.readouterr().out
    assert "organ" in shown and "nothing registered" in shown and "next:" not in shown
    assert len(versions("clean", workspace=workspace)) == 1
    assert cli.main(["postprocess", "models:/clean/1", "stor=x"]) == 2
    assert "no 'stor' among keys of postprocess" in capsys.readouterr().err


def test_only_cases_that_are_new_to_the_model_count(
    enter: Enter, workspace: Workspace, tmp_path: Path, reindex: Callable[..., Path]
) -> None:
    reindex(tmp_path / "organs", splits=dict.fromkeys(("c10", "c11"), "test"))
    everything = enter("everything", CRUMBS, fold="all")
    with pytest.raises(ModelError, match="was trained on every annotated case of"):
        postprocess(everything.uri, workspace=workspace)
    with pytest.raises(ModelError, match="does not say what it was trained on"):
        postprocess(enter("unknown", CRUMBS, data="").uri, workspace=workspace)


def test_a_deleted_run_is_named_before_anything_is_segmented(
    enter: Enter, tracker: Tracker, workspace: Workspace
) -> None:
    run_id = tracker.start("thrown away")
    raw = enter("thrown-away", CRUMBS, fold=1, run_id=run_id)
    tracker.client.delete_run(run_id)
    told: list[tuple[int, int]] = []
    with pytest.raises(ModelError, match=rf"was deleted; .*; mlflow runs restore --run-id {run_id}$"):
        postprocess(raw.uri, workspace=workspace, progress=lambda *counts: told.append(counts))
    assert not told
    tracker.client.restore_run(run_id)
    assert postprocess(raw.uri, workspace=workspace).registered is not None
