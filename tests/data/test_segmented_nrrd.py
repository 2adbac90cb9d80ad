"""`.seg.nrrd` files as 3D Slicer writes them: overlapping segments, cropped boxes, and files that cannot be used."""

import shutil
from pathlib import Path

import nrrd
import numpy as np
import pytest
import slicerio

from segsweep.data.geometry import Geometry
from segsweep.data.readers import Scan, read_scan
from segsweep.data.segmented_nrrd import read_segments, segment_names
from segsweep.errors import InputError

REAL = Path(slicerio.__file__).parent / "data"
CT, PLAIN, OVERLAPPING = (
    REAL / name for name in ("CTChest4.nrrd", "Segmentation.seg.nrrd", "SegmentationOverlapping.seg.nrrd")
)
FIELDS = {
    "Segment0_Name": "Heart", "Segment0_LabelValue": "2", "Segment0_Layer": "0",
    "Segment1_Name": "Tumour in the heart", "Segment1_LabelValue": "1", "Segment1_Layer": "1",
}  # fmt: skip


def grid(shape: tuple[int, int, int] = (5, 6, 7), origin: tuple[float, float, float] = (10.0, 20.0, 30.0)) -> Geometry:
    """A grid whose x axis runs to the patient's right and whose z axis runs to the feet."""
    return Geometry(shape=shape, spacing=(3.0, 2.0, 1.5), origin=origin, direction=(-1, 0, 0, 0, 1, 0, 0, 0, -1))


def scan(geometry: Geometry) -> Scan:
    return Scan(voxels=np.zeros(geometry.shape, dtype=np.int16), geometry=geometry, digest="")


def write(path: Path, *, layers: np.ndarray, geometry: Geometry, fields: dict[str, str] = FIELDS) -> Path:
    """`layers` is (layer, z, y, x); one layer is written as Slicer does, without the list axis."""
    directions = geometry.matrix[:, ::-1].T
    header = {"space": "left-posterior-superior", "space origin": geometry.origin, "encoding": "gzip", **fields}
    if len(layers) == 1:
        nrrd.write(
            str(path), layers[0].T, {**header, "kinds": ["domain"] * 3, "space directions": directions}, index_order="F"
        )
    else:
        rows = np.vstack([np.full(3, np.nan), directions])
        kinds = ["list", *["domain"] * 3]
        nrrd.write(
            str(path),
            layers.transpose(0, 3, 2, 1),
            {**header, "kinds": kinds, "space directions": rows},
            index_order="F",
        )
    return path


def layers(shape: tuple[int, int, int] = (5, 6, 7)) -> np.ndarray:
    voxels = np.zeros((2, *shape), dtype=np.uint8)
    voxels[0, 1:4, 1:4, 2:6] = 2
    voxels[1, 2:3, 2:5, 3:5] = 1
    return voxels


def test_layers_overlap(tmp_path: Path) -> None:
    path = write(tmp_path / "a.seg.nrrd", layers=layers(), geometry=grid())
    names = {"Tumour in the heart": "tumour", "Heart": "heart"}
    masks = dict(read_segments(path, scan=scan(grid()), names=names))
    np.testing.assert_array_equal(masks["heart"], layers()[0] == 2)
    np.testing.assert_array_equal(masks["tumour"], layers()[1] == 1)
    assert (masks["heart"] & masks["tumour"]).any()
    assert segment_names(path) == ("Heart", "Tumour in the heart")


def test_names_left_out_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.seg.nrrd", layers=layers(), geometry=grid())
    assert [name for name, _ in read_segments(path, scan=scan(grid()), names={"Heart": "heart", "Lung": "lung"})] == [
        "heart"
    ]


def test_a_cropped_box_is_placed_by_its_position(tmp_path: Path) -> None:
    whole = grid()
    box = grid((3, 4, 5), origin=tuple(float(value) for value in whole.position((1, 1, 2))))  # type: ignore[arg-type]
    path = write(tmp_path / "a.seg.nrrd", layers=layers()[:, 1:4, 1:5, 2:7], geometry=box)
    masks = dict(read_segments(path, scan=scan(whole), names={"Heart": "heart"}))
    np.testing.assert_array_equal(masks["heart"], layers()[0] == 2)


