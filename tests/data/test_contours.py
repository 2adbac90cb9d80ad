"""Even-odd filling against an independent point-in-polygon test, holes and islands, shared edges, keyholes and the grid's rim."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from segsweep.data.contours import fill_contours

SHAPE = (23, 31)


def box(low_row: float, low_column: float, high_row: float, high_column: float) -> np.ndarray:
    return np.array(
        [(low_row, low_column), (low_row, high_column), (high_row, high_column), (high_row, low_column)], dtype=float
    )


def oracle(contours: list[np.ndarray]) -> np.ndarray:
    """Parity of the contours that hold a pixel's centre, by matplotlib."""
    centres = np.stack(np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij"), axis=-1).reshape(-1, 2)
    inside = sum(Outline(np.vstack([part, part[:1]])).contains_points(centres).astype(int) for part in contours)
    return np.reshape(inside % 2 == 1, SHAPE)


def star(rng: np.random.Generator, *, centre: tuple[float, float], radius: float) -> np.ndarray:
    angles = np.sort(rng.uniform(0, 2 * np.pi, 25))
    reach = radius * rng.uniform(0.3, 1.0, 25)
    return np.asarray(centre) + np.stack([reach * np.sin(angles), reach * np.cos(angles)], axis=1)


@pytest.mark.parametrize("seed", range(40))
def test_stars_with_holes_and_islands_equal_an_independent_filling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centre = (11.0 + rng.uniform(-1, 1), 15.0 + rng.uniform(-1, 1))
    contours = [star(rng, centre=centre, radius=radius) for radius in (10.5, 6.0, 2.5)]
    contours.append(star(rng, centre=(4.0, 26.0), radius=7.0))  # reaches over the rim and into the others
    contours = [np.round(part, 3) + 0.0003 for part in contours]
    np.testing.assert_array_equal(fill_contours(contours, shape=SHAPE), oracle(contours))


@pytest.mark.parametrize("seed", range(10))
def test_turning_or_shifting_the_list_of_points_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    contour = np.round(star(rng, centre=(11, 15), radius=10), 0)
    expected = fill_contours([contour], shape=SHAPE)
    np.testing.assert_array_equal(fill_contours([contour[::-1]], shape=SHAPE), expected)
    np.testing.assert_array_equal(fill_contours([np.roll(contour, 7, axis=0)], shape=SHAPE), expected)
    np.testing.assert_array_equal(fill_contours([np.vstack([contour, contour[:1]])], shape=SHAPE), expected)


def test_a_ring_an_island_and_two_parts() -> None:
    ring = [box(1.5, 1.5, 12.5, 12.5), box(3.5, 3.5, 10.5, 10.5), box(5.5, 5.5, 8.5, 8.5)]
    found = fill_contours([*ring, box(1.5, 20.5, 4.5, 24.5)], shape=SHAPE)
    expected = np.zeros(SHAPE, dtype=bool)
    expected[2:13, 2:13] = True
    expected[4:11, 4:11] = False
    expected[6:9, 6:9] = True
    expected[2:5, 21:25] = True
    np.testing.assert_array_equal(found, expected)


def test_a_keyhole_cuts_the_same_hole_as_a_contour_of_its_own() -> None:
    outer, inner = box(2.25, 2.25, 14.75, 20.75), box(6.25, 7.25, 10.75, 12.75)
    keyhole = np.vstack([outer, outer[:1], inner[::-1], inner[-1:], outer[:1]])
    np.testing.assert_array_equal(fill_contours([keyhole], shape=SHAPE), fill_contours([outer, inner], shape=SHAPE))


def test_centres_on_an_edge_belong_to_one_of_two_neighbours() -> None:
    left, right = box(2, 3, 9, 10), box(2, 10, 9, 17)
    whole = fill_contours([box(2, 3, 9, 17)], shape=SHAPE)
    parts = [fill_contours([part], shape=SHAPE) for part in (left, right)]
    assert not np.any(parts[0] & parts[1])
    np.testing.assert_array_equal(parts[0] | parts[1], whole)
    assert whole.sum() == 7 * 14
    assert whole[2, 3]
    assert not whole[9, 3]
    assert not whole[2, 17]


def test_noise_of_arithmetic_decides_nothing() -> None:
    exact = box(2, 3, 9, 10)
    noise = np.random.default_rng(0).uniform(-1e-6, 1e-6, (20, *exact.shape))
    expected = fill_contours([exact], shape=SHAPE)
    for part in noise:
        np.testing.assert_array_equal(fill_contours([exact + part], shape=SHAPE), expected)


def test_what_lies_off_the_grid_is_cut_off() -> None:
    assert fill_contours([box(-5, -5, 90, 90)], shape=SHAPE).all()
    assert not fill_contours([box(-9, -9, -2, 90), box(40, 2, 50, 9), box(2, 31.5, 9, 40)], shape=SHAPE).any()
    found = fill_contours([box(-5.5, -5.5, 3.5, 4.5)], shape=SHAPE)
    assert found[:4, :5].all()
    assert found.sum() == 20


def test_contours_without_an_area_hold_nothing() -> None:
    assert not fill_contours([], shape=SHAPE).any()
    assert not fill_contours([np.array([[3.0, 3.0]]), np.array([[3.2, 3.0], [9.1, 9.0]])], shape=SHAPE).any()


def test_a_thousand_contours_on_each_other_count_too() -> None:
    assert fill_contours([box(1.5, 1.5, 9.5, 9.5)] * 1001, shape=SHAPE).sum() == 64
    assert not fill_contours([box(1.5, 1.5, 9.5, 9.5)] * 1024, shape=SHAPE).any()
