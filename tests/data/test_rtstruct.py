"""RTSTRUCT: a mask that was given bit for bit, every orientation, holes and parts, and structure sets that cannot be used."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from segsweep.data.dicom import find_series, read_series
from segsweep.data.readers import Scan, read_labels
from segsweep.data.rtstruct import read_structures, structure_names
from segsweep.errors import InputError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "ibsi_sts"
ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "feet first prone": ((-1, 0, 0), (0, -1, 0)),
    "decubitus": ((0, -1, 0), (1, 0, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": ((0.6, 0.64, 0.48), (-0.8, 0.48, 0.36)),
}
LIVER = {"Liver": "liver"}


def box(low: tuple[float, float], high: tuple[float, float]) -> list[tuple[float, float]]:
    """Corners (row, column)."""
    return [low, (low[0], high[1]), high, (high[0], low[1])]


def drawn(
    dicom: Any, scan: Scan, *, height: float, corners: list[tuple[float, float]], uid: str | None = ""
) -> Dataset:
    """A contour through (row, column) of the scan at a slice index, which names its slice unless `uid` says otherwise."""
    points = np.array([scan.geometry.position((height, row, column)) for row, column in corners])
    assert scan.reference is not None
    return dicom.contour(points, uid=scan.reference.sop_uids[round(height)] if uid == "" else uid)


def read(path: Path, *, scan: Scan) -> np.ndarray:
    ((structure, mask),) = read_structures(path, scan=scan, names=LIVER)
    assert structure == "liver"
    return mask


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
def test_a_clinical_structure_set_gives_its_mask_bit_for_bit() -> None:
    (series,) = find_series(DATA / "dicom")
    path = DATA / "dicom" / "STS_002" / "CT" / "mask" / "RS.dcm"
    assert structure_names(path) == ("GTV_Mass_CT",)
    scan = read_series(series)
    ((structure, mask),) = read_structures(path, scan=scan, names={"GTV_Mass_CT": "tumour", "Absent": "other"})
    expected = read_labels(DATA / "STS_002_CT_mask.nii.gz")
    assert structure == "tumour"
    assert mask.sum() == 17090
    np.testing.assert_array_equal(mask, expected.voxels > 0)
    assert scan.geometry.same_grid(expected.geometry)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_holes_and_parts_in_any_orientation(name: str, dicom: Any) -> None:
    row, column = ORIENTATIONS[name]
    scan = read_series(dicom.series(row=row, column=column))
    contours = [
        drawn(dicom, scan, height=1, corners=box((0.5, 0.5), (5.5, 4.5))),
        drawn(dicom, scan, height=1, corners=box((2.5, 1.5), (4.5, 3.5))[::-1]),
        drawn(dicom, scan, height=2, corners=box((0.5, 0.5), (2.5, 2.5))),
        drawn(dicom, scan, height=2, corners=box((4.5, 3.5), (6.5, 5.5))),
    ]
    expected = np.zeros(scan.geometry.shape, dtype=bool)
    expected[1, 1:6, 1:5] = True
    expected[1, 3:5, 2:4] = False
    expected[2, 1:3, 1:3] = expected[2, 5:7, 4:6] = True
    np.testing.assert_array_equal(read(dicom.structures({"Liver": contours}), scan=scan), expected)


@pytest.mark.parametrize("name", ["axial", "feet first prone"])
def test_what_is_drawn_on_the_left_is_on_the_left(name: str, dicom: Any) -> None:
    row, column = ORIENTATIONS[name]
    scan = read_series(dicom.series(row=row, column=column))
    z = scan.geometry.position((2, 0, 0))[2]
    corners = np.array([(x, y, z) for x, y in ((13.0, -33.0), (14.5, -33.0), (14.5, -30.5), (13.0, -30.5))])
    mask = read(dicom.structures({"Liver": [dicom.contour(corners)]}), scan=scan)
    inside = np.array([scan.geometry.position(tuple(index)) for index in np.argwhere(mask)])
    assert len(inside) == 2 * 3
    assert inside[:, 0].min() > 13
    assert inside[:, 1].max() < -30.5
    turned = scan.geometry.reorientation.apply(mask)
    assert turned[..., 4:].sum() == 6, "x grows to the left inside"


def test_names_choose_structures_and_several_may_be_one(dicom: Any) -> None:
    scan = read_series(dicom.series())
    parts = [[drawn(dicom, scan, height=k, corners=box((0.5, 0.5), (2.5, 2.5)))] for k in range(3)]
    path = dicom.structures({"Liver": parts[0], "liver 2": parts[1], "Empty": [], "Body": parts[2]})
    assert structure_names(path) == ("Liver", "liver 2", "Body")
    found = list(
        read_structures(path, scan=scan, names={"Liver": "liver", "liver 2": "liver", "Empty": "e", "no": "x"})
    )
    assert [name for name, _ in found] == ["liver", "liver"]
    assert [np.flatnonzero(mask.any(axis=(1, 2))).tolist() for _, mask in found] == [[0], [1]]
    assert list(read_structures(path, scan=scan, names={"LIVER": "liver"})) == []


def test_marked_points_are_ignored(dicom: Any) -> None:
    scan = read_series(dicom.series())
    point = dicom.contour(np.array([scan.geometry.origin]))
    point.ContourGeometricType = "POINT"
    liver = drawn(dicom, scan, height=2, corners=box((0.5, 0.5), (2.5, 2.5)))
    path = dicom.structures({"Liver": [point, liver], "Isocentre": [point]})
    assert structure_names(path) == ("Liver",)
    assert read(path, scan=scan).sum() == 4


def test_a_contour_written_twice_counts_once(dicom: Any) -> None:
    """Also when it begins at another corner, runs the other way or ends where it began."""
    scan = read_series(dicom.series())
    corners = box((0.5, 0.5), (5.5, 4.5))
    for again in (corners, corners[2:] + corners[:2], corners[::-1], [*corners, corners[0]]):
        contours = [drawn(dicom, scan, height=2, corners=each) for each in (corners, again)]
        mask = read(dicom.structures({"Liver": contours}), scan=scan)
        assert mask.sum() == mask[2, 1:6, 1:5].sum() == 20


@pytest.mark.parametrize(("height", "index"), [(1.4, 1), (1.6, 2), (-0.4, 0), (4.4, 4)])
def test_contours_between_slices_go_to_the_nearest(height: float, index: int, dicom: Any) -> None:
    scan = read_series(dicom.series())
    path = dicom.structures(
        {"Liver": [drawn(dicom, scan, height=height, corners=box((0.5, 0.5), (2.5, 2.5)), uid=None)]}
    )
    assert np.flatnonzero(read(path, scan=scan).any(axis=(1, 2))).tolist() == [index]


def test_a_series_written_anew_under_its_old_name_is_still_its_own(dicom: Any) -> None:
    """As the shared ibsi_sts case: cut to a part of its slices, with new UIDs for the images."""
    scan = read_series(dicom.series())
    path = dicom.structures(
        {"Liver": [drawn(dicom, scan, height=2, corners=box((0.5, 0.5), (2.5, 2.5)), uid="1.2.3.2222")]}
    )
    assert read(path, scan=scan).sum() == 4


def first(dataset: Dataset) -> Dataset:
    return dataset.ROIContourSequence[0].ContourSequence[0]


def series_item(dataset: Dataset) -> Dataset:
    return dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]


def another_series(dataset: Dataset) -> None:
    series_item(dataset).SeriesInstanceUID = "1.2.77"
    for k, image in enumerate(series_item(dataset).ContourImageSequence):
        image.ReferencedSOPInstanceUID = f"1.2.77.{k}"
    first(dataset).ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.77.2"


def two_series(dataset: Dataset) -> None:
    """Names the scan's series too, but the contour is drawn on the other one."""
    other = Dataset()
    other.SeriesInstanceUID, other.ContourImageSequence = "1.2.77", [Dataset()]
    other.ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.77.2"
    study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence.append(other)
    first(dataset).ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.77.2"


