"""Where trials come from: what the user fixed is not drawn, a grid is gone through once, trial 0 is the plan's own run."""

import itertools
from typing import Any

import optuna
import pytest

from segsweep.errors import RecipeError
from segsweep.sweeps.tuning_sampling import (
    SAMPLERS,
    WARM,
    FixedTrial,
    default_point,
    fitting,
    make_grid,
    make_sampler,
    queued,
)


def space(trial: Any) -> dict[str, Any]:
    """Two losses, of which one has a parameter of its own."""
    loss = trial.suggest_categorical("loss", ("dice", "focal"))
    levels = trial.suggest_int("levels", 3, 5, step=2)
    gamma = trial.suggest_float("gamma", 1.0, 2.0, step=0.5) if loss == "focal" else None
    return {"loss": loss, "levels": levels, "gamma": gamma}


POINTS = [
    *({"loss": "dice", "levels": levels} for levels in (3, 5)),
    *({"loss": "focal", "levels": levels, "gamma": gamma} for levels in (3, 5) for gamma in (1.0, 1.5, 2.0)),
]


def in_order(points: Any) -> list[Any]:
    return sorted(points, key=str)


def test_nothing_is_drawn_for_what_the_user_fixed() -> None:
    fixed = {"loss": "focal", "patch_size": [16, 32, 32], "foreground": 0.9, "levels": 3}
    trial = optuna.create_study().ask()
    given = FixedTrial(trial, fixed=fixed)
    assert given.suggest_categorical("loss", ("ce", "focal")) == "focal"
    assert given.suggest_categorical("patch_size", ("plan", "smaller")) == "plan", "a name for what was fixed"
    assert given.suggest_float("foreground", 0.2, 0.8, step=0.1) == 0.9
    assert given.suggest_int("levels", 4, 6) == 3
    assert trial.params == {}
    drawn = {
        "head": given.suggest_categorical("head", ("a", "b")),
        "rate": given.suggest_float("rate", 1e-4, 1e-1, log=True),
        "width": given.suggest_int("width", 8, 32, step=8),
    }
    assert trial.params == drawn and given.number == trial.number


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "grid"])
@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"]], ids=len)
def test_every_sampler_draws_also_for_several_objectives(name: str, directions: list[Any]) -> None:
    study = optuna.create_study(directions=directions)
    seen = []
    for number in range(7):
        study.sampler = make_sampler(name, seed=number)  # as after a driver that died
        trial = study.ask()
        seen.append((trial.suggest_float("foreground", 0.2, 0.8), trial.suggest_categorical("loss", ("a", "b"))))
        trial.set_constraint("memory", 1.0 if number == 3 else -1.0)
        study.tell(trial, [seen[-1][0], 1.0][: len(directions)])
    # Once it has learned it may well draw the best point again.
    assert len({foreground for foreground, _ in seen[:5]}) == 5
    assert all(0.2 <= foreground <= 0.8 for foreground, _ in seen)


def test_queue_ends() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"loss": "focal"})
    trial = queued(study)
    assert trial is not None
    assert trial.suggest_categorical("loss", ("dice", "focal")) == "focal"
    assert queued(study) is None


def test_a_grid_has_every_point_once_in_an_order_of_its_seed() -> None:
    grids = [make_grid(space, seed=seed).points for seed in (1, 1, 2)]
    assert [in_order(points) for points in grids] == [in_order(POINTS)] * 3
    assert grids[0] == grids[1] != grids[2]
    fixed = make_grid(lambda trial: space(FixedTrial(trial, fixed={"gamma": 1.3, "levels": 4})), seed=1)
    assert in_order(fixed.points) == [{"loss": "dice"}, {"loss": "focal"}]


def test_a_grid_goes_on_where_it_was_and_ends() -> None:
    study = optuna.create_study(sampler=make_sampler("grid", seed=0))
    study.enqueue_trial({"loss": "focal", "levels": 3, "gamma": 1.5})
    # A point that is only known from an earlier sweep gets a trial of its own.
    known = fitting(space, values={"loss": "dice", "levels": 3}, fixed={})
    assert known is not None
    study.add_trial(
        optuna.trial.create_trial(
            value=0.5, params=known.params, distributions=known.distributions, user_attrs={WARM: "other/0"}
        )
    )
    own = []
    for number in itertools.count():
        grid = make_grid(space, seed=5)  # a new driver each time
        assert len(grid.untried(study)) == len(POINTS) - number
        trial = grid(study)
        if trial is None:
            break
        space(trial)
        own.append(trial.params)
        if number % 2:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert own[0] == {"loss": "focal", "levels": 3, "gamma": 1.5}
    assert in_order(own) == in_order(POINTS)


