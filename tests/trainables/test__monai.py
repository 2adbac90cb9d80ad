import sys

import pytest

from segsweep import recipes
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import RecipeError
from segsweep.learning.task import Task

TASK = Task(
    channels=("CT",),
    table=LabelTable(labels=LabelSet(structures=("a",)), atoms=((), (0,))),
    head="softmax",
    patch_size=(64, 64, 64),
    spacing=(1.0, 1.0, 1.0),
    normalisation=(),
)


@pytest.mark.parametrize("name", ["segresnet", "swin_unetr", "mednext"])
@pytest.mark.parametrize("absent", [("monai",), ("monai", "einops")], ids=str)
def test_without_the_package_the_recipe_is_listed_and_says_what_to_install(
    name: str, absent: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("monai", "einops"):
        if package in absent:
            monkeypatch.setitem(sys.modules, package, None)
    recipe = recipes.load("trainables", name=name)
    with pytest.raises(RecipeError, match=rf"{name} needs {' and '.join(absent)}, .* pip install 'segsweep\[monai\]'"):
        recipe.build(recipe.Params(), TASK)
