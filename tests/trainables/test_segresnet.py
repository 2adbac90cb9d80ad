import dataclasses
from collections.abc import Callable

import pytest
import torch

from segsweep import recipes
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import RecipeError
from segsweep.learning.loop import train
from segsweep.learning.setting import Setting
from segsweep.learning.task import Task

pytest.importorskip("monai")

TASK = Task(
    channels=("CT", "PET"),
    table=LabelTable(labels=LabelSet(structures=("a", "b")), atoms=((), (0,), (1,))),
    head="softmax",
    patch_size=(16, 64, 64),
    spacing=(3.0, 1.0, 1.0),
    normalisation=(),
)
RECIPE = recipes.load("trainables", name="segresnet")


def test_thick_slices_are_not_halved_first() -> None:
    with torch.device("meta"):
        model = RECIPE.build(RECIPE.Params(features=4, blocks=(1, 1, 1, 1)), TASK).train()
        levels = model(torch.empty(1, 2, 16, 64, 64))
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 64, 64), (16, 32, 32), (8, 16, 16)]


def test_heads_are_those_of_the_finest_levels() -> None:
    with torch.device("meta"):
        model = RECIPE.build(RECIPE.Params(features=4, heads=2), dataclasses.replace(TASK, spacing=(1.0, 1.0, 1.0)))
        assert len(model.train()(torch.empty(1, 2, 16, 64, 64))) == 2


def test_a_patch_that_cannot_be_halved_is_refused() -> None:
    small = dataclasses.replace(TASK, patch_size=(20, 64, 64))
    with pytest.raises(RecipeError, match=r"does not suit segresnet.*choose patch_size=24,64,64"):
        RECIPE.build(RECIPE.Params(), small)


@pytest.mark.parametrize("values", [{"features": 0}, {"heads": 0}, {"blocks": (1,)}, {"blocks": (1, 0)}])
def test_impossible_shapes_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="cannot be used: expected"):
        recipes.build_params(RECIPE, values=values)


def test_it_learns(make_setting: Callable[..., Setting]) -> None:
    values = {"features": 4, "blocks": (1, 1, 1), "learning_rate": 3e-3, "augmentation": "light"}
    epochs = list(train(make_setting("segresnet", **values)))
    assert epochs[-1].metrics["loss"] < epochs[0].metrics["loss"] - 0.2
    assert epochs[-1].metrics["patch_dice"] > 0.6
