"""A DICOM SEG gives back the voxels that it was made of, to our reader and to highdicom's, and says whose they are."""

from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from segsweep.data.dicom import find_series, read_series
from segsweep.data.dicom_seg import read_segments
from segsweep.data.readers import Scan
from segsweep.data.structures import LabelSet, LabelTable, encode
from segsweep.inference.dicom_seg import write_dicom_seg

WriteSeries = Callable[..., Path]
Masks = dict[str, NDArray[np.bool_]]
ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "feet first": ((-1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": ((0.6, 0.64, 0.48), (-0.8, 0.48, 0.36)),
}
SHAPE = (6, 9, 7)


def shapes(*, overlap: bool) -> Masks:
    """Three structures, one of which is not there; no slice of 63 voxels ends with a byte."""
    liver, tumour = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
    liver[1:5, 2:7, 1:3] = liver[2, 2, 1:6] = True
    tumour[3:5, 4:9, 2:7] = True
    return {"liver": liver, "nothing": np.zeros(SHAPE, dtype=bool), "tumour": tumour if overlap else tumour & ~liver}


def series(folder: Path) -> Scan:
    (found,) = find_series(folder)
    return read_series(found)


def write(scan: Scan, *, masks: Masks, path: Path) -> Path:
    encoded = encode(dict(enumerate(masks.values())), shape=SHAPE)
    table = LabelTable(labels=LabelSet(structures=tuple(masks)), atoms=encoded.atoms)
    assert scan.reference is not None
    write_dicom_seg(encoded.label, table=table, geometry=scan.geometry, reference=scan.reference, path=path)
    return path


def read(path: Path, *, scan: Scan) -> Masks:
    return dict(read_segments(path, scan=scan, names={name: name for name in shapes(overlap=True)}))


def voxels() -> NDArray:
    return np.random.default_rng(1).integers(-500, 500, SHAPE)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_voxel_comes_back(name: str, overlap: bool, write_series: WriteSeries, tmp_path: Path) -> None:
    row, column = ORIENTATIONS[name]
    scan = series(write_series(tmp_path / "in", voxels=voxels(), row=row, column=column))
    masks = shapes(overlap=overlap)
    path = write(scan, masks=masks, path=tmp_path / "a.dcm")
    found = read(path, scan=scan)
    for structure, mask in masks.items():
        np.testing.assert_array_equal(found[structure], mask, err_msg=structure)
    theirs, reference = highdicom.seg.segread(path), scan.reference
    assert reference is not None
    slices = slice(1, 5)  # those that hold anything
    frames = theirs.get_pixels_by_source_instance(reference.sop_uids[slices])
    np.testing.assert_array_equal(frames, np.stack([mask[slices] for mask in masks.values()], axis=-1))
    volume = theirs.get_volume().to_patient_orientation("LPH")
    inside = [np.argwhere(volume.array[..., index]) for index in (0, 2)]
    for places, mask in zip(inside, (masks["liver"], masks["tumour"]), strict=True):
        positions = [scan.geometry.position((z, y, x)) for z, y, x in np.argwhere(mask).tolist()]
        np.testing.assert_allclose(
            sorted(volume.map_indices_to_reference(places).round(3).tolist()),
            sorted(np.round(positions, 3).tolist()),
            atol=2e-3,
        )


def test_frames_name_their_slices(write_series: WriteSeries, tmp_path: Path) -> None:
    """Against the headers of the slices alone, which need not be regular to the last digit."""
    folder = write_series(tmp_path / "in", voxels=voxels())
    for path in folder.iterdir():
        item = pydicom.dcmread(path)
        strayed = np.add(item.ImagePositionPatient, [0, 0.02, 0.02 * (item.InstanceNumber % 2)], dtype=float)
        item.ImagePositionPatient = strayed.round(4).tolist()
        item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0.00001 * item.InstanceNumber]
        item.save_as(path)
    scan = series(folder)
    path = write(scan, masks=shapes(overlap=True), path=tmp_path / "a.dcm")
    images = {item.SOPInstanceUID: item for item in map(pydicom.dcmread, folder.iterdir())}
    found = pydicom.dcmread(path)
    frames = found.PerFrameFunctionalGroupsSequence
    assert len(frames) == found.NumberOfFrames == 4 + 2
    for frame in frames:
        image = images[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == measures.SpacingBetweenSlices == round(scan.geometry.spacing[0], 6) < 3.0
    assert all(np.array_equal(read(path, scan=scan)[name], mask) for name, mask in shapes(overlap=True).items())


def test_nothing_found_is_a_segmentation_too(write_series: WriteSeries, tmp_path: Path) -> None:
    scan = series(write_series(tmp_path / "in", voxels=voxels()))
    empty = {name: np.zeros(SHAPE, dtype=bool) for name in shapes(overlap=True)}
    found = read(write(scan, masks=empty, path=tmp_path / "a.dcm"), scan=scan)
    assert list(found) == list(empty) and not any(mask.any() for mask in found.values())


def test_what_the_segmentation_says(
    write_series: WriteSeries, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Values that do not fit the standard are the patient's too: they go on as they are, and are quoted nowhere."""
    caplog.set_level("DEBUG")
    patient = {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": "Müller=Eva=Canary=4",
        "PatientSex": "W",
        "PatientIdentityRemoved": "YES",
        "InstitutionName": "not asked for",
    }
    folder = write_series(tmp_path / "in", voxels=voxels(), patient="Canary 4711", values=patient)
    for path in folder.iterdir():
        item = pydicom.dcmread(path)
        item["PatientBirthDate"] = pydicom.DataElement("PatientBirthDate", "LO", "CanaryDay")
        item.save_as(path)
    scan = series(folder)
    path = write(scan, masks=shapes(overlap=True), path=tmp_path / "out" / "a.dcm")
    assert [item.name for item in path.parent.iterdir()] == ["a.dcm"]
    found, source = pydicom.dcmread(path), pydicom.dcmread(scan.reference.files[0])  # type: ignore[union-attr]
    for keyword in ("PatientName", "PatientID", "PatientSex", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert found[keyword].value == source[keyword].value
    assert found.get_item("PatientBirthDate").value.strip() == b"CanaryDay"
    assert found.PatientIdentityRemoved == "YES" and "InstitutionName" not in found
    assert (found.Modality, found.SegmentationType, found.SegmentsOverlap) == ("SEG", "BINARY", "YES")
    assert [segment.SegmentLabel for segment in found.SegmentSequence] == list(shapes(overlap=True))
    assert {segment.SegmentAlgorithmType for segment in found.SegmentSequence} == {"AUTOMATIC"}
    assert {segment.SegmentAlgorithmName for segment in found.SegmentSequence} == {"segsweep"}
    assert len({tuple(segment.RecommendedDisplayCIELabValue) for segment in found.SegmentSequence}) == 3
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert "Canary" not in "".join(capfd.readouterr()) + caplog.text
