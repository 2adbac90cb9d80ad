import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning.augment import Cut, Source, Warp, cut, draw_warp, swap_sides, turned
from segsweep.learning.intensity import Level
from segsweep.learning.task import Normalisation, Task

SIDES = LabelSet(structures=("left eye", "right eye", "brain"), pairs=(("left eye", "right eye"),))
TASK = Task(
    channels=("CT",),
    table=LabelTable(labels=SIDES, atoms=((), (0,), (1,), (2,))),
    head="softmax",
    patch_size=(16, 16, 16),
    spacing=(1.0, 1.0, 1.0),
    normalisation=(Normalisation(scheme="ct"),),
)
ONE_SIDED = replace(TASK, table=LabelTable(labels=SIDES, atoms=((), (0,), (2,))))
FLAT = replace(TASK, patch_size=(8, 32, 32))


def source_of(image, atoms, *, reads=None):
    def read(region):
        if reads is not None:
            reads.append(tuple(span.stop - span.start for span in region))
        return Cut(image=image[(slice(None), *region)].clone(), atoms=atoms[region].clone())

    return Source(shape=tuple(atoms.shape), read=read)


def volume(shape=(24, 26, 28), *, seed=0, reads=None):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn((2, *shape), generator=generator)
    return source_of(image, torch.randint(1, 300, shape, generator=generator).int(), reads=reads)


def ball(*, offset):
    """A smooth ball off the centre of a 32^3 scan: the image is its signed distance, the label where that is positive."""
    axes = torch.meshgrid(*(torch.arange(32.0),) * 3, indexing="ij")
    distance = sum((axis - 15.5 - shift) ** 2 for axis, shift in zip(axes, offset, strict=True))
    image = 6 - torch.as_tensor(distance).sqrt()
    return source_of(image[None], (image > 0).long())


def draws(number, *, task=TASK, level: Level = "nnunet", mirror="zyx"):
    generator = np.random.default_rng(5)
    return [draw_warp(level=level, task=task, mirror=mirror, generator=generator) for _ in range(number)]


def test_without_a_warp_the_patch_is_the_scan_itself():
    source = volume()
    whole = source.read((slice(2, 18), slice(0, 16), slice(12, 28)))
    patch = cut(source, corner=(2, 0, 12), patch_size=(16, 16, 16), warp=Warp())
    assert torch.equal(patch.image, whole.image)
    assert torch.equal(patch.atoms, whole.atoms)


@pytest.mark.parametrize("corner", [(2, 3, 4), (-3, 10, 20), (-3, -2, -4), (12, 14, 16), (-15, 0, 0)])
@pytest.mark.parametrize("angle", [0.0, 2 * math.pi])
def test_the_resample_without_a_turn_equals_the_scan_even_beyond_the_borders(corner, angle):
    source = volume()
    plain = cut(source, corner=corner, patch_size=(16, 16, 16), warp=Warp())
    for angles in ((angle, 0.0, 0.0), (0.0, angle, 0.0)):  # within slices, and through them
        sampled = turned(source, corner=corner, patch_size=(16, 16, 16), warp=Warp(angles=angles))
        torch.testing.assert_close(sampled.image, plain.image, atol=2e-4, rtol=0)
        assert torch.equal(sampled.atoms, plain.atoms)


@pytest.mark.parametrize("angles", [(0.7, 0.0, 0.0), (0.3, -0.4, 0.5)])
@pytest.mark.parametrize("corner", [(3, 4, 5), (-5, 15, -4)])
def test_the_resample_equals_that_of_scipy(angles, corner):
    source, warp = volume(), Warp(angles=angles, scale=(1.0, 1.2, 1.2))
    patch = cut(source, corner=corner, patch_size=(16, 12, 10), warp=warp)
    whole = source.read((slice(0, 24), slice(0, 26), slice(0, 28)))
    half = (np.array((16, 12, 10)) - 1) / 2
    offset = np.array(corner) + half - warp.matrix @ half
    kwargs = {"offset": offset, "output_shape": (16, 12, 10), "mode": "grid-constant"}
    expected = [ndimage.affine_transform(channel.numpy(), warp.matrix, order=1, **kwargs) for channel in whole.image]
    np.testing.assert_allclose(patch.image, expected, atol=1e-4)
    atoms = ndimage.affine_transform(whole.atoms.numpy(), warp.matrix, order=0, **kwargs)
    assert np.mean(patch.atoms.numpy() == atoms) > 0.999


