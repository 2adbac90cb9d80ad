from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from segsweep.learning import intensity
from segsweep.learning.intensity import STEPS, alter, contrast_factor, is_flat, kernel


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


def test_every_step_comes_at_its_chance(monkeypatch):
    generator, counts = np.random.default_rng(0), dict.fromkeys((step.name for step in STEPS["nnunet"]), 0)

    def counting(step):
        def change(_image, _generator):
            counts[step.name] += 1

        return replace(step, change=change)

    monkeypatch.setitem(STEPS, "nnunet", tuple(counting(step) for step in STEPS["nnunet"]))
    for _ in range(5000):
        alter(torch.zeros(1, 2, 2, 2), level="nnunet", generator=generator)
    for step in STEPS["nnunet"]:
        assert counts[step.name] / 5000 == pytest.approx(step.probability, abs=0.02)


def test_flare22_has_what_its_paper_names():
    assert {step.name for step in STEPS["flare22"]} == {"gamma", "contrast", "blur"}
    assert all(step in STEPS["nnunet"] for step in STEPS["flare22"])


def test_none_leaves_the_patch_alone():
    image = patch()
    for level in ("none", "flips"):
        alter(image, level=level, generator=np.random.default_rng(0))
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
    drawn, deviations = [], []
    for seed in range(1000):
        before, after = changed(intensity.noise, seed=seed)
        drawn.append(np.random.default_rng(seed).uniform(0, 0.1))
        deviations.append(float((after - before).std()))
    np.testing.assert_allclose(deviations, drawn, rtol=0.08, atol=1e-5)
    assert np.mean(deviations) == pytest.approx(0.05, abs=0.003)
    assert max(deviations) > 0.098


def test_blur_equals_a_gaussian_filter_on_half_of_the_channels():
    before, after = changed(intensity.blur, image=patch((2000, 4, 5, 6)))
    generator, sigmas, touched = np.random.default_rng(0), [], 0
    for old, new in zip(before, after, strict=True):
        expected = old.numpy()
        if generator.random() < 0.5:
            touched += 1
            sigmas.append([generator.uniform(0.5, 1) for _ in range(3)])
            reach = [len(kernel(sigma)) // 2 for sigma in sigmas[-1]]
            expected = ndimage.gaussian_filter(expected, sigmas[-1], radius=reach, mode="mirror")
        np.testing.assert_allclose(new, expected, atol=1e-5)
    assert touched / 2000 == pytest.approx(0.5, abs=0.03)
    assert np.min(sigmas) < 0.51
    assert np.max(sigmas) > 0.99
    np.testing.assert_allclose(np.mean(sigmas, axis=0), 0.75, atol=0.02)


# The odd number next to 6 sigma + 0.5.
@pytest.mark.parametrize(("sigma", "length"), [(0.5, 3), (0.58, 3), (0.59, 5), (0.75, 5), (0.91, 5), (0.92, 7), (1, 7)])
def test_the_kernel_ends_where_nnunets_does(sigma, length):
    assert len(kernel(sigma)) == length
    assert sum(kernel(sigma)) == pytest.approx(1)


def test_brightness_scales_every_channel_by_its_own_factor():
    before, after = changed(intensity.brightness, image=patch((2000, 2, 2, 2)))
    factors = (after / before).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
    assert len(factors[:, 0].unique()) > 1900
    assert ((factors >= 0.7499) & (factors <= 1.2501)).all()
    assert float(factors.min()) < 0.76
    assert float(factors.max()) > 1.24
    assert float((factors[:, 0] < 1).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_contrast_stays_within_the_range_and_acts_about_the_mean():
    before, after = changed(intensity.contrast, seed=1)
    for old, new in zip(before, after, strict=True):
        assert new.min() >= old.min()
        assert new.max() <= old.max()
        inside = (new > old.min()) & (new < old.max())
        ratios = ((new - old.mean()) / (old - old.mean()))[inside]
        assert ratios.std() < 1e-2
        assert abs(float(ratios.median()) - 1) > 1e-3


def test_low_resolution_zooms_half_of_the_channels_to_between_half_and_full_size():
    before, after = changed(intensity.low_resolution, image=patch((2000, 4, 5, 20)))
    generator, zooms = np.random.default_rng(0), []
    for old, new in zip(before, after, strict=True):
        expected = old
        if generator.random() < 0.5:
            zooms.append(generator.uniform(0.5, 1))
            size = [4 if axis == 0 else round(n * zooms[-1]) for axis, n in enumerate((4, 5, 20))]
            small = old[:, _centres(5, size[1])][:, :, _centres(20, size[2])]
            points = [
                np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1) for n, m in zip((4, 5, 20), size, strict=True)
            ]
            where = np.meshgrid(*points, indexing="ij")
            expected = ndimage.map_coordinates(small.numpy(), where, order=1, mode="nearest")
        np.testing.assert_allclose(new, expected, atol=1e-4)
    assert len(zooms) / 2000 == pytest.approx(0.5, abs=0.03)
    assert np.mean(zooms) == pytest.approx(0.75, abs=0.01)


def _centres(length, coarse):
    """nnU-Net's "nearest-exact": the voxel under the centre of each coarse voxel."""
    return np.floor((np.arange(coarse) + 0.5) * length / coarse).astype(int)


def test_low_resolution_keeps_the_slices_of_flat_patches():
    tilt = torch.arange(8.0)[None, :, None, None].expand(20, 8, 32, 32).clone()
    before, after = changed(intensity.low_resolution, image=tilt)
    torch.testing.assert_close(after, before)
    thick = torch.arange(8.0)[None, :, None, None].expand(20, 8, 16, 16).clone()
    before, after = changed(intensity.low_resolution, image=thick)
    assert not torch.allclose(after, before)


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


@pytest.mark.parametrize("step", [step for step in STEPS["nnunet"] if step.name != "noise"], ids=lambda step: step.name)
def test_steps_stay_on_the_device_of_the_patch(step):
    # The device "meta" computes shapes alone, and refuses values that lie elsewhere; it has no generator for noise.
    image = patch().to("meta")
    for seed in range(5):
        step.change(image, np.random.default_rng(seed))
