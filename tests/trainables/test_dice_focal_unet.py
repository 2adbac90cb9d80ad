import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from segsweep import recipes
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import RecipeError
from segsweep.learning.loop import train
from segsweep.learning.setting import Setting
from segsweep.learning.task import Task

RECIPE = recipes.load("trainables", name="dice_focal_unet")
UNET = recipes.load("trainables", name="unet")
SEGRAP = Task(
    channels=("non_contrast_CT", "contrast_CT"),
    table=LabelTable(labels=LabelSet(structures=("GTVp", "GTVnd")), atoms=((), (0,), (1,))),
    head="softmax",
    patch_size=(28, 256, 256),
    spacing=(3.0, 0.54, 0.54),
    normalisation=(Normalisation(scheme="ct", low=-500, high=500),) * 2,
)
SMALL = {"features": 4, "most_features": 16}
CUBE = dataclasses.replace(SEGRAP, patch_size=(32, 32, 32), spacing=(1.0, 1.0, 1.0))
# A softmax of two atoms over 100 voxels of which 50 are true: 30 hit, 10 false, 20 missed.
BINARY = dataclasses.replace(CUBE, table=LabelTable(labels=LabelSet(structures=("GTVp",)), atoms=((), (0,))))


def params(**values: object) -> Any:
    return recipes.build_params(RECIPE, values=values)


def test_the_feature_maps_are_the_posters_seven() -> None:
    with torch.device("meta"):
        model = RECIPE.build(params(), SEGRAP).train()
        image = torch.empty(1, 2, *SEGRAP.patch_size)
    maps = [tuple(level.shape[1:]) for level in model.get_submodule("encoder")(image)]
    assert maps == [
        (32, 28, 256, 256), (64, 28, 128, 128), (128, 28, 64, 64), (256, 14, 32, 32),
        (320, 7, 16, 16), (320, 7, 8, 8), (320, 7, 4, 4),
    ]  # fmt: skip
    assert tuple(model.get_parameter("encoder.stages.0.0.convs.0.conv.weight").shape[2:]) == (1, 3, 3)
    assert [tuple(level.shape[1:]) for level in model(image)] == [(3, *shape[1:]) for shape in maps[:4]]


def test_it_is_the_plain_unet_without_its_two_coarsest_heads() -> None:
    with torch.device("meta"):
        own = RECIPE.build(params(), SEGRAP).state_dict()
        plain = UNET.build(UNET.Params(), SEGRAP).state_dict()
    assert {name: value.shape for name, value in plain.items() if name in own} == {
        name: value.shape for name, value in own.items()
    }
    heads = [f"decoder.seg_layers.{level}.{part}" for level in (0, 1) for part in ("bias", "weight")]
    assert sorted(plain.keys() - own.keys()) == heads


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_number_of_scans_is_taken(channels: int) -> None:
    given = dataclasses.replace(CUBE, channels=("CT",) * channels)
    model = RECIPE.build(params(**SMALL), given).eval()
    assert model(torch.zeros(1, channels, 32, 32, 32))[0].shape == (1, 3, 32, 32, 32)


@pytest.mark.parametrize(("alpha", "beta", "index"), [(0.5, 0.5, 2 / 3), (0.3, 0.7, 30 / 47), (1.0, 1.0, 0.5)], ids=str)
def test_alpha_weighs_false_voxels_and_beta_missed_ones(alpha: float, beta: float, index: float) -> None:
    atoms = torch.zeros(1, 1, 10, 10, dtype=torch.int64)
    atoms.view(-1)[:50] = 1
    predicted = torch.zeros(100, dtype=torch.bool)
    predicted[20:60] = True
    logits = torch.where(predicted, 50.0, -50.0).view(1, 1, 1, 10, 10)
    loss = RECIPE.loss(params(loss="dice", alpha=alpha, beta=beta), BINARY)
    value = loss([torch.cat((-logits, logits), dim=1)], atoms, torch.tensor([[True]]))
    background = 40 / (40 + alpha * 20 + beta * 10)
    assert float(value) == pytest.approx(1 - (index + background) / 2, abs=1e-5)


def test_the_loss_is_the_posters_over_four_heads() -> None:
    """Half of the voxels true and every probability one half: Dice is one half, focal (1/2)^2 log 2."""
    atoms = torch.zeros(1, 16, 16, 16, dtype=torch.int64)
    atoms[:, :8] = 1
    levels = [torch.zeros(1, 2, size, size, size, requires_grad=True) for size in (16, 8, 4, 2)]
    value = RECIPE.loss(params(), BINARY)(levels, atoms, torch.tensor([[True]]))
    assert value.item() == pytest.approx(0.5 + math.log(2) / 4, abs=1e-5)
    value.backward()
    sums = [float(level.grad.abs().sum()) for level in levels if level.grad is not None]
    assert [total / sums[-1] for total in sums] == pytest.approx([8, 4, 2, 1], rel=1e-3)


def test_scans_are_normalised_by_themselves_unless_the_plan_is_asked_for() -> None:
    given = RECIPE.task(params(), SEGRAP)
    assert [rule.scheme for rule in given.normalisation] == ["z-score", "z-score"]
    assert RECIPE.task(params(normalisation="plan"), SEGRAP) == SEGRAP


def test_whole_scans_are_segmented_over_the_eight_flips_of_training() -> None:
    assert RECIPE.inference(params(), SEGRAP).mirror == "zyx"
    assert RECIPE.inference(params(mirror="x"), SEGRAP).mirror == "x"


def test_negative_weights_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"alpha=-0\.1, beta=0\.5 cannot be used"):
        params(alpha=-0.1)


def test_it_learns(make_setting: Callable[..., Setting]) -> None:
    values = {**SMALL, "optimizer": "adamw", "learning_rate": 3e-3, "augmentation": "light"}
    epochs = list(train(make_setting("dice_focal_unet", channels=2, **values)))
    assert epochs[-1].metrics["loss"] < 0.9 * epochs[0].metrics["loss"]
    assert epochs[-1].metrics["patch_dice"] > 0.6
