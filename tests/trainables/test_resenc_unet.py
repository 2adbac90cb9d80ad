import math
from typing import Any

import pytest
import torch
from torch import nn

from segsweep import recipes
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import RecipeError
from segsweep.learning.task import Task

LABELS = LabelSet(structures=("a", "b", "c", "d"))
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2))
KERNELS = ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
# What this file's small networks are, in the names of nnU-Net's package.
ORIGINAL = {
    "unet": ("PlainConvUNet", {"n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2}),
    "resenc_unet": ("ResidualEncoderUNet", {"n_blocks_per_stage": [1, 3, 4, 6], "n_conv_per_stage_decoder": 1}),
}


def task(
    *, patch_size: tuple[int, int, int] = (8, 32, 32), spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Task:
    return Task(
        channels=("CT", "PET"),
        table=LabelTable(labels=LABELS, atoms=((), (0,), (1,), (2,), (3,))),
        head="softmax",
        patch_size=patch_size,
        spacing=spacing,
        normalisation=(Normalisation(scheme="z-score"),) * 2,
    )


def built(name: str, *, on: Task | None = None, **values: Any) -> nn.Module:
    recipe = recipes.load("trainables", name=name)
    return recipe.build(recipes.build_params(recipe, values=values), on or task())


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ORIGINAL)
def test_names_shapes_and_outputs_are_the_original_packages(name: str) -> None:
    package = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    torch.manual_seed(0)
    kind, counts = ORIGINAL[name]
    original = getattr(package, kind)(
        input_channels=2, n_stages=4, features_per_stage=[4, 8, 16, 16], conv_op=nn.Conv3d, kernel_sizes=KERNELS,
        strides=STRIDES, num_classes=5, conv_bias=True, norm_op=nn.InstanceNorm3d, nonlin=nn.LeakyReLU,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin_kwargs={"inplace": True}, deep_supervision=True, **counts,
    )  # fmt: skip
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.2)
    ours = built(name, features=4, most_features=16, strides=STRIDES, kernels=KERNELS)
    theirs = dict(original.named_parameters())
    assert set(ours.state_dict()) == set(theirs)
    ours.load_state_dict({key: value.detach() for key, value in theirs.items()})
    x_BCZYX = torch.randn(2, 2, 8, 32, 32)
    for found, expected in zip(ours.train()(x_BCZYX), original(x_BCZYX), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# Counted with the original package: isotropic patches of 128 voxels, two channels, five outputs.
@pytest.mark.parametrize(
    ("name", "values", "parameters"),
    [("unet", {}, 31_198_873), ("resenc_unet", {}, 102_353_049), ("resenc_unet", {"blocks": (1, 2, 3, 4)}, 72_038_937)],
)
def test_as_many_parameters_as_the_original(name: str, values: dict[str, Any], parameters: int) -> None:
    assert count(built(name, on=task(patch_size=(128, 128, 128)), **values)) == parameters


def test_a_new_block_passes_on_what_it_gets() -> None:
    torch.manual_seed(0)
    model = built("resenc_unet", features=4, most_features=16, strides=STRIDES, kernels=KERNELS)
    block = model.get_submodule("encoder.stages.0.blocks.0")
    x_BCZYX = torch.rand(1, 4, 4, 8, 8)
    torch.testing.assert_close(block(x_BCZYX), x_BCZYX, rtol=0, atol=0)


def test_explicit_strides_replace_those_of_the_patch() -> None:
    model = built("unet", features=4, most_features=16, strides=STRIDES, kernels=KERNELS)
    assert tuple(model.get_parameter("decoder.transpconvs.0.weight").shape[2:]) == STRIDES[-1]
    assert tuple(model.get_parameter("encoder.stages.0.0.convs.0.conv.weight").shape[2:]) == KERNELS[0]
    assert len(model.train()(torch.zeros(1, 2, 8, 32, 32))) == len(STRIDES) - 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strides": STRIDES}, "4 and 0 levels"),
        ({"strides": STRIDES[:1], "kernels": KERNELS[:1]}, "at least 2 levels"),
        ({"strides": ((1, 1, 1), (0, 2, 2)), "kernels": KERNELS[:2]}, "at least 1 along every axis"),
        ({"strides": STRIDES[:2], "kernels": ((1, 2, 3), (3, 3, 3))}, "expected odd sizes"),
        ({"blocks": ()}, "at least 1 block"),
        ({"blocks": (1, 0)}, "at least 1 block"),
    ],
)
def test_impossible_levels_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        built("resenc_unet", **values)


def test_the_small_network_is_small() -> None:
    small = built("resenc_unet", on=task(patch_size=(96, 96, 96)), preset="small")
    assert count(small) < count(built("resenc_unet", on=task(patch_size=(96, 96, 96)))) / 10
    assert math.prod(small(torch.zeros(1, 2, 32, 32, 32))[0].shape[2:]) == 32**3
