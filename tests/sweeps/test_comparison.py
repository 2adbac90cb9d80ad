"""A published comparison as values: which rows are trained in which order, and what a scale makes of them."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from segsweep.data.planning import Normalisation, Plan
from segsweep.errors import RecipeError
from segsweep.learning.method import load_method
from segsweep.sweeps.comparison import Comparison, Row, comparison_of, config_of, scaled_epochs, scaled_patch

PLAN = Plan(
    spacing=(3.0, 1.0, 1.0),
    patch_size=(48, 160, 128),
    batch_size=2,
    median_shape=(100, 400, 400),
    normalisation=(Normalisation(scheme="ct", low=-500.0, high=500.0),),
    head="softmax",
)


def comparison(*rows: Row) -> Comparison:
    return Comparison(rows=rows, source="A paper, table 1", measured="Dice", datasets=("phantom",))


def names(waves: tuple[tuple[Row, ...], ...]) -> list[list[str]]:
    return [[row.name for row in wave] for wave in waves]


def test_rows_come_after_those_they_start_from_and_otherwise_in_the_tables_order() -> None:
    table = comparison(
        Row(name="finest", initial="fine"),
        Row(name="mean", members=("plain", "fine")),
        Row(name="fine", initial="coarse"),
        Row(name="plain"),
        Row(name="coarse"),
    )
    assert names(table.waves(pretrained=False)) == [["plain", "coarse"], ["fine"], ["finest"]]


def test_rows_without_their_pretrained_model_are_left_out_with_what_starts_from_them() -> None:
    table = comparison(Row(name="a", pretrained=True), Row(name="b"), Row(name="c", initial="a"))
    assert names(table.waves(pretrained=False)) == [["b"]]
    assert names(table.waves(pretrained=True)) == [["a", "b"], ["c"]]


def test_rows_that_cannot_be_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"row 'c': no 'B' among rows that are trained \(there are: b, c\)"):
        comparison(Row(name="b"), Row(name="c", initial="B"))
    with pytest.raises(RecipeError, match="no 'ab' among rows that are trained"):
        comparison(Row(name="a"), Row(name="b"), Row(name="ab", members=("a", "b")), Row(name="c", initial="ab"))
    with pytest.raises(RecipeError, match="two rows have one name"):
        comparison(Row(name="a"), Row(name="a"))
    with pytest.raises(RecipeError, match="row 'a' starts from itself"):
        comparison(Row(name="a", initial="b"), Row(name="b", initial="a"))


def test_a_file_of_rows_says_whose_they_are() -> None:
    recipe: Any = SimpleNamespace(ROWS=(Row(name="a"),), SOURCE="A paper", DATASETS=("phantom",), __file__="mine.py")
    with pytest.raises(RecipeError, match=r"mine\.py: defines ROWS and no MEASURED"):
        comparison_of(recipe)
    recipe.MEASURED = "Dice"
    found = comparison_of(recipe)
    assert found is not None and found.row("a") == Row(name="a")
    assert comparison_of(cast(Any, SimpleNamespace(TRAINABLE="unet"))) is None


@pytest.mark.parametrize(
    ("patch_size", "scale", "expected"),
    [
        ((32, 320, 256), 0.01, (16, 80, 56)),
        ((28, 256, 256), 0.125, (16, 128, 128)),
        ((96, 128, 160), 0.5, (80, 112, 128)),
        ((28, 256, 256), 0.999, (28, 256, 256)),
        ((12, 64, 64), 1e-9, (12, 16, 16)),
    ],
)
def test_a_scaled_patch_has_that_share_of_the_voxels_in_edges_that_halve(
    patch_size: tuple[int, int, int], scale: float, expected: tuple[int, int, int]
) -> None:
    assert scaled_patch(patch_size, scale=scale) == expected


def test_scaled_epochs_leave_one_beside_the_parts_that_have_their_own() -> None:
    plain = load_method("unet").params({"epochs": 1000})
    assert scaled_epochs(plain, scale=0.01) == {"epochs": 10}
    assert scaled_epochs(plain, scale=1e-6) == {"epochs": 1}
    warming = load_method("multitalent").params({"epochs": 2000, "heads_epochs": 10, "warmup_epochs": 50})
    assert scaled_epochs(warming, scale=0.1) == {"epochs": 200, "heads_epochs": 1, "warmup_epochs": 5}
    assert scaled_epochs(warming, scale=1e-6) == {"epochs": 3, "heads_epochs": 1, "warmup_epochs": 1}


def test_a_row_as_published_is_unchanged_and_a_scaled_one_takes_the_plans_patch_where_it_has_none() -> None:
    row = Row(name="a", trainable="unet", params={"epochs": 500, "loss": "dice_focal"})
    assert config_of(row, plan=PLAN, scale=1.0) == {"trainable": "unet", "epochs": 500, "loss": "dice_focal"}
    scaled = config_of(row, plan=PLAN, scale=0.1)
    assert scaled == {"trainable": "unet", "epochs": 50, "loss": "dice_focal", "patch_size": [24, 80, 64]}
