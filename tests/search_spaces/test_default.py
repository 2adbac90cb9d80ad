"""The plain sweep stays around the plan: trial 0 is the plan's own run, and every patch is one that the network takes."""

import dataclasses
from types import ModuleType

import optuna
import pytest
import torch

from segsweep import recipes
from segsweep.data.planning import Normalisation, Plan
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning.task import Task

SPACE = recipes.load("search_spaces", name="default")
UNET, RESENC = (recipes.load("trainables", name=name) for name in SPACE.TRAINABLES)


def plan_of(patch_size: tuple[int, int, int], *, spacing: tuple[float, float, float]) -> Plan:
    rule = Normalisation(scheme="ct", low=-500.0, high=500.0)
    return Plan(
        spacing=spacing,
        patch_size=patch_size,
        batch_size=2,
        median_shape=patch_size,
        normalisation=(rule,),
        head="softmax",
    )


def test_the_first_trials_are_the_plans_own_run_of_each_network() -> None:
    plan = plan_of((20, 320, 256), spacing=(5.0, 1.0, 1.0))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for values in SPACE.first(plan):
        study.enqueue_trial(values)
    for recipe, name in ((UNET, "unet"), (RESENC, "resenc_unet")):
        trial = study.ask()
        chosen = SPACE.space(trial, plan)
        assert chosen.pop("trainable") == name
        assert recipes.build_params(recipe, values=chosen) == recipe.Params(patch_size=plan.patch_size)


def test_a_share_of_foreground_is_drawn_only_where_it_changes_the_training() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    plan = plan_of((64, 64, 64), spacing=(1.0, 1.0, 1.0))
    drawn = [SPACE.space(study.ask(), plan) for _ in range(20)]
    assert {one["oversampling"] for one in drawn} == set(SPACE.OVERSAMPLING)
    assert all(("foreground" in one) == (one["oversampling"] == "probabilistic") for one in drawn)


@pytest.mark.parametrize("recipe", (UNET, RESENC), ids=SPACE.TRAINABLES)
@pytest.mark.parametrize("preset", [{}, {"preset": "small"}], ids=("", "small"))
@pytest.mark.parametrize("scale", SPACE.SCALES)
@pytest.mark.parametrize(
    ("patch_size", "spacing"),
    [
        ((192, 192, 192), (1.0, 1.0, 1.0)),
        ((128, 128, 128), (3.0, 3.0, 3.0)),
        ((48, 160, 128), (3.0, 1.0, 1.0)),
        ((20, 320, 256), (5.0, 1.0, 1.0)),
        ((16, 224, 224), (8.0, 0.7, 0.7)),
        ((16, 32, 32), (2.0, 1.0, 1.0)),
        ((112, 96, 160), (1.5, 1.5, 1.0)),
    ],
)
def test_the_network_takes_every_patch(
    patch_size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    scale: str,
    preset: dict[str, str],
    recipe: ModuleType,
) -> None:
    plan = plan_of(patch_size, spacing=spacing)
    size = SPACE.patch_size(plan, scale)
    assert size == patch_size or scale != "plan"
    params = dataclasses.replace(recipes.build_params(recipe, values={**preset, "features": 2}), patch_size=size)
    table = LabelTable(labels=LabelSet(structures=("organ",)), atoms=((), (0,)))
    task = Task(
        channels=("CT",),
        table=table,
        head="softmax",
        patch_size=size,
        spacing=spacing,
        normalisation=plan.normalisation,
    )
    with torch.device("meta"):
        model = recipe.build(params, task).eval()
        assert model(torch.empty(1, 1, *size))[0].shape[2:] == size
