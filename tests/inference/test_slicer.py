"""3D Slicer's segmentations as its own Python reader and ours see them: names, layers, colours, and every voxel at its place."""

from pathlib import Path

import numpy as np
import pytest
import slicerio

from segsweep.data.geometry import Geometry
from segsweep.data.readers import Scan
from segsweep.data.segmented_nrrd import read_segments, segment_names
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import InputError
from segsweep.inference import formats
from segsweep.inference.slicer import write_segments

COS, SIN = float(np.cos(0.3)), float(np.sin(0.3))
# Oblique, with the axes in another order, and left-handed.
GRID = Geometry(
    shape=(4, 5, 6), spacing=(3.0, 0.9, 1.1), origin=(-4.0, 8.25, 15.0), direction=(0, -SIN, COS, 1, 0, 0, 0, COS, SIN)
)
APART = LabelTable(labels=LabelSet(structures=("liver", "spinal cord")), atoms=((), (0,), (1,)))
# The tumour lies in the liver, the cyst in the tumour; nothing of the spleen is there.
NESTED = LabelTable(
    labels=LabelSet(structures=("liver", "spleen", "tumour", "cyst")), atoms=((), (0,), (1,), (0, 2), (0, 2, 3))
)


@pytest.mark.parametrize(("table", "layers"), [(APART, [0, 0]), (NESTED, [0, 0, 1, 2])])
def test_both_readers_see_every_structure_at_its_place(table: LabelTable, layers: list[int], tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, len(table.atoms), GRID.shape).astype(np.uint8)
    label[label == 2] = 2 if table is APART else 0
    found = formats.Segmentation(case_id="a", label=label, geometry=GRID, table=table)
    formats.find_format("seg.nrrd").write(found, tmp_path)
    path = tmp_path / "a.seg.nrrd"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    names = table.labels.structures
    assert segment_names(path) == names
    scan = Scan(voxels=np.zeros(GRID.shape, np.int16), geometry=GRID, digest="")
    ours = dict(read_segments(path, scan=scan, names={name: name for name in names}))
    theirs = slicerio.read_segmentation(str(path))
    assert [segment["name"] for segment in theirs["segments"]] == list(names)
    assert [segment["layer"] for segment in theirs["segments"]] == layers
    assert len({tuple(segment["color"]) for segment in theirs["segments"]}) == len(names)
    for segment in theirs["segments"]:
        expected = table.mask(label, structure=segment["name"])
        np.testing.assert_array_equal(ours[segment["name"]], expected)
        voxels = theirs["voxels"] if max(layers) == 0 else theirs["voxels"][segment["layer"]]
        np.testing.assert_array_equal(segment["labelValue"] == np.asarray(voxels).T, expected)
    index = np.array([5.0, 4.0, 3.0, 1.0])  # the last voxel as Slicer counts: i, j, k
    np.testing.assert_allclose((theirs["ijkToLPS"] @ index)[:3], GRID.position((3, 4, 5)))


@pytest.mark.parametrize("name", ["", " ", "line\nSegment1_Name:=other"])
def test_a_name_that_is_none_for_a_segment_is_refused(name: str, tmp_path: Path) -> None:
    table = LabelTable(labels=LabelSet(structures=(name,)), atoms=((), (0,)))
    with pytest.raises(InputError, match="is no name for a segment"):
        write_segments(np.zeros(GRID.shape, np.uint8), geometry=GRID, table=table, path=tmp_path / "a.seg.nrrd")
    assert not list(tmp_path.iterdir())
