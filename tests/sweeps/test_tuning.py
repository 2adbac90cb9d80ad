"""What a sweep refuses before it starts, and how it checks a trial. (`tests/benchmarks/test_killed_drivers.py` runs whole ones.)"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from segsweep.errors import RecipeError, ResourceError, StoreError
from segsweep.run import Run
from segsweep.sweeps import tuning
from segsweep.sweeps.preparing import prepare
from segsweep.sweeps.tuning import tune
from segsweep.sweeps.tuning_database import demand_own
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.sweeps.tuning_shared import base_run
from segsweep.sweeps.tuning_study import open_study
from segsweep.workspace import Workspace

NETWORKS = ("unet", "resenc_unet")


@pytest.mark.usefixtures("cluster")
def test_what_can_never_run_is_refused_before_anything_is_made(phantom_store: Path, workspace: Workspace) -> None:
    def start(**options: Any) -> None:
        chosen = SweepOptions(name="never", trials=2, **options)
        tune("default", store=str(phantom_store), workspace=workspace, options=chosen, params={}, report=print)

    with pytest.raises(StoreError, match="no fold 5; expected 0 to 4"):
        start(folds="0,5")
    with pytest.raises(ResourceError, match="1000 workers were asked for"):
        start(workers=1000)
    with pytest.raises(ResourceError, match="1000 runs of 1 workers at once"):
        start(concurrent=1000)
    with pytest.raises(RecipeError, match="sampler=grid: the space draws foreground"):
        start(sampler="grid")
    with pytest.raises(
        RecipeError, match=r"stop=paired compares whole scans .* scan_validation_every=0 of 1000 epochs"
    ):
        start(stop="paired")
    with pytest.raises(RecipeError, match="warm=never: 'never' is this sweep itself"):
        start(warm="never")
    with pytest.raises(ValueError, match="trials=0 cannot be used: expected at least 1"):
        SweepOptions(trials=0)
    assert list(workspace.root.iterdir()) == []


@pytest.mark.usefixtures("cluster")
def test_a_sweep_of_another_workspace_in_the_same_database_is_left_alone(
    phantom_store: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSWEEP_STUDIES", f"sqlite:///{tmp_path / 'shared.db'}")
    study = open_study(workspace.studies_uri, name="now", settings={}, seed=0)
    demand_own(workspace, name="now")  # begun before studies said whose they are
    demand_own(workspace, name="another")
    study.set_user_attr("segsweep.workspace", str(workspace.root))
    demand_own(workspace, name="now")
    study.set_user_attr("segsweep.workspace", "s3://lab/theirs")
    sentence = "sweep 'now' in .*shared.db' is that of another workspace, s3://lab/theirs .*choose another name="
    with pytest.raises(RecipeError, match=sentence):
        tune("default", store=str(phantom_store), workspace=workspace, options=SweepOptions(name="now"))
    assert list(workspace.root.iterdir()) == []
    monkeypatch.delenv("SEGSWEEP_STUDIES")
    open_study(workspace.studies_uri, name="now", settings={}, seed=0).set_user_attr("segsweep.workspace", "/before")
    demand_own(workspace, name="now")  # its database moved with it


def test_a_trial_is_checked_with_the_trainable_that_it_chooses(
    phantom_store: Path, workspace: Workspace, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = tuning.needed_memory(prepare(Run(trainable="unet", store=str(phantom_store), params=tiny)))

    def suggested(drawn: str, **fixed: Any) -> dict[str, Any]:
        params = {**tiny, **fixed}
        base = base_run("default", store=str(phantom_store), options=SweepOptions(), params=params)
        assert (base.trainable, "trainable" in base.params) == (fixed.get("trainable", "unet"), False)
        space = SimpleNamespace(
            space=lambda trial, _plan: {"trainable": trial.suggest_categorical("trainable", NETWORKS)}
        )
        opened = prepare(base).store
        assert opened.plan
        with monkeypatch.context() as patch:  # whose index may be long: it is not read for every trial
            patch.setattr("segsweep.sweeps.preparing.open_stores", None)
            return tuning._suggest(
                optuna.trial.FixedTrial({"trainable": drawn}), recipe=space, base=base, fixed=fixed, store=opened,
                memory=needed, workspace=workspace,
            )  # fmt: skip

    assert suggested("unet") == {"trainable": "unet"}
    with pytest.raises(ResourceError, match="needs about"):
        suggested("resenc_unet")
    assert suggested("resenc_unet", trainable="unet") == {"trainable": "unet"}, "the user's own choice goes before"


def test_no_more_trials_at_once_than_are_left_or_fit_into_memory(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"patch_size": [16, 32, 32], "batch_size": 2, "features": 4, "levels": 3}
    prepared = prepare(Run(trainable="unet", store=str(phantom_store), workers=2, params=params))
    needed = tuning.needed_memory(prepared)
    monkeypatch.setattr(tuning, "most_concurrent", lambda *, workers, gpus: int(16 / gpus) // workers)
    monkeypatch.setattr(tuning, "memory_per_worker", lambda *, workers, gpus: int(10 * needed * gpus) // workers)
    assert [tuning._most_at_once(prepared, left=left) for left in (0, 1, 3, 20)] == [1, 1, 3, 5]
    assert tuning._most_at_once(prepared, left=20, gpus=0.5) == 2, "each has half of a GPU's memory"
    assert tuning._most_at_once(prepared, left=20, gpu=True) == 8, "half precision needs half as much"
    monkeypatch.setattr(tuning, "memory_per_worker", lambda *, workers, gpus: int(needed * gpus) // (2 * workers))
    assert tuning._most_at_once(prepared, left=20) == 1, "one trial is tried whatever it needs"
