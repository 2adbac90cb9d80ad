"""Files of a case may store one grid in different orders of axes and digits; each voxel keeps its place. Other grids are refused."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.geometry import Geometry, Reorientation
from segsweep.data.reading import read_case
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError
from segsweep.inference.writers import write_image, write_label_map

SHAPE = (4, 5, 6)
TURN = np.radians(12)
OBLIQUE = (1.0, 0.0, 0.0, 0.0, float(np.cos(TURN)), -float(np.sin(TURN)), 0.0, float(np.sin(TURN)), float(np.cos(TURN)))
GRID = Geometry(shape=SHAPE, spacing=(3.0, 1.5, 2.0), origin=(10.0, -20.0, 30.0), direction=OBLIQUE)
VOXELS = np.arange(120, dtype=np.int16).reshape(SHAPE)
LABEL = (VOXELS % 7 == 3).astype(np.uint8)
LABELS = LabelSet(structures=("liver",))


def stored(turn: Reorientation) -> Geometry:
    """The grid of `turn.apply(array)`, voxels at the same positions."""
    corner = [0, 0, 0]
    for axis, source in enumerate(turn.axes):
        corner[source] = SHAPE[source] - 1 if turn.flips[axis] else 0
    columns = np.reshape(GRID.direction, (3, 3))[:, ::-1][:, list(turn.axes)] * np.where(turn.flips, -1.0, 1.0)
    z, y, x = turn.axes
    first, second, third = GRID.position((corner[0], corner[1], corner[2])).tolist()
    return Geometry(
        shape=(SHAPE[z], SHAPE[y], SHAPE[x]),
        spacing=(GRID.spacing[z], GRID.spacing[y], GRID.spacing[x]),
        origin=(first, second, third),
        direction=tuple(columns[:, ::-1].ravel().tolist()),
    )


TURNS = [
    Reorientation(axes=axes, flips=(flips[0], flips[1], flips[2]))
    for axes, flips in product(((0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)), product((False, True), repeat=3))
]


@pytest.fixture
def source(tmp_path: Path) -> Callable[[Geometry, Reorientation], CaseSource]:
    """A case of two channels whose second one and label are stored in another order, on the grid given."""

    def written(grid: Geometry, turn: Reorientation) -> CaseSource:
        first, second, label = (tmp_path / f"{name}.nii.gz" for name in ("ct", "pet", "label"))
        write_image(VOXELS, geometry=GRID, path=first)
        write_image(np.ascontiguousarray(turn.apply(VOXELS)), geometry=stored(turn), path=second)
        write_label_map(np.ascontiguousarray(turn.apply(LABEL)), geometry=grid, path=label)
        file = LabelFile(path=label, values={1: ("liver",)})
        return CaseSource(case_id="a", images=(first, second), labels=(file,), annotated=("liver",))

    return written


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_other_orders_of_axes_are_the_same_grid(
    turn: Reorientation, source: Callable[[Geometry, Reorientation], CaseSource]
) -> None:
    raw = read_case(source(stored(turn), turn), labels=LABELS)
    assert raw.geometry.same_grid(GRID)
    for image in raw.images:
        np.testing.assert_array_equal(image, VOXELS)
    np.testing.assert_array_equal(raw.masks[0], LABEL == 1)


@pytest.mark.parametrize(("moved_mm", "same"), [(0.1, True), (0.2, False)])
def test_a_header_rounded_by_another_program_is_the_same_grid(
    moved_mm: float, same: bool, source: Callable[[Geometry, Reorientation], CaseSource]
) -> None:
    turn = TURNS[-1]
    x, y, z = stored(turn).origin
    case = source(replace(stored(turn), origin=(x + moved_mm, y, z)), turn)
    if same:
        np.testing.assert_array_equal(read_case(case, labels=LABELS).masks[0], LABEL == 1)
    else:
        with pytest.raises(InputError, match=r"label\.nii\.gz lies on another grid than the image: .* 0\.20 mm away"):
            read_case(case, labels=LABELS)


def test_a_label_mirrored_in_its_header_alone_is_refused(
    source: Callable[[Geometry, Reorientation], CaseSource],
) -> None:
    same = Reorientation(axes=(0, 1, 2), flips=(False, False, False))
    mirrored = replace(GRID, direction=(-1.0, *OBLIQUE[1:]))
    with pytest.raises(InputError, match=r"case a: label\.nii\.gz lies on another grid than the image: .* mm away"):
        read_case(source(mirrored, same), labels=LABELS)