def points(value: bytes, *, count: int = 4) -> Callable[[Dataset, Any], None]:
    def edit(dataset: Dataset, dicom: Any) -> None:
        dicom.garble(first(dataset), "ContourData", value)
        first(dataset).NumberOfContourPoints = count

    return edit


def shifted(**by: float) -> Callable[[Dataset, Any], None]:
    """Moves the contour, in mm."""

    def edit(dataset: Dataset, _: Any) -> None:
        moved = np.reshape(first(dataset).ContourData, (-1, 3)).astype(float) + [by.get(axis, 0.0) for axis in "xyz"]
        first(dataset).ContourData = moved.ravel().tolist()
        del first(dataset).ContourImageSequence

    return edit


def bent(dataset: Dataset, _: Any) -> None:
    data = [float(value) for value in first(dataset).ContourData]
    first(dataset).ContourData = [*data[:2], data[2] + 0.5, *data[3:]]


def kind(name: str) -> Callable[[Dataset, Any], None]:
    return lambda dataset, _: setattr(first(dataset), "ContourGeometricType", name)


def finer(dataset: Dataset, _: Any) -> None:
    """A second contour 1 mm above the first, on the same slice of 3 mm."""
    data = np.reshape(first(dataset).ContourData, (-1, 3)).astype(float) + np.array([0, 0, 1.0])
    other = Dataset()
    other.ContourGeometricType, other.NumberOfContourPoints = "CLOSED_PLANAR", len(data)
    other.ContourData = data.ravel().tolist()
    dataset.ROIContourSequence[0].ContourSequence.append(other)


