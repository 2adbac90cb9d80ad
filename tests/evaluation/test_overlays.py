"""Outlines lie where the masks end, in their colours, on the slice that shows most."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from segsweep.evaluation.overlays import BOTH_COLOUR, PREDICTION_COLOUR, REFERENCE_COLOUR, SIDE, fullest_slice, overlay

SPACING = (3.0, 1.0, 1.0)
WINDOW = (-160.0, 240.0)


def drawn(image: np.ndarray, *, truth: list[np.ndarray], found: list[np.ndarray], spacing=SPACING) -> np.ndarray:
    """Red, green and blue of every pixel, 0 to 1."""
    png = overlay(image, truth=truth, found=found, spacing=spacing, window=WINDOW)
    assert len(png) < 100_000
    return imread(io.BytesIO(png))[:, :, :3]


def coloured(picture: np.ndarray, *, colour: str) -> np.ndarray:
    """Rows and columns, in shares of the picture, of all pixels of a colour."""
    places = np.argwhere(np.abs(picture - to_rgb(colour)).max(axis=2) < 0.01)
    return places / picture.shape[:2]


def test_outlines_have_the_colours_and_places_of_their_masks() -> None:
    image = np.full((120, 120), 40.0)
    truth, found = np.zeros((120, 120), bool), np.zeros((120, 120), bool)
    truth[50:70, 45:65] = True
    found[50:70, 55:75] = True
    picture = drawn(image, truth=[truth], found=[found])
    assert picture.shape == (round(SIDE * 100 / 110), SIDE, 3)
    # Columns 5 to 115 are shown: 40 mm around both masks.
    left = coloured(picture, colour=REFERENCE_COLOUR)
    right = coloured(picture, colour=PREDICTION_COLOUR)
    assert left[:, 1].min() == pytest.approx(40 / 110, abs=0.01)
    assert left[:, 1].max() == pytest.approx(60 / 110, abs=0.01)
    assert right[:, 1].min() == pytest.approx(50 / 110, abs=0.01)
    assert right[:, 1].max() == pytest.approx(70 / 110, abs=0.01)
    assert len(coloured(picture, colour=BOTH_COLOUR)) > 0
    inside = picture[picture.shape[0] // 2, round(SIDE * 55 / 110)]
    assert inside == pytest.approx([0.5] * 3, abs=0.02)


def test_every_structure_has_its_own_outline_at_true_proportions() -> None:
    left, right = np.zeros((30, 30), bool), np.zeros((30, 30), bool)
    left[10:20, 10:15] = right[10:20, 15:20] = True
    apart = drawn(np.zeros((30, 30)), truth=[left, right], found=[], spacing=(3.0, 2.0, 1.0))
    joined = drawn(np.zeros((30, 30)), truth=[left | right], found=[], spacing=(3.0, 2.0, 1.0))
    assert apart.shape[:2] == (SIDE, SIDE // 2)
    assert len(coloured(apart, colour=REFERENCE_COLOUR)) > len(coloured(joined, colour=REFERENCE_COLOUR))


def test_nothing_found_shows_the_whole_slice_from_black_to_white() -> None:
    image = np.repeat(np.linspace(-1000.0, 1000.0, 40)[None], 20, axis=0)
    picture = drawn(image, truth=[], found=[np.zeros((20, 40), bool)])
    assert picture.shape[:2] == (SIDE // 2, SIDE)
    assert (picture[0, 0].tolist(), picture[0, -1].tolist()) == ([0.0] * 3, [1.0] * 3)


def test_the_slice_with_most_structures_is_shown_and_of_those_the_fullest() -> None:
    label = np.zeros((5, 4, 4), dtype=np.uint8)
    label[1] = 1
    label[2, 0, 0], label[2, 0, 1] = 1, 2
    label[3, 0], label[3, 1] = 1, 2
    assert fullest_slice(label) == 3
    assert fullest_slice(np.zeros((5, 4, 4), dtype=np.uint8)) == 0
