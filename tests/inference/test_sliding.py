import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segsweep.data.geometry import Size
from segsweep.errors import InputError, ModelError
from segsweep.inference.sliding import importance, predict_planes, tiles


class Pointwise(nn.Module):
    """Every voxel on its own."""

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        return [torch.cat([x_BCZYX[:, :1], 3 - 2 * x_BCZYX[:, :1]], dim=1)]


class Sides(nn.Module):
    """Logits of left and right by the position in the patch alone, so that it does not see a flip."""

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        side = torch.linspace(-1, 1, x_BCZYX.shape[-1]).expand(x_BCZYX[:, 0].shape)
        return [torch.stack([torch.zeros_like(side), side, -side], dim=1)]


class Lopsided(nn.Module):
    """A random convolution: no flip leaves it as it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv3d(1, 3, 3, padding=1)

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        return [self.layer(x_BCZYX)]


def noise(shape: Size) -> Tensor:
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(1))


def predict_logits(model: nn.Module, image: Tensor, **options: Any) -> Tensor:
    """All slices together, (k, z, y, x)."""
    return torch.stack(list(predict_planes(model, image, **options)), dim=1)


@pytest.mark.parametrize("shape", [(8, 8, 8), (17, 9, 23), (3, 20, 5), (1, 1, 1), (1, 30, 8)])
@pytest.mark.parametrize("mirror", ["none", "zyx"])
def test_a_pointwise_model_gives_the_same_in_tiles_as_at_once(shape: Size, mirror: str):
    image = noise(shape)
    found = predict_logits(Pointwise(), image, patch_size=(8, 8, 8), mirror=mirror, mirrored_outputs=(0, 1))
    assert torch.allclose(found, Pointwise()(image[None])[0][0], atol=1e-5)


@pytest.mark.parametrize("n", range(8, 40))
def test_tiles_cover_every_voxel_with_steps_of_half_a_patch_at_most(n: int):
    starts = sorted({corner[1] for corner in tiles((8, n, 8), patch_size=(8, 8, 8), overlap=0.5)})
    assert starts[0] == 0 and starts[-1] == n - 8
    assert all(0 < b - a <= 4 for a, b in itertools.pairwise(starts))


def test_importance_is_symmetric_and_never_zero():
    weight = importance((16, 9, 320))
    assert weight.max() == 1 and weight.min() > 0
    for axes in ((0,), (1,), (2,), (0, 1, 2)):
        assert torch.equal(weight, weight.flip(axes))
    # sigma is an eighth of the patch: one sigma from the centre of 16 voxels lies 2 voxels away
    line = importance((17, 1, 1))[:, 0, 0]
    assert np.isclose(line[8 + 2], np.exp(-0.5 * (2 / (17 / 8)) ** 2))


def test_overlapping_patches_are_weighted_by_importance():
    found = predict_logits(Sides(), noise((1, 1, 6)), patch_size=(1, 1, 4))[1, 0, 0]
    side, weight = torch.linspace(-1, 1, 4), importance((1, 1, 4))[0, 0]
    both = (side[2] * weight[2] + side[0] * weight[0]) / (weight[2] + weight[0])
    assert torch.allclose(found[[0, 2, 5]], torch.stack([side[0], both, side[3]]))


def test_flips_average_the_logits_of_every_combination():
    model, image = Lopsided(), noise((6, 5, 4))
    expected = torch.zeros((3, 6, 5, 4))
    with torch.no_grad():
        for chosen in itertools.chain(*(itertools.combinations((2, 3), count) for count in range(3))):
            expected += model(image[None].flip(chosen))[0].flip(chosen)[0] / 4
        plain = model(image[None])[0][0]
    found = predict_logits(model, image, patch_size=(6, 5, 4), mirror="zy")
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_a_left_right_flip_swaps_pairs():
    image = noise((4, 4, 8))
    plain = predict_logits(Sides(), image, patch_size=(4, 4, 8))
    swapped = predict_logits(Sides(), image, patch_size=(4, 4, 8), mirror="x", mirrored_outputs=(0, 2, 1))
    unpaired = predict_logits(Sides(), image, patch_size=(4, 4, 8), mirror="x", mirrored_outputs=(0, 1, 2))
    assert torch.allclose(swapped, plain)
    assert torch.allclose(unpaired, torch.zeros_like(unpaired), atol=1e-6)


def test_x_is_left_out_where_a_flip_cannot_be_expressed():
    model, image = Lopsided(), noise((6, 5, 4))
    found = predict_logits(model, image, patch_size=(6, 5, 4), mirror="zyx", mirrored_outputs=None)
    assert torch.equal(found, predict_logits(model, image, patch_size=(6, 5, 4), mirror="zy"))


def test_padding_is_symmetric():
    class Share(nn.Module):
        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            return [torch.arange(8.0).expand(x_BCZYX.shape).clone()]

    found = predict_logits(Share(), noise((8, 8, 3)), patch_size=(8, 8, 8))
    assert found[0, 0, 0].tolist() == [2, 3, 4]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("shape", [(17, 9, 10), (5, 12, 3), (31, 6, 6)])
def test_slices_equal_those_of_sums_over_the_whole_scan(shape: Size, overlap: float):
    model, image, patch = Lopsided(), noise(shape), (6, 6, 6)
    found = predict_logits(model, image, patch_size=patch, overlap=overlap)
    low = [max(0, p - n) // 2 for p, n in zip(patch, shape, strict=True)]
    large = tuple(max(p, n) for p, n in zip(patch, shape, strict=True))
    padded, weight = torch.zeros((1, *large)), importance(patch)
    padded[:, low[0] :, low[1] :, low[2] :][:, : shape[0], : shape[1], : shape[2]] = image
    total, weights = torch.zeros((3, *large)), torch.zeros(large)
    for z, y, x in tiles((large[0], large[1], large[2]), patch_size=patch, overlap=overlap):
        at = (slice(z, z + 6), slice(y, y + 6), slice(x, x + 6))
        with torch.inference_mode():
            logits = model(padded[(slice(None), *at)][None])[0][0]
        total[(slice(None), *at)] += logits * weight
        weights[at] += weight
    whole = (total / weights)[:, low[0] :, low[1] :, low[2] :][:, : shape[0], : shape[1], : shape[2]]
    assert torch.allclose(found, whole, atol=1e-6)


def test_a_slice_comes_before_the_patches_above_it_are_looked_at():
    class Counted(Pointwise):
        patches = 0

        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            self.patches += len(x_BCZYX)
            return super().forward(x_BCZYX)

    model = Counted()
    planes = predict_planes(model, noise((80, 8, 8)), patch_size=(8, 8, 8))
    next(planes)
    assert model.patches == 2
    assert not torch.is_inference_mode_enabled()
    assert len(list(planes)) == 79 and model.patches == 20


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers_are_refused(value: float):
    class Broken(nn.Module):
        def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
            logits = torch.cat([x_BCZYX, -x_BCZYX], dim=1)
            logits[:, 1, 3, 2, 5] = value
            return [logits]

    with pytest.raises(ModelError, match=r"not all finite \(slice 3"):
        predict_logits(Broken(), noise((8, 8, 8)), patch_size=(8, 8, 8))


def test_half_precision_is_close():
    torch.manual_seed(0)
    model, image = Lopsided(), noise((9, 8, 8))
    exact = predict_logits(model, image, patch_size=(6, 6, 6))
    half = predict_logits(model, image, patch_size=(6, 6, 6), precision="bfloat16")
    assert half.dtype == torch.float32
    assert 0 < float((half - exact).abs().max()) < 0.05


@pytest.mark.parametrize("mirror", ["", "xx", "left", "zyxw"])
def test_other_axes_are_refused(mirror: str):
    with pytest.raises(InputError, match="mirror"):
        predict_logits(Pointwise(), noise((8, 8, 8)), patch_size=(8, 8, 8), mirror=mirror)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="sums lie on a GPU where there is one")
@pytest.mark.parametrize("free", [0, 2**60])
def test_a_gpu_gives_the_same_slices_wherever_they_are_added_up(monkeypatch: pytest.MonkeyPatch, free: int):
    image, model = noise((24, 30, 28)), Lopsided()
    expected = predict_logits(model, image, patch_size=(16, 16, 16))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    found = predict_logits(model.cuda(), image, patch_size=(16, 16, 16))
    assert found.device.type == "cpu"
    assert torch.allclose(found, expected, atol=1e-2)  # TF32 rounds to ten bits
