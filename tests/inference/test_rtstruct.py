"""A structure set gives back the voxels that it was made of, whatever their shape and however the series lies in the patient."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from segsweep.data.contours import fill_contours
from segsweep.data.dicom import find_series, read_series
from segsweep.data.readers import Scan
from segsweep.data.rtstruct import read_structures
from segsweep.data.structures import LabelSet, LabelTable, encode
from segsweep.errors import InputError
from segsweep.inference.rtstruct import outlines, write_rtstruct

WriteSeries = Callable[..., Path]
ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "feet first": ((-1, 0, 0), (0, 1, 0)),
    "prone": ((-1, 0, 0), (0, -1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "oblique": ((0.6, 0.64, 0.48), (-0.8, 0.48, 0.36)),
}
SHAPE = (6, 14, 11)


def shapes() -> dict[str, NDArray[np.bool_]]:
    """Masks of SHAPE, none of which is its own mirror image, and some of which overlap."""
    found = {name: np.zeros(SHAPE, dtype=bool) for name in ("corner", "ring", "dots", "border", "noise", "nothing")}
    found["corner"][1:4, 2:6, 1:3] = found["corner"][2, 2:4, 1:9] = True
    # A part in a hole, and another hole in the part.
    found["ring"][1:5, 1:12, 1:10] = True
    found["ring"][1:5, 2:11, 2:9] = False
    found["ring"][2, 4:9, 4:8] = True
    found["ring"][2, 6, 5] = False
    for place in ((0, 3, 3), (0, 4, 4), (0, 5, 3), (3, 12, 9), (5, 0, 10)):
        found["dots"][place] = True
    found["border"][:, 0, :] = found["border"][:, :, -1] = found["border"][-1, 8:, 0:3] = True
    found["noise"][:] = np.random.default_rng(0).random(SHAPE) < 0.5
    return found


def table(masks: dict[str, NDArray[np.bool_]]) -> tuple[LabelTable, NDArray]:
    encoded = encode(dict(enumerate(masks.values())), shape=SHAPE)
    return LabelTable(labels=LabelSet(structures=tuple(masks)), atoms=encoded.atoms), encoded.label


def series(folder: Path) -> Scan:
    (found,) = find_series(folder)
    return read_series(found)


def write(scan: Scan, *, masks: dict[str, NDArray[np.bool_]], path: Path) -> Path:
    atoms, label = table(masks)
    assert scan.reference is not None
    write_rtstruct(label, table=atoms, geometry=scan.geometry, reference=scan.reference, path=path)
    return path


def voxels() -> NDArray:
    return np.random.default_rng(1).integers(-500, 500, SHAPE)


@pytest.mark.parametrize("spacing", [(3.0, 0.8, 0.7), (0.5, 4.0, 1.3)])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_voxel_comes_back(
    name: str, spacing: tuple[float, float, float], write_series: WriteSeries, tmp_path: Path
) -> None:
    row, column = ORIENTATIONS[name]
    scan = series(write_series(tmp_path / "in", voxels=voxels(), row=row, column=column, spacing=spacing))
    path = write(scan, masks=shapes(), path=tmp_path / "a.dcm")
    found = dict(read_structures(path, scan=scan, names={name: name for name in shapes()}))
    assert list(found) == list(shapes())[:-1], "what was not found has no contours"
    for structure, mask in found.items():
        np.testing.assert_array_equal(mask, shapes()[structure], err_msg=structure)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_contours_lie_where_the_patients_voxels_are(name: str, write_series: WriteSeries, tmp_path: Path) -> None:
    """Against the headers of the slices alone, so that left stays left whatever our own reader does."""
    row, column = (np.array(vector, dtype=float) for vector in ORIENTATIONS[name])
    folder = write_series(tmp_path / "in", voxels=voxels(), row=row, column=column)
    mask = np.zeros(SHAPE, dtype=bool)
    mask[4, 9:13, 1:3] = True
    dataset = pydicom.dcmread(write(series(folder), masks={"x": mask}, path=tmp_path / "a.dcm"))
    (contour,) = dataset.ROIContourSequence[0].ContourSequence
    uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
    (image,) = (item for item in map(pydicom.dcmread, folder.iterdir()) if item.SOPInstanceUID == uid)
    assert image.InstanceNumber == 5
    middle = np.reshape(contour.ContourData, (-1, 3)).astype(float)
    centre = (middle.min(axis=0) + middle.max(axis=0)) / 2
    expected = np.array(image.ImagePositionPatient, dtype=float) + 10.5 * 0.8 * column + 1.5 * 0.7 * row
    np.testing.assert_allclose(centre, expected, atol=2e-3)


def test_slices_that_stray_keep_their_own_planes(write_series: WriteSeries, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "in", voxels=voxels())
    for path in folder.iterdir():
        item = pydicom.dcmread(path)
        strayed = np.add(item.ImagePositionPatient, [0, 0.04, 0.05 * (item.InstanceNumber % 2)], dtype=float)
        item.ImagePositionPatient = strayed.round(4).tolist()
        item.save_as(path)
    scan = series(folder)
    path = write(scan, masks=shapes(), path=tmp_path / "a.dcm")
    places = {item.SOPInstanceUID: item.ImagePositionPatient[2] for item in map(pydicom.dcmread, folder.iterdir())}
    for structure in pydicom.dcmread(path).ROIContourSequence:
        for contour in structure.get("ContourSequence", ()):
            height = places[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            assert {float(value) for value in contour.ContourData[2::3]} == {float(height)}
    found = dict(read_structures(path, scan=scan, names={"noise": "noise"}))
    np.testing.assert_array_equal(found["noise"], shapes()["noise"])


def test_outlines_are_few_points_with_holes_apart() -> None:
    plane = np.zeros((40, 40), dtype=bool)
    plane[3:30, 5:20] = True
    plane[10, 10] = False
    outer, hole = sorted(outlines(plane), key=len, reverse=True)
    assert len(outer) == 8
    assert sorted(map(tuple, hole.tolist())) == [(9.5, 10), (10, 9.5), (10, 10.5), (10.5, 10)]
    assert outer.min() == 2.5 and outer.max() == 29.5
    for number in range(20):
        plane = np.random.default_rng(number).random((12, 9)) < 0.1 + number / 25
        np.testing.assert_array_equal(fill_contours(outlines(plane), shape=plane.shape), plane)


def test_a_long_contour_stays_whole(write_series: WriteSeries, tmp_path: Path) -> None:
    """More text than fits the 16 bits of an explicit length."""
    comb = np.zeros((2, 120, 120), dtype=bool)
    comb[1, ::4] = comb[1, 1::4, ::2] = comb[1, :, 0] = True
    scan = series(write_series(tmp_path / "in", voxels=np.arange(comb.size).reshape(comb.shape) % 999))
    path, only = tmp_path / "a.dcm", LabelTable(labels=LabelSet(structures=("comb",)), atoms=((), (0,)))
    assert scan.reference is not None
    write_rtstruct(comb.astype(np.uint8), table=only, geometry=scan.geometry, reference=scan.reference, path=path)
    (contour,) = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
    assert len("\\".join(map(str, contour.ContourData))) > 2**16
    ((_, found),) = read_structures(path, scan=scan, names={"comb": "comb"})
    np.testing.assert_array_equal(found, comb)


def test_what_the_structure_set_says(write_series: WriteSeries, tmp_path: Path) -> None:
    patient = {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": "Müller^Eva",
        "PatientBirthDate": "19500102",
        "StudyID": "S1",
        "PatientSex": "F",
        "InstitutionName": "not asked for",
    }
    scan = series(write_series(tmp_path / "in", voxels=voxels(), patient="4711", values=patient))
    path = write(scan, masks=shapes(), path=tmp_path / "out" / "a.dcm")
    assert [item.name for item in path.parent.iterdir()] == ["a.dcm"]
    found, source = pydicom.dcmread(path), pydicom.dcmread(scan.reference.files[0])  # type: ignore[union-attr]
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyInstanceUID"):
        assert found[keyword] == source[keyword]
    assert found.AccessionNumber == found.StudyDate == "" and "InstitutionName" not in found
    assert (found.Modality, found.ApprovalStatus, found.Manufacturer) == ("RTSTRUCT", "UNAPPROVED", "segsweep")
    assert found.SeriesInstanceUID != source.SeriesInstanceUID and found.SOPInstanceUID != source.SOPInstanceUID
    assert [roi.ROIName for roi in found.StructureSetROISequence] == list(shapes())
    assert {roi.ROIGenerationAlgorithm for roi in found.StructureSetROISequence} == {"AUTOMATIC"}
    assert {roi.ReferencedFrameOfReferenceUID for roi in found.StructureSetROISequence} == {source.FrameOfReferenceUID}
    assert len({tuple(roi.ROIDisplayColor) for roi in found.ROIContourSequence}) == len(shapes())
    (frame,) = found.ReferencedFrameOfReferenceSequence
    (listed,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert listed.SeriesInstanceUID == source.SeriesInstanceUID and len(listed.ContourImageSequence) == SHAPE[0]
    values = [
        value
        for roi in found.ROIContourSequence
        for part in roi.get("ContourSequence", ())
        for value in part.ContourData
    ]
    assert max(len(str(value)) for value in values) <= 16


def lacks_frame(folder: Path) -> None:
    for path in folder.iterdir():
        item = pydicom.dcmread(path)
        del item.FrameOfReferenceUID
        item.save_as(path)


@pytest.mark.parametrize(
    ("edit", "structure", "message"),
    [
        (lacks_frame, "x", r"a\.dcm: .*dcm has no FrameOfReferenceUID; expected one in every slice"),
        (None, "x" * 65, "cannot hold the structure name 'xx"),
        (None, "Hüfte", "cannot hold the structure name 'Hüfte'; expected 1 to 64 ASCII"),
    ],
)
def test_what_cannot_be_written(
    edit: Callable[[Path], None] | None, structure: str, message: str, write_series: WriteSeries, tmp_path: Path
) -> None:
    folder = write_series(tmp_path / "in", voxels=voxels())
    if edit:
        edit(folder)
    with pytest.raises(InputError, match=message):
        write(series(folder), masks={structure: shapes()["corner"]}, path=tmp_path / "a.dcm")
    assert not (tmp_path / "a.dcm").exists()


def test_a_series_that_changed_and_a_folder_that_cannot_be_written(write_series: WriteSeries, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "in", voxels=voxels())
    scan = series(folder)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a\.dcm cannot be written"):
        write(scan, masks=shapes(), path=tmp_path / "file" / "a.dcm")
    assert scan.reference is not None
    one, other = scan.reference.files[:2]
    one.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match="was changed while the scan was segmented"):
        write(scan, masks=shapes(), path=tmp_path / "a.dcm")
    other.unlink()
    with pytest.raises(InputError, match="is not there"):
        write(scan, masks=shapes(), path=tmp_path / "a.dcm")
