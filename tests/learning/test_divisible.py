import dataclasses

import pytest

from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import RecipeError
from segsweep.learning.divisible import demand_divisible
from segsweep.learning.task import Task

TASK = Task(
    channels=("CT",),
    table=LabelTable(labels=LabelSet(structures=("a",)), atoms=((), (0,))),
    head="softmax",
    patch_size=(16, 32, 32),
    spacing=(1.0, 1.0, 1.0),
    normalisation=(),
)


@pytest.mark.parametrize(
    ("patch_size", "choice"),
    [((28, 256, 250), "32,256,256"), ((8, 16, 16), "8,16,32"), ((9, 40, 7), "16,48,16")],
    ids=str,
)
def test_a_patch_that_does_not_suit_is_refused_with_one_that_does(
    patch_size: tuple[int, int, int], choice: str
) -> None:
    with pytest.raises(RecipeError, match=rf"does not suit net: .*choose patch_size={choice},"):
        demand_divisible(dataclasses.replace(TASK, patch_size=patch_size), by=(8, 16, 16), network="net")


def test_multiples_suit() -> None:
    demand_divisible(TASK, by=(8, 16, 16), network="net")
    demand_divisible(dataclasses.replace(TASK, patch_size=(8, 16, 32)), by=(8, 16, 16), network="net")
