"""A search before its first trial: trial 0 is the plan's own run, and a grid asks for no more trials than it has points."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from segsweep import recipes
from segsweep.data.structures import LabelSet
from segsweep.errors import RecipeError
from segsweep.run import Run
from segsweep.sweeps.preparing import Prepared, prepare
from segsweep.sweeps.tuning_start import Start, search_start
from segsweep.sweeps.tuning_study import open_study


@pytest.fixture
def prepared(tiny_store: Callable[..., Path]) -> Prepared:
    label = np.zeros((16, 32, 32), dtype=np.uint8)
    label[:8] = 1
    liver = LabelSet(structures=("liver",))
    pair = ",".join(str(tiny_store(name, labels=liver, cases={"c": label})) for name in "ab")
    return prepare(Run(trainable="unet", store=pair, fold="all", params={"patch_size": [16, 32, 32]}))


def begin(recipe: Any, *, prepared: Prepared, folder: Path, sampler: str = "tpe", **fixed: Any) -> Start:
    return search_start(
        recipe, sampler=sampler, objective="dice", warm=(), storage=f"sqlite:///{folder / 'studies.db'}",
        prepared=prepared, fixed=fixed,
    )  # fmt: skip


def asked(trial: Any, plan: Any) -> dict[str, Any]:  # noqa: ARG001
    """A space as a user writes it down at first."""
    return {
        "trainable": trial.suggest_categorical("trainable", ("resenc_unet", "unet")),
        "loss": trial.suggest_categorical("loss", ("dice_focal", "dice_ce")),
        "levels": trial.suggest_int("levels", 3, 5),
    }


def quiet(*_words: Any) -> None: ...


def test_trial_0_is_the_plans_own_run_also_where_the_space_does_not_say_so(prepared: Prepared, tmp_path: Path) -> None:
    start = begin(SimpleNamespace(space=asked), prepared=prepared, folder=tmp_path)
    own = {"trainable": "unet", "loss": "dice_ce"}
    assert [{key: point[key] for key in own} for point in start.first] == [own]
    study = optuna.create_study()
    start.fill(study, report=quiet)
    start.fill(study, report=quiet)
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]
    first = study.ask()
    asked(first, None)
    assert {key: first.params[key] for key in own} == own
    # A fixed parameter is no part of a point.
    fixed = begin(SimpleNamespace(space=asked), prepared=prepared, folder=tmp_path, loss="dice_ce")
    assert "loss" not in fixed.first[0]


def test_a_driver_that_died_among_the_first_points_loses_none(prepared: Prepared, tmp_path: Path) -> None:
    points = [{"levels": levels} for levels in (3, 4, 5)]
    recipe = SimpleNamespace(space=asked, first=lambda _plan: points)
    start, study = begin(recipe, prepared=prepared, folder=tmp_path), optuna.create_study()
    study.enqueue_trial(points[0])
    start.fill(study, report=quiet)
    assert [trial.system_attrs["fixed_params"] for trial in study.trials] == points
    study.ask()
    wider = SimpleNamespace(space=asked, first=lambda _plan: [{"levels": 2}])
    begin(wider, prepared=prepared, folder=tmp_path).fill(study, report=quiet)
    assert len(study.trials) == 3, "a sweep that began keeps its first points"


def test_first_points_that_a_fixed_parameter_makes_alike_are_one_trial(prepared: Prepared, tmp_path: Path) -> None:
    recipe = recipes.load("search_spaces", name="default")
    both = begin(recipe, prepared=prepared, folder=tmp_path)
    one = begin(recipe, prepared=prepared, folder=tmp_path, trainable="resenc_unet")
    assert [point["trainable"] for point in both.first] == ["unet", "resenc_unet"]
    assert one.first == ({key: value for key, value in both.first[0].items() if key != "trainable"},)


def test_the_plain_spaces_first_trial_is_what_it_would_be_without_saying_so(prepared: Prepared, tmp_path: Path) -> None:
    recipe = recipes.load("search_spaces", name="default")
    silent = SimpleNamespace(space=recipe.space)
    found = begin(silent, prepared=prepared, folder=tmp_path)
    assert found.first[0] == begin(recipe, prepared=prepared, folder=tmp_path).first[0]


def test_a_space_that_draws_nothing_has_no_first_point(prepared: Prepared, tmp_path: Path) -> None:
    study = optuna.create_study()
    start = begin(SimpleNamespace(space=lambda _trial, _plan: {}), prepared=prepared, folder=tmp_path)
    start.fill(study, report=quiet)
    assert study.trials == []


def test_a_grid_is_all_there_is(prepared: Prepared, tmp_path: Path) -> None:
    start = begin(SimpleNamespace(space=asked), prepared=prepared, folder=tmp_path, sampler="grid", loss="dice_ce")
    study = open_study(f"sqlite:///{tmp_path / 'studies.db'}", name="toy", settings={}, seed=0, sampler="grid")
    assert start.most(study, trials=20) == 2 * 3
    assert start.most(study, trials=4) == 4
    for _ in range(2):
        trial = start.ask(study)
        assert trial is not None
        start.draw(trial)
        study.tell(trial, 0.5)
    assert start.most(study, trials=20) == 2 * 3
    with pytest.raises(RecipeError, match="sampler=grid: the space draws foreground from real numbers"):
        begin(recipes.load("search_spaces", name="default"), prepared=prepared, folder=tmp_path, sampler="grid")
    other = begin(recipes.load("search_spaces", name="default"), prepared=prepared, folder=tmp_path)
    assert other.most(study, trials=20) == 20
