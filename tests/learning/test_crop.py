"""A cropped case is the region around what is annotated, and nothing else of the case."""

import numpy as np
import pytest

from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning.batches import draw
from segsweep.learning.crop import Cropped, Margin, box, cropped, in_voxels
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import TrainingCase, whole
from segsweep.learning.sampling import Turn
from segsweep.learning.task import Task

TABLE = LabelTable(labels=LabelSet(structures=("liver", "spleen")), atoms=((), (0,), (1,)))
TASK = Task(
    channels=("CT",), table=TABLE, head="softmax", patch_size=(8, 8, 8), spacing=(2.0, 1.5, 1.5),
    normalisation=(Normalisation(scheme="ct", low=-1e9, high=1e9),),
)  # fmt: skip
IGNORED = TABLE.ignored


class ArrayGrid:
    """A label array whose image is the number of each voxel."""

    def __init__(self, label):
        self.label = label
        self.image = np.arange(label.size, dtype=np.int32).reshape(1, *label.shape)
        self.shape = label.shape
        self.foreground = {int(value): np.argwhere(label == value) for value in np.unique(label) if value}
        self.label_reads = 0

    def read_image(self, region):
        return self.image[(slice(None), *region)]

    def read_label(self, region):
        self.label_reads += 1
        return self.label[region]


def organs():
    label = np.zeros((20, 24, 28), dtype=np.uint8)
    label[6:9, 10:14, 3:5] = 1
    label[8, 12, 20] = 2
    label[19, 23, 27] = IGNORED
    return label


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        ((0, 0, 0), (6, 9, 10, 14, 3, 21)),
        ((2, 1, 3), (4, 11, 9, 15, 0, 24)),
        ((99, 99, 99), (0, 20, 0, 24, 0, 28)),
        ((1, None, None), (5, 10, 0, 24, 0, 28)),
    ],
)
def test_the_box_grows_by_the_margin_and_ends_with_the_scan(margin: Margin, expected: tuple[int, ...]) -> None:
    grid = ArrayGrid(organs())
    region = Cropped(grid=grid, ignored=IGNORED, margin=margin).region
    assert tuple(end for part in region for end in (part.start, part.stop)) == expected


def test_millimetres_are_covered_by_whole_voxels() -> None:
    assert in_voxels((40.0, 40.0, 40.0), spacing=(2.0, 1.5, 1.5)) == (20, 27, 27)
    assert in_voxels((20.0, None, 0.0), spacing=(1.9998, 1.5, 1.5)) == (10, None, 0)


def test_a_region_reads_as_if_the_rest_were_not_there() -> None:
    label = organs()
    grid = ArrayGrid(label)
    region = np.s_[5:10, 9:15, 2:22]
    crop = Cropped(grid=grid, ignored=IGNORED, margin=(1, 1, 1))
    assert crop.shape == label[region].shape
    assert np.array_equal(crop.read_label(whole(crop.shape)), label[region])
    assert np.array_equal(crop.read_image(np.s_[1:3, 0:4, 2:9]), grid.image[:, 6:8, 9:13, 4:11])
    assert grid.label_reads == 2, "the label map is read once for the box"
    assert set(crop.foreground) == {1, 2}, "the ignored voxel lies outside"
    for value, voxels in crop.foreground.items():
        assert np.array_equal(voxels, np.argwhere(label[region] == value))


def test_samples_outside_the_region_are_left_out() -> None:
    grid = ArrayGrid(organs())
    grid.foreground[1] = np.array([[7, 11, 3], [0, 0, 0], [19, 11, 3]])
    crop = Cropped(grid=grid, ignored=IGNORED, margin=(0, 0, 0))
    assert crop.foreground[1].tolist() == [[1, 1, 0]]


@pytest.mark.parametrize("value", [0, IGNORED])
def test_a_case_without_labelled_voxels_stays_whole(value: int) -> None:
    grid = ArrayGrid(np.full((9, 8, 7), value, dtype=np.uint8))
    assert Cropped(grid=grid, ignored=IGNORED, margin=(1, 1, 1)).shape == (9, 8, 7)
    assert box(np.zeros((3, 4, 5), bool), margin=(0, 0, 0)) == np.s_[0:3, 0:4, 0:5]


def test_patches_come_from_the_region_alone() -> None:
    label = organs()
    scan = TrainingCase(case_id="a", grid=ArrayGrid(label), annotated=(True, True))
    part = cropped(scan, task=TASK, margin=(3, 3, 3))
    params = TrainingParams(batch_size=4, augmentation="none", mirror="none")
    batch = draw([part], task=TASK, params=params, turn=Turn(seed=0, epoch=0, step=0))
    read = scan.grid.read_image(np.s_[3:12, 7:17, 0:24])
    assert {int(value) for value in np.unique(batch.image)} - {0} <= {int(value) for value in np.unique(read)}