def test_a_grid_needs_choices_and_not_too_many() -> None:
    def endless(trial: Any) -> None:
        trial.suggest_categorical("loss", ("dice", "focal"))
        trial.suggest_float("foreground", 0.2, 0.8)

    with pytest.raises(RecipeError, match=r"sampler=grid: the space draws foreground .* give foreground=… a value"):
        make_grid(endless, seed=0)
    assert len(make_grid(lambda trial: endless(FixedTrial(trial, fixed={"foreground": 0.3})), seed=0).points) == 2
    with pytest.raises(RecipeError, match="the space has more than 10000 points"):
        make_grid(lambda trial: trial.suggest_int("width", 1, 20_000), seed=0)


@pytest.mark.parametrize("kind", [ValueError, RecipeError])
def test_points_that_a_space_refuses_are_not_of_its_grid(kind: type[Exception]) -> None:
    def choosy(trial: Any) -> None:
        width, levels = trial.suggest_categorical("width", (16, 32)), trial.suggest_int("levels", 3, 5)
        if width == 16 and levels != 4:
            raise kind("too narrow")

    expected = [{"width": 16, "levels": 4}, *({"width": 32, "levels": levels} for levels in (3, 4, 5))]
    assert in_order(make_grid(choosy, seed=0).points) == in_order(expected)
    with pytest.raises(RecipeError, match=r"the space allows none of its points \(too narrow\)"):
        make_grid(lambda trial: choosy(FixedTrial(trial, fixed={"width": 16, "levels": 3})), seed=0)


def test_the_plans_own_run_as_a_point_of_a_space() -> None:
    def asked(trial: Any) -> None:
        trial.suggest_categorical("patch_size", ("plan", "smaller"))
        trial.suggest_categorical("loss", ("dice", "focal"))
        trial.suggest_float("foreground", 0.2, 0.8)
        trial.suggest_int("levels", 3, 5, step=2)
        trial.suggest_float("weight_decay", 1e-2, 1e-1, log=True)

    defaults = {"patch_size": [96, 160, 160], "loss": "focal", "foreground": 0.33, "levels": 4, "weight_decay": 3e-5}
    # What the space does not hold is drawn: an even number of levels, a smaller weight decay.
    assert default_point(asked, defaults=defaults) == {"patch_size": "plan", "loss": "focal", "foreground": 0.33}

    def refusing(trial: Any) -> None:
        trial.suggest_categorical("loss", ("dice", "focal"))
        raise RecipeError("not with this loss")

    assert default_point(refusing, defaults=defaults) == {"loss": "focal"}


@pytest.mark.parametrize(
    ("values", "fixed", "fits"),
    [
        ({"loss": "focal", "levels": 5, "gamma": 1.5}, {}, True),
        ({"loss": "dice", "levels": 5}, {}, True),
        ({"loss": "dice", "levels": 4}, {}, False),
        ({"loss": "dice"}, {}, False),
        ({"loss": "other", "levels": 5}, {}, False),
        ({"loss": "focal", "levels": 5, "gamma": 1.4}, {}, False),
        ({"loss": "dice", "levels": "5"}, {}, False),
        ({"loss": "dice", "levels": 5, "head": "sigmoid"}, {}, False),
        ({"loss": "dice", "levels": 5, "head": "sigmoid"}, {"head": "sigmoid"}, True),
        ({"loss": "dice", "levels": 5, "head": "sigmoid"}, {"head": "softmax"}, False),
        ({"loss": "dice", "levels": 5}, {"levels": 5}, True),
        ({"loss": "dice", "levels": 5}, {"levels": 3}, False),
    ],
)
def test_earlier_values_fit_when_the_space_could_have_drawn_them(
    values: dict[str, Any], fixed: dict[str, Any], fits: bool
) -> None:
    probe = fitting(lambda trial: space(FixedTrial(trial, fixed=fixed)), values=values, fixed=fixed)
    assert (probe is not None) == fits
    if probe is not None:
        assert probe.params == {name: value for name, value in values.items() if name not in fixed}
        assert probe.distributions.keys() == probe.params.keys()
