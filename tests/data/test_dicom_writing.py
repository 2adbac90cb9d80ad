"""What objects on a series share: values go on letter by letter or not at all, and no message quotes them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from segsweep.data.dicom import find_series, read_series
from segsweep.data.dicom_writing import colour, composing, copy_patient, source_slices, write_dicom
from segsweep.data.readers import Reference
from segsweep.errors import InputError, StoreError

WriteSeries = Callable[..., Path]
PATIENT = {
    "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
    "PatientName": "Yamada^Tarou=山田^太郎",
    "StudyDate": "20240131",
    "StudyTime": "101112.5",
    "PatientIdentityRemoved": "YES",
    "StationName": "not asked for",
}


def reference(folder: Path) -> Reference:
    (series,) = find_series(folder)
    found = read_series(series).reference
    assert found is not None
    return found


@pytest.fixture
def series(write_series: WriteSeries, tmp_path: Path) -> Reference:
    voxels = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    return reference(write_series(tmp_path / "series", voxels=voxels, values=PATIENT))


def blank() -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66.4", generate_uid()
    return dataset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_the_patient_and_study_of_a_file(syntax: str, series: Reference, tmp_path: Path) -> None:
    source = pydicom.dcmread(series.files[0])
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113100", "DCM", "Basic Profile"
    source.DeidentificationMethodCodeSequence = [code]
    for element in source:
        assert element.VR  # decodes them all, to be written in another order of bytes
    source.file_meta.TransferSyntaxUID = UID(syntax)
    pydicom.dcmwrite(tmp_path / "a.dcm", source)
    source = pydicom.dcmread(tmp_path / "a.dcm")
    onto = blank()
    copy_patient(tmp_path / "a.dcm", onto=onto)
    write_dicom(onto, path=tmp_path / "new" / "b.dcm")
    found = pydicom.dcmread(tmp_path / "new" / "b.dcm")
    for keyword in ("PatientName", "PatientID", "StudyDate", "StudyTime", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert found[keyword].value == source[keyword].value != ""
    assert found.PatientName.ideographic == "山田^太郎"
    assert found.PatientBirthDate == found.AccessionNumber == "" and "StationName" not in found
    assert found.DeidentificationMethodCodeSequence[0].CodeValue == "113100"


def test_what_a_file_leaves_empty_stays_out_unless_demanded(series: Reference, tmp_path: Path) -> None:
    item = pydicom.dcmread(series.files[0])
    item.PatientName = item.SpecificCharacterSet = item.StudyDescription = ""
    item.save_as(tmp_path / "a.dcm")
    copy_patient(tmp_path / "a.dcm", onto=(onto := blank()))
    assert onto.PatientName == "" and "SpecificCharacterSet" not in onto and "StudyDescription" not in onto


def test_slices_come_in_the_order_of_z_without_a_patient(series: Reference) -> None:
    slices = source_slices(series, name="a.dcm")
    assert [item.ImagePositionPatient[2] for item in slices] == [104, 107, 110]
    assert tuple(item.SOPInstanceUID for item in slices) == series.sop_uids
    assert not any(element.keyword.startswith("Patient") for item in slices for element in item)
    item = pydicom.dcmread(series.files[1])
    del item.SOPClassUID, item.SOPInstanceUID
    item.save_as(series.files[1])
    slices = source_slices(series, name="a.dcm")
    assert {item.SOPClassUID for item in slices} == {CTImageStorage}, "from the preface, as some tools leave it"
    assert (
        tuple(item.SOPInstanceUID for item in slices) == series.sop_uids == reference(series.files[1].parent).sop_uids
    )
    one_file = Reference(
        frame_of_reference="1.2", series_uid="1.3", sop_uids=("1.4",) * 3, files=(series.files[0],) * 3
    )
    with pytest.raises(
        InputError, match=r"a\.dcm: the series holds many slices in one file; expected one slice a file"
    ):
        source_slices(one_file, name="a.dcm")


def test_what_libraries_raise_is_not_quoted() -> None:
    with (
        pytest.raises(InputError, match=r"^a\.dcm cannot be made: the headers of its series do not fit the standard"),
        composing("a.dcm"),
    ):
        raise ValueError("Canary")
    for error in (StoreError("ours"), OSError(28, "No space left on device"), MemoryError()):
        with pytest.raises(type(error)), composing("a.dcm"):
            raise error


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    broken = blank()
    broken["PatientName"] = pydicom.DataElement("PatientName", "OW", "Canary")
    with pytest.raises(InputError, match=r"a\.dcm cannot be made") as caught:
        write_dicom(broken, path=tmp_path / "a.dcm")
    assert "Canary" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_neighbouring_colours_are_apart() -> None:
    colours = np.array([colour(index) for index in range(45)])
    assert colours.min() >= 0 and colours.max() <= 255 and len(np.unique(colours, axis=0)) == 45
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 100
