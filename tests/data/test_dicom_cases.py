"""Names of series: their folders', pseudonyms where those tell who the patient is, and never fewer slices than there are."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import MRImageStorage

from segsweep import recipes
from segsweep.data.dicom import read_series
from segsweep.data.dicom_cases import NamedSeries, name_series
from segsweep.errors import InputError

WriteSeries = Callable[..., Path]
VOXELS = np.arange(3 * 4 * 5).reshape(3, 4, 5)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSWEEP_CASE_KEY", "a key for these tests")


def ids(root: Path, *, modality: str = "") -> list[str]:
    return [one.case_id for one in name_series(root, modality=modality)]


def only(root: Path) -> NamedSeries:
    (one,) = name_series(root)
    return one


def test_folders_name_their_series(write_series: WriteSeries, tmp_path: Path) -> None:
    write_series(tmp_path / "study" / "a", voxels=VOXELS)
    write_series(tmp_path / "study" / "b" / "CT 3.0 mm", voxels=VOXELS, patient="P2")
    assert ids(tmp_path / "study") == ["a", "b_CT_3.0_mm"]
    assert ids(tmp_path / "study" / "a") == ["a"]
    assert not any(one.hidden for one in name_series(tmp_path))


def test_series_of_one_folder_have_pseudonyms_at_their_ends(write_series: WriteSeries, tmp_path: Path) -> None:
    """A series of another modality beside one that is asked for makes no difference."""
    for patient in ("P2", "P3"):
        write_series(tmp_path / patient, voxels=VOXELS, patient=patient)
        for path in (tmp_path / patient).iterdir():
            path.rename(tmp_path / f"{patient}{path.name}")
        (tmp_path / patient).rmdir()
    one, other = ids(tmp_path)
    name = tmp_path.name
    assert one != other
    assert all(found.startswith(f"{name}_") and len(found) == len(name) + 13 for found in (one, other))
    for path in tmp_path.glob("P3*"):
        item = pydicom.dcmread(path)
        item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = MRImageStorage
        item.Modality = "MR"
        item.save_as(path)
    assert ids(tmp_path, modality="CT") == [name]
    assert ids(tmp_path, modality="PT") == []


@pytest.mark.parametrize(
    ("folder", "values", "hidden"),
    [
        ("Doe", {"PatientName": "DOE^John"}, True),
        ("export/doe_john", {"PatientName": "DOE^John"}, True),
        ("johndoe1", {"PatientName": "DOE^John"}, True),
        ("Müller", {"PatientName": "Müller^Eva"}, True),
        ("Li/CT", {"PatientName": "Li^Na"}, True),
        ("liver", {"PatientName": "Li^Na"}, False),
        ("4711-0815", {"PatientID": "47110815"}, True),
        ("p 20010203", {"PatientBirthDate": "20010203"}, True),
        ("case_7", {"PatientID": "HN-7", "PatientName": "Doe^John"}, True),
        ("case_8", {"PatientID": "HN-7", "PatientName": "Doe^John"}, False),
        ("HN-7", {"PatientID": "HN-7", "PatientIdentityRemoved": "YES"}, False),
        ("癌", {}, True),
    ],
)
def test_a_folder_that_tells_who_the_patient_is(
    folder: str, values: dict[str, str], hidden: bool, write_series: WriteSeries, tmp_path: Path
) -> None:
    write_series(tmp_path / folder, voxels=VOXELS, values={"SpecificCharacterSet": "ISO_IR 192", **values})
    found = only(tmp_path)
    assert found.hidden == hidden
    assert len(found.case_id) == 12 if hidden else found.case_id == folder.replace("/", "_")
    (source,) = recipes.load("datasets", name="dicom_rtstruct").cases(tmp_path) if hidden else (None,)
    assert source is None or source.case_id == found.case_id, "one series, one pseudonym"


def test_a_slice_of_no_series_belongs_to_the_one_beside_it(write_series: WriteSeries, tmp_path: Path) -> None:
    """The scan would only be shorter without its last slice."""
    write_series(tmp_path / "a", voxels=VOXELS)
    write_series(tmp_path / "b", voxels=VOXELS, patient="P2")
    last = next(path for path in (tmp_path / "a").iterdir() if pydicom.dcmread(path).InstanceNumber == 3)
    last.write_bytes(last.read_bytes()[:400])
    one, other = name_series(tmp_path, modality="CT")
    assert (one.case_id, other.case_id, len(one.series.files)) == ("a", "b", 3)
    read_series(other.series)
    with pytest.raises(InputError, match=rf"{last.name} cannot be read|{last.name} is cut off"):
        read_series(one.series)
    shutil.copy(last, tmp_path / "lost.dcm")
    assert ids(tmp_path) == ["a", "b", tmp_path.name]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        name_series(tmp_path / "absent")
    assert name_series(tmp_path) == ()
