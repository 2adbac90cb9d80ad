"""What only the U-Net refuses: a patch or a depth that leaves one level."""

import dataclasses
from typing import Any

import pytest

from segsweep import recipes
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import RecipeError
from segsweep.learning.task import Task

TASK = Task(
    channels=("CT",),
    table=LabelTable(labels=LabelSet(structures=("organ",)), atoms=((), (0,))),
    head="softmax",
    patch_size=(8, 8, 8),
    spacing=(1.0, 1.0, 1.0),
    normalisation=(Normalisation(scheme="ct", low=-500.0, high=500.0),),
)


@pytest.mark.parametrize(
    ("values", "patch_size", "complaint"),
    [
        (
            {"preset": "small"},
            (8, 8, 8),
            r"patch_size=\(8, 8, 8\) with stem_stride=2 and levels=5 makes a network of one",
        ),
        (
            {"levels": 1},
            (32, 32, 32),
            r"patch_size=\(32, 32, 32\) with stem_stride=1 and levels=1 makes a network of one",
        ),
    ],
)
def test_one_level_is_no_u_net(values: dict[str, Any], patch_size: tuple[int, int, int], complaint: str) -> None:
    recipe, task = recipes.load("trainables", name="unet"), dataclasses.replace(TASK, patch_size=patch_size)
    with pytest.raises(RecipeError, match=complaint):
        recipe.build(recipes.build_params(recipe, values=values), task)
    enough = {**values, "levels": 2}
    assert recipe.build(recipes.build_params(recipe, values=enough), dataclasses.replace(TASK, patch_size=(24, 24, 24)))