def elsewhere(dataset: Dataset, _: Any) -> None:
    first(dataset).ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3.5"


def set_roi(keyword: str, value: object) -> Callable[[Dataset, Any], None]:
    return lambda dataset, _: setattr(dataset.StructureSetROISequence[0], keyword, value)


def no_frame(dataset: Dataset, _: Any) -> None:
    del dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID
    del dataset.ReferencedFrameOfReferenceSequence


def doubled(dataset: Dataset, _: Any) -> None:
    dataset.StructureSetROISequence.append(dataset.StructureSetROISequence[0])


BROKEN: dict[str, tuple[Callable[[Dataset, Any], Any], str]] = {
    "contours of a structure that is not listed": (
        lambda dataset, _: setattr(dataset.ROIContourSequence[0], "ReferencedROINumber", 77),
        "contours of structure 77, which it does not list",
    ),
    "another series": (lambda dataset, _: another_series(dataset), "was drawn on another series"),
    "the other one of two series": (lambda dataset, _: two_series(dataset), "was drawn on another series"),
    "another frame of reference": (set_roi("ReferencedFrameOfReferenceUID", "1.2.8"), "another frame of reference"),
    "no frame of reference": (no_frame, "another frame of reference"),
    "a contour on one slice that names another": (elsewhere, "on slice 2 that says it was drawn on another one"),
    "below the first slice": (shifted(z=-8.0), "has a contour outside the scan"),
    "above the last slice": (shifted(z=8.0), "has a contour outside the scan"),
    "beside the scan": (shifted(x=-20.0), "has a contour outside the scan"),
    "half outside": (shifted(y=4.0), "has a contour outside the scan"),
    "metres for millimetres": (shifted(x=1e4), "has a contour outside the scan"),
    "out of its plane": (bent, "has a contour 0.50 mm thick across the slices"),
    "on finer slices": (finer, "was drawn on finer slices than the scan's 3 mm"),
    "open": (kind("OPEN_PLANAR"), "contours that are not closed in a plane"),
    "not planar": (kind("CLOSED_NONPLANAR"), "contours that are not closed in a plane"),
    "of no kind": (kind(""), "contours that are not closed in a plane"),
    "two numbers a point": (points(b"1\\2\\3\\4 ", count=2), "points are not three finite numbers"),
    "NaN": (points(b"nan\\2\\3\\4\\5\\6 ", count=2), "points are not three finite numbers"),
    "infinite": (points(b"inf\\2\\3\\4\\5\\6 ", count=2), "points are not three finite numbers"),
    "huge": (points(b"1e300\\2\\3\\4\\5\\6 ", count=2), "points are not three finite numbers"),
    "text": (points(b"Canary\\2\\3", count=1), "points are not three finite numbers"),
    "no numbers": (points(b""), "ContourData is missing"),
    "fewer points than announced": (points(b"1\\2\\3\\4\\5\\6 ", count=9), "NumberOfContourPoints is 9; expected 2"),
    "two structures of one number": (doubled, "two structures have number 1"),
    "no number": (set_roi("ROINumber", None), "ROINumber is missing"),
    "no structures": (lambda dataset, _: setattr(dataset, "StructureSetROISequence", []), "lists no structures"),
    "no structure set": (lambda dataset, _: setattr(dataset, "Modality", "RTDOSE"), "structures.dcm is no RTSTRUCT"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_structure_sets_are_refused(name: str, dicom: Any, capfd: pytest.CaptureFixture[str]) -> None:
    edit, message = BROKEN[name]
    scan = read_series(dicom.series())
    liver = drawn(dicom, scan, height=2, corners=box((0.5, 0.5), (5.5, 4.5)))
    path = dicom.structures({"Liver": [liver]}, edit=lambda dataset: edit(dataset, dicom))
    with pytest.raises(InputError, match=message) as caught:
        list(read_structures(path, scan=scan, names=LIVER))
    said = str(caught.value) + "".join(capfd.readouterr())
    assert "Canary" not in said
    assert "1.2.3" not in said
    assert "Liver" not in said, "what people typed into the file"
    assert "structures.dcm" in said


def test_a_structure_left_to_be_interpolated_is_refused(dicom: Any) -> None:
    scan = read_series(dicom.series())
    scan = replace(scan, geometry=replace(scan.geometry, shape=(9, 8, 7)), reference=replace_uids(scan, count=9))
    contours = [drawn(dicom, scan, height=k, corners=box((0.5, 0.5), (2.5, 2.5)), uid=None) for k in (0, 2, 4, 6)]
    with pytest.raises(InputError, match="'liver' was drawn on every 2nd slice; expected all of them"):
        list(read_structures(dicom.structures({"Liver": contours}), scan=scan, names=LIVER))
    path = dicom.structures({"Liver": contours[:3]})
    assert read(path, scan=scan).any(axis=(1, 2)).sum() == 3


def replace_uids(scan: Scan, *, count: int) -> Any:
    assert scan.reference is not None
    return replace(scan.reference, sop_uids=tuple(f"1.2.3.{k + 1}" for k in range(count)))


def test_a_scan_that_is_no_series_has_no_structure_set(dicom: Any) -> None:
    scan = read_series(dicom.series())
    path = dicom.structures({"Liver": [drawn(dicom, scan, height=2, corners=box((0.5, 0.5), (2.5, 2.5)))]})
    with pytest.raises(InputError, match=r"structures\.dcm was drawn on a DICOM series; expected one as the image"):
        list(read_structures(path, scan=replace(scan, reference=None), names=LIVER))


def test_no_bit_flip_in_a_structure_set_ends_in_another_error(dicom: Any) -> None:
    scan = read_series(dicom.series())
    path = dicom.structures({"Liver": [drawn(dicom, scan, height=2, corners=box((0.5, 0.5), (5.5, 4.5)))]})
    original, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for position in random.integers(132, len(original), 400):
        changed = bytearray(original)
        changed[position] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(changed))
        try:
            for _, mask in read_structures(path, scan=scan, names=LIVER):
                assert mask.shape == scan.geometry.shape
        except InputError:
            refused += 1
    assert refused > 50
