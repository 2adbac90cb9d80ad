"""Several folds of one trial: where they lie, by which of them it is judged, and what they come to."""

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest

from segsweep.data.store import open_store
from segsweep.models.catalogue import models
from segsweep.models.contenders import choices, contender
from segsweep.models.ensemble import fold_members
from segsweep.models.tracking import PARENT_TAG, TRIAL_TAG, connect
from segsweep.sweeps.folds import fold_folders, judged_folder, merge, told
from segsweep.sweeps.tuning import Swept, tune
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.sweeps.tuning_study import CONFIG
from segsweep.sweeps.validation import summarise
from segsweep.workspace import Workspace

TRIAL = Path("trial-0003")
RESULTS = [
    {
        "epoch": 9, "epochs": 9, "status": "finished", "digest": "a", "loss": 0.5, "dice": 0.9, "seconds_per_case": 4.0,
        "memory_gb": 2.0,
    },
    {"epoch": 9, "epochs": 9, "status": "finished", "digest": "b", "dice": 0.3, "seconds_per_case": 8.0, "memory_gb": 3.0},
]  # fmt: skip


def test_a_single_fold_lies_in_the_trials_own_folder() -> None:
    assert fold_folders(TRIAL, folds=(2,)) == {2: TRIAL}
    assert fold_folders(TRIAL, folds=(1, 0)) == {1: TRIAL / "fold-1", 0: TRIAL / "fold-0"}
    assert judged_folder(TRIAL, report={"epoch": 1}) == TRIAL
    assert judged_folder(TRIAL, report={"epoch": 1, "fold": 1}) == TRIAL / "fold-1"


def test_reports_of_later_folds_are_read_where_they_stand() -> None:
    assert told({"epoch": 1, "fold": 0}) == {"epoch": 1, "fold": 0}
    assert told({"later": {"epoch": 2}, "fold": 1}) == {"epoch": 2}


def test_every_held_out_case_counts_alike_whatever_fold_it_is_of() -> None:
    dice = {"a": {"Eye": 0.9}, "b": {"Eye": 0.3, "Brain": 0.4}, "c": {"Eye": 0.3}}
    merged = merge(RESULTS, dice=dice, nsd={"a": {"Eye": 1.0}, "b": {"Eye": 0.0}})
    assert merged["dice"] == pytest.approx(0.45)
    assert (merged["dice/Eye"], merged["dice/Brain"]) == (pytest.approx(0.5), 0.4)
    assert (merged["nsd"], merged["nsd/Eye"]) == (0.5, 0.5)
    assert (merged["seconds_per_case"], merged["memory_gb"]) == (6.0, 3.0)
    assert (merged["status"], merged["epoch"], merged["epochs"], merged["digest"]) == ("finished", 9, 9, "a,b")


def test_a_trial_whose_first_fold_was_stopped_has_no_score() -> None:
    first = {"epoch": 3, "epochs": 9, "status": "stopped_early", "digest": "a", "loss": 0.5}
    assert merge([first], dice={}, nsd={}) == {"epoch": 3, "epochs": 9, "status": "stopped_early", "digest": "a"}


def runs(workspace: Workspace) -> dict[str, Any]:
    """Each MLflow run of the phantom by the name of its trial or fold; the sweep's own is `sweep`."""
    client = connect(workspace)
    (experiment,) = [found for found in client.search_experiments() if found.name == "phantom"]
    found = client.search_runs([experiment.experiment_id])
    named = {run.data.tags.get(TRIAL_TAG, "sweep"): run for run in found}
    assert len(named) == len(found)
    return named


@pytest.mark.usefixtures("cluster")
def test_an_interrupted_fold_goes_on_and_what_ended_is_not_trained_again(
    phantom_store: Path, workspace: Workspace, tiny: dict[str, Any]
) -> None:
    sweep, store = workspace.sweeps / "folded", open_store(phantom_store)

    def swept(trials: int) -> Swept:
        options = SweepOptions(name="folded", trials=trials, concurrent=1, register=1, folds="0,1", objective="nsd")
        params = {**tiny, "epochs": 2}
        return tune("default", store=str(phantom_store), workspace=workspace, options=options, params=params)

    swept(1)
    # The same trial once more, as a driver leaves it that dies before the second fold's result.
    study = optuna.load_study(study_name="folded", storage=workspace.studies_uri)
    assert study.user_attrs["segsweep.workspace"] == str(workspace.root)
    study.ask().set_user_attr(CONFIG, study.trials[0].user_attrs[CONFIG])
    shutil.copytree(sweep / "trial-0000", sweep / "trial-0001")
    (sweep / "trial-0001" / "result.json").unlink()
    (sweep / "trial-0001" / "fold-1" / "result.json").unlink()
    ended = sweep / "trial-0001" / "fold-0" / "result.json"
    before = ended.stat().st_mtime_ns
    one, other = swept(2).trials
    assert ended.stat().st_mtime_ns == before
    assert (one.state, one.dice, one.values["nsd"]) == (other.state, other.dice, other.values["nsd"])

    left = {"validation.json", "validation_nsd.json", "result.json"}
    assert {path.name for path in other.folder.iterdir()} == {"fold-0", "fold-1", "logged", *left}
    scores = json.loads((other.folder / "validation_nsd.json").read_text())
    assert scores.keys() == {*store.validation(0), *store.validation(1)}
    assert other.values["nsd"] == study.trials[1].value == summarise(scores, prefix="nsd")["nsd"]

    found, client = runs(workspace), connect(workspace)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    folds = {name for name in found if "/" in name}
    assert folds == {f"trial-000{trial}/fold-{fold}" for trial in (0, 1) for fold in (0, 1)}
    for name, run in found.items():
        above = None if name == "sweep" else found[name.rpartition("/")[0] or "sweep"].info.run_id
        assert run.data.tags.get(PARENT_TAG) == above
        history = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
        assert history == ([1, 2] if name.startswith("trial-0000/") else []), "an epoch is told once, of its fold"

    first, second = models(workspace)
    for fold, version in enumerate((first, second)):
        own = json.loads((one.folder / f"fold-{fold}" / "result.json").read_text())
        assert (version.tags["segsweep.fold"], version.tags["segsweep.trial"]) == (str(fold), one.name)
        assert version.dice == pytest.approx(own["dice"], abs=1e-4)
    assert fold_members(f"models:/{first.name}@candidate", workspace=workspace) == [first.uri, second.uri]
    side = contender(second, workspace=workspace)
    assert choices(side, store=store, cases=frozenset(store.validation(1)), workspace=workspace) == 2
