"""What is taken out of a DICOM file is checked, and nothing that it holds is ever said, in an error or a warning."""

from collections.abc import Callable
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID

from segsweep.data import dicom_file
from segsweep.data.dicom_file import ENHANCED, is_dicom, items, numbers, open_dicom, sop_class, text, whole
from segsweep.errors import InputError

VALUES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ImagePositionPatient is missing"),
    "text": (b"Canary^Patient", "ImagePositionPatient is garbled or not finite; expected 2 finite numbers"),
    "too few": (b"1", "expected 2 finite numbers"),
    "too many": (b"1\\2\\3", "expected 2 finite numbers"),
    "NaN": (b"1\\nan", "expected 2 finite numbers"),
    "infinite": (b"1\\-inf", "expected 2 finite numbers"),
    "no ASCII": (b"1\\\xff\xfe", "expected 2 finite numbers"),
}


def test_elements_come_as_they_are(dicom: Any) -> None:
    path = dicom.series().files[0]
    assert is_dicom(path)
    header = open_dicom(path, tags=["Rows", "PixelSpacing"])
    assert whole(header, "Rows", name="f", low=1, high=8) == 8
    assert numbers(header, "PixelSpacing", name="f", count=2).tolist() == [0.8, 0.7]
    assert (text(header, "Modality"), text(header, "Rows")) == ("", "8")
    assert sop_class(header) == "1.2.840.10008.5.1.4.1.1.2", "the file's preface says it too"
    assert "PatientName" not in header
    assert "PixelData" in open_dicom(path)


@pytest.mark.parametrize("name", VALUES)
def test_no_numbers_are_refused_without_saying_what_is_there(name: str, dicom: Any) -> None:
    value, message = VALUES[name]
    dataset = Dataset()
    dicom.garble(dataset, "ImagePositionPatient", value)
    with pytest.raises(InputError, match=message) as caught:
        numbers(dataset, "ImagePositionPatient", name="f", count=2)
    assert "Canary" not in str(caught.value)


@pytest.mark.parametrize(("value", "found"), [(b"0", "0"), (b"9", "9"), (b"-3", "-3")])
def test_whole_numbers_out_of_range_are_refused(value: bytes, found: str, dicom: Any) -> None:
    dataset = Dataset()
    dicom.garble(dataset, "NumberOfContourPoints", value, vr="IS")
    with pytest.raises(InputError, match=f"f: NumberOfContourPoints is {found}; expected 1 to 8"):
        whole(dataset, "NumberOfContourPoints", name="f", low=1, high=8)


@pytest.mark.parametrize("value", [b"Canary", b"1.5"])
def test_what_is_no_whole_number_is_refused(value: bytes, dicom: Any) -> None:
    dataset = Dataset()
    dicom.garble(dataset, "NumberOfContourPoints", value, vr="IS")
    with pytest.raises(InputError, match="NumberOfContourPoints is") as caught:
        whole(dataset, "NumberOfContourPoints", name="f", low=1, high=8)
    assert "Canary" not in str(caught.value)


def test_what_is_no_sequence_has_no_items(dicom: Any) -> None:
    dataset = Dataset()
    dicom.garble(dataset, "ContourSequence", b"abcd", vr="LO")
    assert items(dataset, "ContourSequence") == []
    assert items(dataset, "ROIContourSequence") == []
    dataset.ROIContourSequence = [Dataset()]
    assert len(items(dataset, "ROIContourSequence")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: b"", "is no DICOM file"),
        (lambda data: data[:128] + b"DICX" + data[132:], "is no DICOM file"),
        (lambda data: data[:-1], "is cut off"),
    ],
)
def test_broken_files_are_named(change: Callable[[bytes], bytes], message: str, dicom: Any) -> None:
    path = dicom.series().files[0]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=rf"^00\.dcm ({message})"):
        open_dicom(path)


def test_absurdly_large_files_are_not_read(dicom: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dicom.series().files[0]
    size = path.stat().st_size
    monkeypatch.setattr(dicom_file, "MAX_FILE_BYTES", size)
    open_dicom(path)
    monkeypatch.setattr(dicom_file, "MAX_FILE_BYTES", size - 1)
    with pytest.raises(InputError, match=rf"00\.dcm has {size} bytes; expected at most"):
        open_dicom(path)


@pytest.mark.parametrize("kind", [*ENHANCED, *(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("66.4", "66.7"))])
def test_what_has_many_frames_may_be_as_large_as_a_scan(kind: str, dicom: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dicom.series().files[0]
    dataset = dcmread(path)
    dataset.file_meta.MediaStorageSOPClassUID = UID(kind)
    dataset.save_as(path)
    size = path.stat().st_size
    monkeypatch.setattr(dicom_file, "MAX_FILE_BYTES", 100)
    open_dicom(path)
    monkeypatch.setattr(dicom_file, "MAX_BYTES", size - 1)
    with pytest.raises(InputError, match=rf"expected at most {size - 1}"):
        open_dicom(path)


def test_what_is_not_there_is_told(dicom: Any) -> None:
    with pytest.raises(InputError, match=r"gone\.dcm is not there"):
        open_dicom(dicom.folder / "gone.dcm")