@pytest.mark.parametrize("scale", [0.6, 0.75, 1.25, 1.8])
def test_a_scaled_patch_shows_a_larger_or_smaller_part_of_the_scan(scale):
    ramp = torch.arange(64.0)[None, :, None, None].expand(1, 64, 64, 64)
    patch = cut(
        source_of(ramp, ramp[0].to(torch.uint8)),
        corner=(24, 24, 24),
        patch_size=(16, 16, 16),
        warp=Warp(scale=(scale,) * 3),
    )
    steps = patch.image[0, 2:-2, 8, 8].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, round(16 * scale) / 16))
    assert float(patch.image.mean()) == pytest.approx(31.5, abs=0.51)
    assert (patch.atoms - patch.image[0]).abs().max() <= 0.5 + 1e-5


def test_beyond_the_scan_image_and_label_are_zero():
    patch = cut(volume(), corner=(-4, 0, 20), patch_size=(16, 16, 16), warp=Warp())
    assert not patch.image[:, :4].any()
    assert not patch.atoms[:, :, 8:].any()
    assert patch.atoms[4:, :, :8].all()
    scaled = cut(volume(), corner=(-8, 0, 0), patch_size=(16, 16, 16), warp=Warp(scale=(1.25, 1.0, 1.0)))
    assert not scaled.image[:, :8].any()
    assert not scaled.atoms[:8].any()


def test_a_half_turn_in_the_slice_flips_y_and_x():
    source = volume()
    half_turn = cut(source, corner=(2, 3, 4), patch_size=(16, 16, 16), warp=Warp(angles=(math.pi, 0.0, 0.0)))
    flipped = cut(source, corner=(2, 3, 4), patch_size=(16, 16, 16), warp=Warp(flips=(False, True, True)))
    torch.testing.assert_close(half_turn.image, flipped.image, atol=1e-4, rtol=0)
    assert torch.equal(half_turn.atoms, flipped.atoms)