def test_a_box_in_another_axis_order_is_placed_by_its_position(tmp_path: Path) -> None:
    turn, whole = grid().reorientation, grid()
    turned = np.ascontiguousarray(turn.apply(layers()))
    path = write(tmp_path / "a.seg.nrrd", layers=turned, geometry=whole.canonical())
    masks = dict(read_segments(path, scan=scan(whole), names={"Heart": "heart"}))
    np.testing.assert_array_equal(masks["heart"], layers()[0] == 2)


@pytest.mark.parametrize("shift", [(0.4, 0.0, 0.0), (0.0, 0.0, 1.0)])
def test_another_grid_is_refused(shift: tuple[float, float, float], tmp_path: Path) -> None:
    moved = grid(origin=(10.0 + shift[0], 20.0 + shift[1], 30.0 + shift[2]))
    path = write(tmp_path / "a.seg.nrrd", layers=layers(), geometry=moved)
    with pytest.raises(InputError, match=r"a\.seg\.nrrd lies on another grid"):
        list(read_segments(path, scan=scan(grid()), names={"Heart": "heart"}))


def test_voxels_outside_the_scan_are_refused_but_an_empty_margin_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.seg.nrrd", layers=layers(), geometry=grid())
    fits = grid((4, 6, 6))
    masks = dict(read_segments(path, scan=scan(fits), names={"Heart": "heart"}))
    np.testing.assert_array_equal(masks["heart"], (layers()[0] == 2)[:4, :, :6])
    with pytest.raises(InputError, match=r"a\.seg\.nrrd: a segment reaches beyond the image"):
        list(read_segments(path, scan=scan(grid((3, 6, 7))), names={"Heart": "heart"}))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "names no segments"),
        ({"Segment0_LabelValue": "1"}, "Segment0_Name is missing"),
        (FIELDS | {"Segment0_LabelValue": "0"}, "Segment0_LabelValue is no"),
        (FIELDS | {"Segment0_LabelValue": "1.5"}, "Segment0_LabelValue is no"),
        (FIELDS | {"Segment1_Layer": "-1"}, "Segment1_Layer is no"),
        (FIELDS | {"Segment1_Layer": "7"}, "is in layer 7, but the file holds 2"),
        (FIELDS | {"Segment1_LabelValue": "2", "Segment1_Layer": "0"}, "same layer and value"),
    ],
)
def test_headers_that_cannot_be_used(fields: dict[str, str], word: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.seg.nrrd", layers=layers(), geometry=grid(), fields=fields)
    with pytest.raises(InputError, match=rf"a\.seg\.nrrd.*{word}"):
        list(read_segments(path, scan=scan(grid()), names={"Heart": "heart", "Tumour in the heart": "tumour"}))


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "cut.seg.nrrd"
    shutil.copy(OVERLAPPING, path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"cut\.seg\.nrrd: the compressed stream is cut off"):
        list(read_segments(path, scan=read_scan(CT), names={"ribs": "ribs"}))
    fractions = write(tmp_path / "b.seg.nrrd", layers=layers().astype("f4") / 4, geometry=grid())
    with pytest.raises(InputError, match=r"b\.seg\.nrrd.*fractions"):
        list(read_segments(fractions, scan=scan(grid()), names={"Heart": "heart"}))
    with pytest.raises(InputError, match=r"absent\.seg\.nrrd is not there"):
        segment_names(tmp_path / "absent.seg.nrrd")


def test_a_header_that_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.seg.nrrd", layers=layers(), geometry=grid())
    path.write_bytes(path.read_bytes().replace(b"Segment0_Name:=Heart", b"Segment0_Name:=He\xff\xfet"))
    with pytest.raises(InputError, match=r"a\.seg\.nrrd: its header is not UTF-8"):
        segment_names(path)


@pytest.mark.parametrize("path", [PLAIN, OVERLAPPING], ids=lambda path: path.name)
def test_a_real_chest_ct_as_slicers_own_reader_reads_it(path: Path) -> None:
    image = read_scan(CT)
    theirs = slicerio.read_segmentation(str(path))
    names = segment_names(path)
    assert list(names) == [segment["name"] for segment in theirs["segments"]]
    masks = dict(read_segments(path, scan=image, names={name: name for name in names}))
    for name in names:
        np.testing.assert_array_equal(masks[name].T, slicerio.segment_mask(theirs, name), err_msg=name)
        assert masks[name].any()
