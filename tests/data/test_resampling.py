import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from segsweep.data.geometry import Geometry, Size, Spacing
from segsweep.data.resampling import linear_weights, resample_image, resample_label, resample_planes
from segsweep.errors import InputError


def grid(shape: Size, *, spacing: Spacing = (1.0, 1.0, 1.0)) -> Geometry:
    return Geometry(shape=shape, spacing=spacing, origin=(3.0, -2.0, 7.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))


def coordinate(shape: Size, *, axis: int) -> NDArray:
    return np.asarray(np.indices(shape)[axis], dtype=float)


def test_equal_shapes_return_the_values():
    image = np.random.default_rng(0).integers(-1000, 1000, (2, 3, 4, 5)).astype(np.int16)
    source = grid((3, 4, 5))
    assert np.array_equal(resample_image(image, source=source, target=source), image)
    assert np.array_equal(resample_label(abs(image[0]), source=source, target=source), abs(image[0]))


def test_spline_equals_scipys_on_all_axes_together():
    image = np.random.default_rng(1).normal(size=(1, 9, 12, 7)).astype(np.float32)
    source = grid((9, 12, 7), spacing=(1.5, 1.0, 1.2))
    target = source.resampled((1.0, 1.3, 0.7))
    zoom = [m / n for n, m in zip(source.shape, target.shape, strict=True)]
    expected = np.asarray(ndimage.zoom(image[0].astype(float), zoom, order=3, mode="nearest", grid_mode=True))
    found = resample_image(image, source=source, target=target)[0]
    assert np.allclose(found, np.clip(expected, image.min(), image.max()), atol=1e-4)


@pytest.mark.parametrize("axis", range(3))
def test_positions_are_kept_along_every_axis(axis: int):
    source = grid((12, 16, 20), spacing=(2.0, 1.5, 1.0))
    target = source.resampled((1.0, 1.1, 1.9))
    ramp = coordinate(source.shape, axis=axis)[None].astype(np.float32)
    found = resample_image(ramp, source=source, target=target, order=1)[0]
    step = target.spacing[axis] / source.spacing[axis]
    position = (coordinate(target.shape, axis=axis) + 0.5) * step - 0.5
    expected = position.clip(0, source.shape[axis] - 1)
    assert np.allclose(found, expected, atol=1e-4)


def test_a_coarse_axis_is_repeated_not_interpolated():
    source = grid((4, 8, 8), spacing=(5.0, 1.0, 1.0))
    target = source.resampled((2.5, 1.0, 1.0))
    image = np.random.default_rng(2).normal(size=(1, 4, 8, 8)).astype(np.float32)
    assert np.array_equal(resample_image(image, source=source, target=target), image.repeat(2, axis=1))
    label = (image[0] > 0).astype(np.uint8) * 3
    assert np.array_equal(resample_label(label, source=source, target=target), label.repeat(2, axis=0))


def test_the_range_is_kept():
    image = np.full((1, 6, 6, 6), -1024, dtype=np.int16)
    image[0, 2:4, 2:4, 2:4] = 3000
    found = resample_image(image, source=grid((6, 6, 6)), target=grid((6, 6, 6)).resampled((0.4, 0.4, 0.4)))
    assert found.min() >= -1024 and found.max() <= 3000


@pytest.mark.parametrize("spacing", [(0.7, 1.3, 0.6), (2.2, 0.8, 1.7), (3.7, 3.1, 2.6)])
def test_labels_equal_the_argmax_of_interpolated_masks(spacing: Spacing):
    generator = np.random.default_rng(3)
    coarse = generator.choice([0, 1, 2, 7], size=(4, 5, 6), p=[0.4, 0.2, 0.2, 0.2])
    label = coarse.repeat(3, axis=0).repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8)
    source = grid((12, 10, 12))
    target = source.resampled(spacing)
    values = np.unique(label)
    w = [linear_weights(n, m=m) for n, m in zip(source.shape, target.shape, strict=True)]
    shares = np.stack([np.einsum("az,by,cx,zyx->abc", *w, label == value, optimize=True) for value in values])
    found = resample_label(label, source=source, target=target)
    top = np.sort(shares, axis=0)
    clear = top[-1] - top[-2] > 1e-5
    assert clear.mean() > 0.5
    assert found.dtype == np.uint8
    assert np.array_equal(found[clear], values[shares.argmax(axis=0)][clear])


def test_linear_weights_are_convex():
    for n, m in itertools.product((1, 2, 5, 9), (1, 2, 4, 13)):
        weights = linear_weights(n, m=m)
        assert weights.min() >= 0
        assert np.allclose(weights.sum(axis=1), 1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 1, 8), (8, 8, 1)])
def test_one_slice_survives(shape: Size):
    source = grid(shape, spacing=(2.0, 2.0, 2.0))
    target = source.resampled((1.0, 1.0, 1.0))
    image = np.full((1, *shape), 5, dtype=np.int16)
    assert np.allclose(resample_image(image, source=source, target=target), 5)
    label = np.full(shape, 4, dtype=np.uint16)
    assert np.array_equal(resample_label(label, source=source, target=target), np.full(target.shape, 4))


def test_scores_are_linear_along_a_coarse_axis_too():
    source = grid((2, 4, 4), spacing=(8.0, 1.0, 1.0))
    target = source.resampled((2.0, 1.0, 1.0))
    scores = coordinate(source.shape, axis=0)[None].astype(np.float32)
    found = [plane[0, 0, 0] for plane in resample_planes(np.moveaxis(scores, 1, 0), source=source, target=target)]
    assert np.allclose(found, [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])


@pytest.mark.parametrize("shape", [(5, 9, 4), (20, 3, 16), (7, 8, 9), (1, 1, 30)])
def test_slices_of_scores_equal_the_whole_resampled_at_once(shape: Size):
    source = grid((7, 8, 9), spacing=(2.0, 1.5, 1.0))
    scores = np.random.default_rng(2).normal(size=(3, 7, 8, 9)).astype(np.float32)
    z, y, x = (n * s / m for n, s, m in zip(source.shape, source.spacing, shape, strict=True))
    target = source.resampled((z, y, x))
    assert target.shape == shape
    found = np.stack(list(resample_planes(np.moveaxis(scores, 1, 0), source=source, target=target)), axis=1)
    matrices = [linear_weights(n, m=m) for n, m in zip(source.shape, shape, strict=True)]
    assert np.allclose(found, np.einsum("kzyx,az,by,cx->kabc", scores, *matrices), atol=1e-5)


def test_other_extents_are_refused():
    image = np.zeros((1, 4, 4, 4), dtype=np.int16)
    with pytest.raises(InputError, match="extent"):
        resample_image(image, source=grid((4, 4, 4)), target=grid((4, 4, 5)))
    with pytest.raises(InputError, match="shape"):
        resample_label(image[0], source=grid((5, 4, 4)), target=grid((5, 4, 4)))