@pytest.mark.parametrize(("axis", "plane"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_a_quarter_turn_of_the_patch_turns_its_content_back(axis, plane):
    angles = tuple(math.pi / 2 if other == axis else 0.0 for other in range(3))
    plain = cut(volume(), corner=(3, 4, 5), patch_size=(16, 16, 16), warp=Warp())
    result = cut(
        volume(), corner=(3, 4, 5), patch_size=(16, 16, 16), warp=Warp(angles=(angles[0], angles[1], angles[2]))
    )
    assert torch.equal(result.atoms, plain.atoms.rot90(-1, plane))
    torch.testing.assert_close(result.image, plain.image.rot90(-1, [at - 3 for at in plane]), atol=1e-4, rtol=0)


def test_the_patch_is_turned_about_z_before_y():
    warp = Warp(angles=(math.pi / 2, math.pi / 2, 0.0))
    np.testing.assert_allclose(warp.matrix @ (0, 1, 0), (-1, 0, 0), atol=1e-12)


def test_flips_are_applied_after_the_turn():
    warp = Warp(angles=(0.3, -0.2, 0.4), scale=(1.2, 1.2, 1.2))
    result = cut(volume(), corner=(3, 4, 5), patch_size=(16, 16, 16), warp=warp)
    both = cut(volume(), corner=(3, 4, 5), patch_size=(16, 16, 16), warp=replace(warp, flips=(True, False, True)))
    torch.testing.assert_close(both.image, result.image.flip(-3, -1), atol=1e-4, rtol=0)
    assert torch.equal(both.atoms, result.atoms.flip(-3, -1))


@pytest.mark.parametrize("angles", [(0.5, 0.0, 0.0), (0.3, -0.4, 0.2)])
@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
def test_image_and_label_turn_together(angles, scale):
    warp = Warp(angles=angles, scale=(scale, scale, scale), flips=(False, True, False))
    patch = cut(ball(offset=(2, -2, 1)), corner=(2, 2, 2), patch_size=(28, 28, 28), warp=warp)
    # Nearest and linear sampling may differ only within a voxel of the surface.
    clear = patch.image[0].abs() > 1
    assert clear.float().mean() > 0.5
    assert torch.equal((patch.image[0] > 0)[clear], (patch.atoms > 0)[clear])
    assert int(patch.atoms.sum()) == pytest.approx(4 / 3 * math.pi * (6 / scale) ** 3, rel=0.05)


def test_the_ball_lies_where_the_matrix_says():
    warp = Warp(angles=(0.3, -0.4, 0.2), scale=(1.1, 1.1, 1.1))
    patch = cut(ball(offset=(3, -4, 2)), corner=(4, 4, 4), patch_size=(24, 24, 24), warp=warp)
    centre = torch.nonzero(patch.atoms).double().mean(0).numpy() - 11.5
    np.testing.assert_allclose(warp.matrix @ centre, (3, -4, 2), atol=0.1)


def test_only_the_box_of_the_turned_patch_is_read():
    reads = []
    source = volume((80, 80, 80), reads=reads)
    cut(source, corner=(30, 30, 30), patch_size=(16, 16, 16), warp=Warp(flips=(True, True, True)))
    cut(source, corner=(30, 30, 30), patch_size=(16, 16, 16), warp=Warp(angles=(math.pi / 4, 0.0, 0.0)))
    cut(source, corner=(30, 30, 30), patch_size=(16, 16, 16), warp=Warp(scale=(0.5, 0.5, 0.5)))
    assert reads[0] == (16, 16, 16)
    assert reads[1] == (16, 24, 24)
    assert reads[2] == (8, 8, 8)


def test_a_left_right_flip_keeps_left_structures_on_the_left():
    # x grows to the left of the patient, so the left eye (atom 1, image 10) has the higher x.
    atoms = torch.zeros(16, 16, 16, dtype=torch.int64)
    atoms[8, 2, 12], atoms[8, 2, 3], atoms[3:6, 9:12, 6:9] = 1, 2, 3
    image = atoms[None] * 10.0
    flipped = cut(
        source_of(image, atoms), corner=(0, 0, 0), patch_size=(16, 16, 16), warp=Warp(flips=(False, False, True))
    )
    swapped = swap_sides(flipped.atoms, table=TASK.table)
    assert swapped[8, 2, 12] == 1
    assert swapped[8, 2, 3] == 2
    assert flipped.image[0, 8, 2, 12] == 20
    assert int((swapped == 3).sum()) == 27


def test_turns_and_scales_come_at_their_printed_rates():
    warps = draws(5000)
    turned = [warp for warp in warps if any(warp.angles)]
    scaled = [warp.scale[0] for warp in warps if warp.scale[0] != 1]
    assert len(turned) / 5000 == pytest.approx(0.2, abs=0.02)
    assert len(scaled) / 5000 == pytest.approx(0.2, abs=0.02)
    both = [any(warp.angles) and warp.scale[0] != 1 for warp in warps]
    assert np.mean(both) == pytest.approx(0.04, abs=0.01)
    angles = np.degrees([warp.angles for warp in turned])
    assert 29 < np.abs(angles).max() <= 30
    assert 0.7 <= min(scaled) < 0.71
    assert 1.39 < max(scaled) <= 1.4
    assert all(len(set(warp.scale)) == 1 for warp in warps)
    np.testing.assert_allclose(np.mean([warp.flips for warp in warps], axis=0), 0.5, atol=0.025)


def test_flat_patches_turn_all_the_way_and_only_in_their_slices():
    warps = draws(3000, task=FLAT)
    angles = np.degrees([warp.angles for warp in warps if any(warp.angles)])
    assert not angles[:, 1:].any()
    assert 170 < np.abs(angles[:, 0]).max() <= 180
    assert {warp.scale[0] for warp in warps} == {1.0}
    assert len({warp.scale[1] for warp in warps}) > 400


def test_light_turns_and_scales_less():
    warps = draws(3000, level="light")
    assert 9 < max(math.degrees(abs(angle)) for warp in warps for angle in warp.angles) <= 10
    assert {True, False} == {flip for warp in warps for flip in warp.flips}
    assert all(0.9 <= warp.scale[0] <= 1.1 for warp in warps)


def test_the_turns_of_each_axis_are_uniform_and_independent():
    angles = np.degrees([warp.angles for warp in draws(6000) if any(warp.angles)])
    np.testing.assert_allclose(angles.mean(0), 0, atol=2)
    np.testing.assert_allclose(angles.std(0), 30 / math.sqrt(3), rtol=0.06)
    np.testing.assert_allclose(np.corrcoef(angles.T), np.eye(3), atol=0.1)


def test_flare22_scales_further():
    scales = [warp.scale[0] for warp in draws(5000, level="flare22") if warp.scale[0] != 1]
    assert 0.6 <= min(scales) < 0.62
    assert 1.78 < max(scales) <= 1.8
    assert np.mean(scales) == pytest.approx(1.2, abs=0.03)


def test_flips_draws_flips_alone():
    warps = draws(400, level="flips")
    assert {Warp(flips=warp.flips) for warp in warps} == set(warps)
    np.testing.assert_allclose(np.mean([warp.flips for warp in warps], axis=0), 0.5, atol=0.08)


def test_none_draws_nothing():
    assert set(draws(50, level="none")) == {Warp()}


@pytest.mark.parametrize(
    ("mirror", "task", "axes"),
    [
        ("zyx", TASK, {0, 1, 2}),
        ("zy", TASK, {0, 1}),
        ("x", TASK, {2}),
        ("none", TASK, set()),
        ("zyx", ONE_SIDED, {0, 1}),
        ("x", ONE_SIDED, set()),
    ],
)
def test_flips_keep_to_the_axes_that_labels_and_parameters_allow(mirror, task, axes):
    warps = draws(100, task=task, mirror=mirror)
    assert {axis for warp in warps for axis in range(3) if warp.flips[axis]} == axes
