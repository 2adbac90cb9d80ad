"""Reorientation and grids agree with SimpleITK for every axis order, flip and tilt, and lose no voxel."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from segsweep.data.geometry import Geometry

SHAPE, SPACING, ORIGIN = (4, 5, 6), (3.0, 2.0, 1.5), (10.0, -20.0, 30.0)
AXES = [
    np.eye(3)[list(order)].T * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def tilt(degrees: float) -> np.ndarray:
    x, z = np.radians(degrees), np.radians(-0.7 * degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_x


def grid(direction: np.ndarray) -> Geometry:
    return Geometry(shape=SHAPE, spacing=SPACING, origin=ORIGIN, direction=tuple(direction.ravel().tolist()))


def itk(geometry: Geometry, voxels: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return image


VOXELS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


@pytest.mark.parametrize("degrees", [0.0, 12.0])
@pytest.mark.parametrize("number", range(len(AXES)))
def test_canonical_equals_itk(number: int, degrees: float) -> None:
    geometry = grid(tilt(degrees) @ AXES[number])
    turned = geometry.reorientation.apply(VOXELS)
    canonical = geometry.canonical()
    oracle = sitk.DICOMOrient(itk(geometry, VOXELS), "LPS")
    np.testing.assert_array_equal(turned, sitk.GetArrayFromImage(oracle))
    assert canonical.shape == turned.shape
    assert canonical.spacing == pytest.approx(oracle.GetSpacing()[::-1])
    assert canonical.origin == pytest.approx(oracle.GetOrigin())
    assert canonical.direction == pytest.approx(oracle.GetDirection())
    np.testing.assert_array_equal(geometry.reorientation.invert(turned), VOXELS)


@pytest.mark.parametrize("number", range(len(AXES)))
def test_position_equals_itk_and_moves_with_the_voxel(number: int) -> None:
    geometry = grid(tilt(8) @ AXES[number])
    image = itk(geometry, VOXELS)
    canonical, turned = geometry.canonical(), geometry.reorientation.apply(VOXELS)
    for index in itertools.product((0, 3), (1, 4), (0, 5)):
        place = geometry.position(index)
        assert place == pytest.approx(image.TransformIndexToPhysicalPoint(index[::-1]))
        moved = tuple(int(values[0]) for values in np.nonzero(turned == VOXELS[index]))
        assert canonical.position((moved[0], moved[1], moved[2])) == pytest.approx(place)


def test_channels_lead() -> None:
    turn = grid(AXES[17]).reorientation
    stack = np.stack([VOXELS, VOXELS + 1])
    np.testing.assert_array_equal(turn.apply(stack)[1], turn.apply(VOXELS + 1))
    np.testing.assert_array_equal(turn.invert(turn.apply(stack)), stack)


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(0, len(AXES) - 1),
    spacing=st.tuples(*[st.floats(0.3, 8.0)] * 3),
    degrees=st.floats(-30, 30),
)
def test_resampled_covers_the_same_extent(number: int, spacing: tuple[float, float, float], degrees: float) -> None:
    source = grid(tilt(degrees) @ AXES[number])
    target = source.resampled(spacing)
    for axis in range(3):
        assert target.shape[axis] == max(1, round(source.shape[axis] * source.spacing[axis] / spacing[axis]))
        assert target.shape[axis] * target.spacing[axis] == pytest.approx(source.shape[axis] * source.spacing[axis])
    outer_source = source.position((-0.5, -0.5, -0.5))
    assert target.position((-0.5, -0.5, -0.5)) == pytest.approx(outer_source, abs=1e-6)


def test_resampling_to_its_own_spacing_is_the_same_grid() -> None:
    source = grid(tilt(5) @ AXES[9])
    assert source.resampled(source.spacing).same_grid(source)


def test_same_grid_within_rounding_only() -> None:
    source = grid(AXES[0])
    near = Geometry(shape=SHAPE, spacing=SPACING, origin=(10.005, -20.0, 30.0), direction=source.direction)
    far = Geometry(shape=SHAPE, spacing=SPACING, origin=(10.02, -20.0, 30.0), direction=source.direction)
    assert source.same_grid(near)
    assert not source.same_grid(far)
    assert not source.same_grid(source.resampled((1, 1, 1)))
    assert not source.same_grid(grid(AXES[1]))


def test_volume_of_a_voxel() -> None:
    assert grid(AXES[0]).voxel_ml == pytest.approx(0.009)
