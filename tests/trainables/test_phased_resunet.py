import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, conv_transpose3d, prelu

from segsweep import recipes
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import RecipeError
from segsweep.learning.batches import draw
from segsweep.learning.loop import train
from segsweep.learning.patches import TrainingCase
from segsweep.learning.sampling import Turn
from segsweep.learning.setting import Setting
from segsweep.learning.task import Task, normalise

RECIPE = recipes.load("trainables", name="phased_resunet")
TASK = Task(
    channels=("CT",),
    table=LabelTable(labels=LabelSet(structures=("lesion",)), atoms=((), (0,))),
    head="softmax",
    patch_size=(16, 32, 32),
    spacing=(3.0, 0.8, 0.8),
    normalisation=(Normalisation(scheme="ct", low=-500, high=500),),
)


def params(**values: object) -> Any:
    return recipes.build_params(RECIPE, values=values)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def skip_weights(model: nn.Module) -> list[Tensor]:
    """Weights of the decoder's convolutions on what comes from the encoder."""
    stages = model.get_submodule("decoder.stages")
    weights = [stage[0].weight for stage in stages]  # pyright: ignore[reportGeneralTypeIssues]
    return [weight[:, len(weight) :] for weight in weights]


def test_it_has_as_many_parameters_as_the_original() -> None:
    with torch.device("meta"):
        model = RECIPE.build(params(), dataclasses.replace(TASK, patch_size=params().patch_size))
    assert count(model) == 9_498_744
    assert sum(weight.numel() for weight in skip_weights(model)) == 290_304


def reference(weights: dict[str, Tensor], x_BCZYX: Tensor) -> Tensor:
    """Full-resolution logits of the original network, written step by step."""

    def chain(name: str, x_BCZYX: Tensor, *dilations: int) -> Tensor:
        for number, dilation in enumerate(dilations):
            first, second = (f"{name}.{2 * number + part}" for part in (0, 1))
            convolved = conv3d(
                x_BCZYX, weights[f"{first}.weight"], weights[f"{first}.bias"], padding=dilation, dilation=dilation
            )
            x_BCZYX = prelu(convolved, weights[f"{second}.weight"])
        return x_BCZYX

    def halve(name: str, x_BCZYX: Tensor) -> Tensor:
        halved = conv3d(x_BCZYX, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"], stride=2)
        return prelu(halved, weights[f"{name}.1.weight"])

    def double(name: str, x_BCZYX: Tensor) -> Tensor:
        doubled = conv_transpose3d(x_BCZYX, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"], stride=2)
        return prelu(doubled, weights[f"{name}.1.weight"])

    first = chain("encoder.stages.0", x_BCZYX, 1, 1) + x_BCZYX
    below = halve("encoder.downs.0", first)
    second = chain("encoder.stages.1", below, 1, 1, 1) + below
    below = halve("encoder.downs.1", second)
    third = chain("encoder.stages.2", below, 1, 2, 4) + below
    below = halve("encoder.downs.2", third)
    fourth = chain("encoder.stages.3", below, 3, 4, 5) + below
    above = chain("decoder.bottleneck", fourth, 1, 1, 1) + chain("decoder.around", fourth, 1)
    above = double("decoder.ups.0", above)
    above = chain("decoder.stages.0", torch.cat((above, third), dim=1), 1, 1, 1) + above
    above = double("decoder.ups.1", above)
    above = chain("decoder.stages.1", torch.cat((above, second), dim=1), 1, 1, 1) + above
    above = double("decoder.ups.2", above)
    above = chain("decoder.stages.2", torch.cat((above, first), dim=1), 1, 1) + above
    return conv3d(above, weights["decoder.heads.3.weight"], weights["decoder.heads.3.bias"])


def test_it_computes_what_the_original_does() -> None:
    torch.manual_seed(0)
    model = RECIPE.build(params(features=2), TASK).eval()
    image = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(image)[0], reference(model.state_dict(), image))


@pytest.mark.parametrize("skips", [False, True])
def test_without_skips_the_encoders_levels_do_not_matter(skips: bool) -> None:
    torch.manual_seed(0)
    model = RECIPE.build(params(features=4), TASK).eval()
    model.get_buffer("skips").fill_(skips)
    image = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        expected = model(image)[0]
        # All but the deepest level are replaced by others.
        model.get_submodule("encoder").register_forward_hook(
            lambda _module, _inputs, levels: [*(torch.randn_like(level) for level in levels[:-1]), levels[-1]]
        )
        found = model(image)[0]
    assert torch.equal(found, expected) != skips


def test_the_flag_is_a_part_of_the_weights() -> None:
    first = RECIPE.build(params(features=4), TASK)
    first.get_buffer("skips").fill_(False)
    second = RECIPE.build(params(features=4), TASK)
    second.load_state_dict(first.state_dict())
    assert not second.get_buffer("skips")


def test_what_goes_into_a_block_is_added() -> None:
    encoder = RECIPE.Encoder(1, features=4, dropout=0.0)
    for parameter in encoder.get_submodule("stages").parameters():
        nn.init.zeros_(parameter)
    image = torch.randn(1, 1, 8, 8, 8)
    levels = encoder(image)
    assert torch.equal(levels[0], image.expand_as(levels[0]))
    assert [level.shape[1] for level in levels[1:]] == [8, 16, 32]


def test_a_patch_must_be_halved_three_times() -> None:
    odd = dataclasses.replace(TASK, patch_size=(28, 256, 256))
    with pytest.raises(RecipeError, match=r"patch_size=\(28, 256, 256\) does not suit .* choose patch_size=32,256,256"):
        RECIPE.build(params(), odd)


def test_the_second_phase_brings_the_skips() -> None:
    first, second = RECIPE.stages(params(epochs=100, first_phase=0.3))
    assert (first.epochs, second.epochs) == (30, 70)
    assert (first.switches, second.switches) == ({"skips": False}, {"skips": True})
    assert [second.rate(epoch) for epoch in (0, 19, 20, 69)] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-7])
    assert [stage.switches for stage in RECIPE.stages(params(first_phase=0))] == [{"skips": True}]
    assert [stage.switches for stage in RECIPE.stages(params(first_phase=1))] == [{"skips": False}]


