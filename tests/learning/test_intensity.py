import numpy as np
import pytest
import torch
from scipy import ndimage

from segsweep.learning import intensity
from segsweep.learning.intensity import STEPS, alter, contrast_factor, is_flat


def patch(shape=(2, 10, 12, 14), *, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 5


def changed(change, *, seed=0, image=None):
    before = patch() if image is None else image
    after = before.clone()
    change(after, np.random.default_rng(seed))
    return before, after


def test_steps_have_the_printed_order_and_probabilities():
    assert [(step.name, step.probability) for step in STEPS["nnunet"]] == [
        ("noise", 0.1),
        ("blur", 0.2),
        ("brightness", 0.15),
        ("contrast", 0.15),
        ("low resolution", 0.25),
        ("inverted gamma", 0.1),
        ("gamma", 0.3),
    ]


def test_steps_are_applied_by_their_probabilities():
    generator, image = np.random.default_rng(0), torch.zeros(1, 2, 2, 2)
    untouched = 0
    for _ in range(3000):
        image.copy_(torch.arange(8.0).view(1, 2, 2, 2))
        alter(image, level="light", generator=generator)
        untouched += torch.equal(image, torch.arange(8.0).view(1, 2, 2, 2))
    assert untouched / 3000 == pytest.approx(0.85 * 0.85 * 0.7, abs=0.03)


def test_none_leaves_the_patch_alone():
    image = patch()
    alter(image, level="none", generator=np.random.default_rng(0))
    assert torch.equal(image, patch())


def test_equal_seeds_alter_equally_and_stay_finite():
    for seed in range(20):
        first, second = patch(), patch()
        for image in (first, second):
            alter(image, level="nnunet", generator=np.random.default_rng(seed))
        assert torch.equal(first, second)
        assert torch.isfinite(first).all()


def test_contrast_factors_fall_on_either_side_of_1_equally_often():
    generator = np.random.default_rng(0)
    factors = np.array([contrast_factor(0.7, 1.5, generator=generator) for _ in range(4000)])
    assert np.mean(factors < 1) == pytest.approx(0.5, abs=0.03)
    assert np.mean(factors[factors < 1]) == pytest.approx(0.85, abs=0.01)
    assert np.mean(factors[factors > 1]) == pytest.approx(1.25, abs=0.02)
    assert 0.7 <= factors.min() < factors.max() <= 1.5


def test_noise_has_the_drawn_deviation():
    expected = np.random.default_rng(3).uniform(0, 0.1)
    before, after = changed(intensity.noise, seed=3)
    assert float((after - before).std()) == pytest.approx(expected, rel=0.05)


def test_blur_equals_a_gaussian_filter_on_half_of_the_channels():
    before, after = changed(intensity.blur, image=patch((200, 4, 5, 6)))
    touched = [bool((old != new).any()) for old, new in zip(before, after, strict=True)]
    assert np.mean(touched) == pytest.approx(0.5, abs=0.1)
    generator = np.random.default_rng(0)
    for old, new in zip(before, after, strict=True):
        if generator.random() < 0.5:
            sigma = generator.uniform(0.5, 1)
            np.testing.assert_allclose(new, ndimage.gaussian_filter(old.numpy(), sigma, mode="nearest"), atol=1e-5)


def test_brightness_scales_every_channel_by_its_own_factor():
    before, after = changed(intensity.brightness)
    factors = (after / before).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
    assert factors[0, 0] != factors[1, 0]
    assert ((factors >= 0.7499) & (factors <= 1.2501)).all()


def test_contrast_stays_within_the_range_and_acts_about_the_mean():
    before, after = changed(intensity.contrast, seed=1)
    for old, new in zip(before, after, strict=True):
        assert new.min() >= old.min()
        assert new.max() <= old.max()
        inside = (new > old.min()) & (new < old.max())
        ratios = ((new - old.mean()) / (old - old.mean()))[inside]
        assert ratios.std() < 1e-2
        assert abs(float(ratios.median()) - 1) > 1e-3


def test_low_resolution_removes_detail_but_keeps_slices_of_flat_patches():
    noisy = torch.randn((20, 8, 32, 32), generator=torch.Generator().manual_seed(0))
    tilt = torch.arange(8.0)[None, :, None, None].expand(4, 8, 32, 32).clone()
    before, after = changed(intensity.low_resolution, image=noisy)
    touched = [(old, new) for old, new in zip(before, after, strict=True) if not torch.equal(old, new)]
    assert 4 < len(touched) < 16
    assert all(new.std() < old.std() for old, new in touched)
    flat, kept = changed(intensity.low_resolution, image=tilt)
    torch.testing.assert_close(kept, flat)


@pytest.mark.parametrize("change", [intensity.gamma, intensity.inverted_gamma])
def test_gamma_keeps_mean_deviation_and_order(change):
    before, after = changed(change, image=torch.rand((2, 8, 8, 8), generator=torch.Generator().manual_seed(0)))
    assert (after - before).abs().max() > 1e-2
    for old, new in zip(before, after, strict=True):
        assert float(new.mean()) == pytest.approx(float(old.mean()), abs=1e-4)
        assert float(new.std()) == pytest.approx(float(old.std()), abs=1e-4)
        assert torch.equal(old.flatten().argsort(), new.flatten().argsort())


def test_inverted_gamma_bends_the_other_end():
    image = torch.linspace(0, 1, 512).view(1, 8, 8, 8)
    power = contrast_factor(0.7, 1.5, generator=np.random.default_rng(0))
    _, bright = changed(intensity.gamma, image=image)
    _, dark = changed(intensity.inverted_gamma, image=image)
    steps = [values.flatten().diff() for values in (bright, dark)]
    assert (steps[0][0] < steps[0][-1]) == (power > 1)
    assert (steps[1][0] > steps[1][-1]) == (power > 1)


def test_a_constant_patch_survives_every_step():
    for step in STEPS["nnunet"]:
        _, after = changed(step.change, image=torch.full((1, 6, 6, 6), 2.0))
        assert torch.isfinite(after).all()


def test_only_long_thin_patches_are_flat():
    assert not is_flat((16, 48, 48))
    assert is_flat((15, 48, 48))
