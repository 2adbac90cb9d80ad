"""Parts of a scan's grid, in any axis order, come to lie where they were cut out."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segsweep.data.geometry import Geometry
from segsweep.data.placement import locate, paint, same_place
from segsweep.errors import InputError

SHAPE = (5, 6, 7)
TURNS = [
    np.asarray(order) @ np.diag(signs)
    for order in (np.eye(3)[list(axes)] for axes in itertools.permutations(range(3)))
    for signs in itertools.product((1, -1), repeat=3)
]


def grid(turn: int, *, oblique: bool, shape: tuple[int, int, int] = SHAPE) -> Geometry:
    angle = 0.3 if oblique else 0.0
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    direction = tuple((tilt @ TURNS[turn]).ravel().tolist())
    return Geometry(shape=shape, spacing=(2.5, 0.8, 0.7), origin=(-31.0, 12.0, 400.0), direction=direction)


@settings(max_examples=60, deadline=None)
@given(
    turn=st.integers(0, len(TURNS) - 1),
    oblique=st.booleans(),
    canonical=st.booleans(),
    data=st.data(),
)
def test_a_cut_part_comes_back(turn: int, oblique: bool, canonical: bool, data: st.DataObject) -> None:
    scan = grid(turn, oblique=oblique)
    starts = [data.draw(st.integers(0, size - 1)) for size in SHAPE]
    stops = [data.draw(st.integers(start + 1, size)) for start, size in zip(starts, SHAPE, strict=True)]
    mask = np.zeros(SHAPE, dtype=bool)
    box = tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    mask[box] = np.random.default_rng(turn).random(mask[box].shape) > 0.3
    origin = tuple(scan.position((starts[0], starts[1], starts[2])).tolist())
    shape = (stops[0] - starts[0], stops[1] - starts[1], stops[2] - starts[2])
    part, geometry = mask[box], Geometry(shape=shape, spacing=scan.spacing, origin=origin, direction=scan.direction)
    if canonical:
        part, geometry = geometry.reorientation.apply(part), geometry.canonical()
    onto = np.zeros(SHAPE, dtype=bool)
    start = locate(geometry, scan=scan, name="a")
    paint(part, geometry=geometry, start=start, scan=scan, onto=onto, name="a")
    np.testing.assert_array_equal(onto, mask)


@pytest.mark.parametrize(
    "other",
    [
        Geometry(
            shape=SHAPE, spacing=(2.5, 0.8, 0.75), origin=(-31.0, 12.0, 400.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)
        ),
        Geometry(
            shape=SHAPE, spacing=(2.5, 0.8, 0.7), origin=(-30.8, 12.0, 400.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)
        ),
        grid(0, oblique=True),
        Geometry(
            shape=SHAPE, spacing=(0.8, 2.5, 0.7), origin=(-31.0, 12.0, 400.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)
        ),
    ],
    ids=("spacing", "origin", "direction", "order of spacings"),
)
def test_another_grid(other: Geometry) -> None:
    with pytest.raises(InputError, match=r"a\.nrrd lies on another grid than the image: .* mm away"):
        locate(other, scan=grid(0, oblique=False), name="a.nrrd")


def test_rounded_positions_are_the_same_grid() -> None:
    scan = grid(0, oblique=False)
    near = Geometry(shape=SHAPE, spacing=scan.spacing, origin=(-30.95, 12.0, 400.05), direction=scan.direction)
    assert locate(near, scan=scan, name="a") == (0, 0, 0)
    assert same_place(near, other=scan)
    assert same_place(near.canonical(), other=scan)
    assert not same_place(replace(near, origin=(-30.7, 12.0, 400.0)), other=scan)
    assert not same_place(replace(near, shape=(5, 6, 8)), other=scan)


@pytest.mark.parametrize("shift", [(-3, 0, 0), (0, 50, 0), (0, 0, -50)])
def test_outside_only_what_is_empty(shift: tuple[int, int, int]) -> None:
    scan = grid(0, oblique=False)
    origin = tuple(scan.position(shift).tolist())
    moved = Geometry(shape=SHAPE, spacing=scan.spacing, origin=origin, direction=scan.direction)
    start, onto = locate(moved, scan=scan, name="a"), np.zeros(SHAPE, dtype=bool)
    assert start == shift
    paint(np.zeros(SHAPE, dtype=bool), geometry=moved, start=start, scan=scan, onto=onto, name="a")
    assert not onto.any()
    with pytest.raises(InputError, match="a: a segment reaches beyond the image"):
        paint(np.ones(SHAPE, dtype=bool), geometry=moved, start=start, scan=scan, onto=onto, name="a")