def test_the_task_is_clipped_and_coarser() -> None:
    given = RECIPE.task(params(), TASK)
    assert given.spacing == (3.0, 1.6, 1.6)
    image = np.asarray([-1000, -200, 100, 700], np.int16).reshape(1, 1, 1, 4)
    assert normalise(image, normalisation=given.normalisation).ravel().tolist() == [-1, -1, 0.5, 1]
    assert RECIPE.task(params(slice_mm=1.0, coarsening=1), TASK).spacing == (1.0, 0.8, 0.8)


def test_only_ct_is_clipped() -> None:
    own = Normalisation(scheme="z-score")
    both = dataclasses.replace(TASK, channels=("CT", "T2"), normalisation=(*TASK.normalisation, own))
    clipped, kept = RECIPE.task(params(), both).normalisation
    assert (clipped.low, clipped.high, kept) == (-200.0, 200.0, own)


def test_patches_are_flipped_and_not_altered_otherwise(make_case: Callable[..., TrainingCase]) -> None:
    task = dataclasses.replace(TASK, patch_size=(16, 16, 16))
    case, given = make_case(0, shape=(20, 20, 20)), params(batch_size=8, patch_size=(16, 16, 16), mirror="x")
    turn = Turn(seed=3)
    flipped, plain = (
        draw([case], task=task, params=dataclasses.replace(given, mirror=mirror), turn=turn).image
        for mirror in ("x", "none")
    )
    as_they_are = [torch.equal(*pair) for pair in zip(flipped, plain, strict=True)]
    from_the_other_side = [torch.equal(*pair) for pair in zip(flipped, plain.flip(-1), strict=True)]
    assert any(from_the_other_side) and any(as_they_are)
    assert all(one != other for one, other in zip(as_they_are, from_the_other_side, strict=True))


def test_only_slices_near_annotated_ones_are_trained_on(make_case: Callable[..., TrainingCase]) -> None:
    case = make_case(1, shape=(60, 16, 16))
    part = RECIPE.trained_part(case, params(slice_margin=20), TASK)
    label = case.grid.read_label((slice(0, 60), slice(0, 16), slice(0, 16)))
    annotated = np.flatnonzero(label.any(axis=(1, 2)))
    first, last = max(0, annotated[0] - 20), min(59, annotated[-1] + 20)
    assert part.grid.shape == (last - first + 1, 16, 16) != (60, 16, 16)
    empty = make_case(1, shape=(60, 16, 16), empty=True)
    assert RECIPE.trained_part(empty, params(), TASK).grid.shape == (60, 16, 16)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.4), (0.14, 0.4), (0.16, 0.32), (0.99, 0.4 * 0.8**6)])
def test_coarser_heads_weigh_ever_less(progress: float, share: float) -> None:
    """Half of the voxels true and every probability one half: the Dice loss of a level is one half."""
    atoms = torch.zeros(1, 16, 16, 16, dtype=torch.int64)
    atoms[:, :8] = 1
    levels = [torch.zeros(1, 2, size, size, size) for size in (16, 8, 4, 2)]
    loss = RECIPE.loss(params(), TASK)
    value = loss(levels, atoms, torch.tensor([[True]]), progress=progress)
    assert float(value) == pytest.approx(0.5 * (1 + 3 * share), abs=1e-5)
    as_nnunet = RECIPE.loss(params(supervision="nnunet"), TASK)
    assert float(as_nnunet(levels, atoms, torch.tensor([[True]]), progress=progress)) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"first_phase": 1.5}, "dropout below 1"),
        ({"dropout": 1.0}, "dropout below 1"),
        ({"rate_period": 0}, "rate_period=0"),
        ({"coarsening": 0.5}, "coarsening from 1"),
        ({"slice_mm": 0.0}, "slices above 0 mm"),
        ({"slice_margin": -1}, "a margin from 0"),
    ],
)
def test_impossible_parameters_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        params(**values)


def test_it_learns_in_both_phases(make_setting: Callable[..., Setting]) -> None:
    setting = make_setting("phased_resunet", features=4, learning_rate=1e-3, dropout=0.0, epochs=6)
    before = [weight.detach().clone() for weight in skip_weights(setting.model)]
    epochs = []
    for epoch in train(setting):
        epochs.append(epoch.metrics)
        same = [torch.equal(old, new) for old, new in zip(before, skip_weights(setting.model), strict=True)]
        assert all(same) == (epoch.number < 3), "only the second phase trains what the skips need"
    losses = [metrics["loss"] for metrics in epochs]
    assert losses[2] < 0.8 * losses[0]
    assert losses[5] < 0.8 * losses[3]
