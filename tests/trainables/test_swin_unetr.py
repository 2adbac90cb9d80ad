import dataclasses
from collections.abc import Callable

import pytest

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
    patch_size=(96, 96, 96),
    spacing=(1.0, 1.0, 1.0),
    normalisation=(),
)
RECIPE = recipes.load("trainables", name="swin_unetr")


@pytest.mark.parametrize(("patch_size", "choice"), [((48, 64, 64), "64,64,64"), ((32, 32, 32), "32,32,64")], ids=str)
def test_a_patch_that_cannot_be_halved_is_refused(patch_size: tuple[int, int, int], choice: str) -> None:
    with pytest.raises(RecipeError, match=rf"does not suit swin_unetr.*choose patch_size={choice}"):
        RECIPE.build(RECIPE.Params(), dataclasses.replace(TASK, patch_size=patch_size))


@pytest.mark.parametrize("values", [{"feature_size": 16}, {"feature_size": 0}, {"depths": (0, 1, 1, 1)}, {"window": 1}])
def test_impossible_shapes_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="cannot be used: expected"):
        recipes.build_params(RECIPE, values=values)


def test_it_learns(make_setting: Callable[..., Setting]) -> None:
    values = {"feature_size": 12, "depths": (1, 1, 1, 1), "window": 2, "learning_rate": 3e-3, "augmentation": "none"}
    setting = make_setting(
        "swin_unetr", patch_size=(32, 32, 64), batch_size=1, iterations=2, validation_iterations=0, **values
    )
    epochs = list(train(setting))
    assert epochs[-1].metrics["loss"] < epochs[0].metrics["loss"] - 0.1
