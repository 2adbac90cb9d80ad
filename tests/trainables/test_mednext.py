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

networks = pytest.importorskip("monai.networks.nets")

TASK = Task(
    channels=("CT", "PET"),
    table=LabelTable(labels=LabelSet(structures=("a", "b")), atoms=((), (0,), (1,))),
    head="softmax",
    patch_size=(32, 32, 32),
    spacing=(1.0, 1.0, 1.0),
    normalisation=(),
)
RECIPE = recipes.load("trainables", name="mednext")


@pytest.mark.parametrize("size", "SBML")
def test_sizes_are_the_papers(size: str) -> None:
    with torch.device("meta"):
        own = RECIPE.build(RECIPE.Params(size=size), TASK)
        theirs = getattr(networks, f"MedNeXt{size}")(
            in_channels=2, out_channels=3, kernel_size=3, deep_supervision=True
        )
    assert [(name, value.shape) for name, value in own.state_dict().items()] == [
        (name, value.shape) for name, value in theirs.state_dict().items()
    ]


def test_a_patch_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"does not suit mednext.*choose patch_size=32,48,16"):
        RECIPE.build(RECIPE.Params(), dataclasses.replace(TASK, patch_size=(28, 48, 16)))


@pytest.mark.parametrize("values", [{"features": 0}, {"kernel": 4}, {"kernel": 1}])
def test_impossible_shapes_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="cannot be used: expected"):
        recipes.build_params(RECIPE, values=values)


def test_it_learns(make_setting: Callable[..., Setting]) -> None:
    values = {"size": "S", "features": 4, "learning_rate": 3e-3, "augmentation": "light", "patch_size": (16, 16, 32)}
    epochs = list(train(make_setting("mednext", **values)))
    assert epochs[-1].metrics["loss"] < epochs[0].metrics["loss"] - 0.1
