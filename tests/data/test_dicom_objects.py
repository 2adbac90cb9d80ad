"""Drawn files are found by what they are, with the UIDs of what they were drawn on; patients are hashes."""

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from segsweep.data.dicom import describe_series, find_series
from segsweep.data.dicom_objects import find_drawn, modality_of, patient_pseudonym

SEG = Path(__file__).resolve().parents[3] / "shared" / "data" / "dcmqi_seg"
BOX = (slice(1, 4), slice(2, 7), slice(3, 8))
KEY, OTHER = b"k" * 32, b"o" * 32


def test_an_rtstruct_says_what_it_was_drawn_on(
    write_patient: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_patient(tmp_path, rois={"Heart": BOX})
    (tmp_path / "notes.txt").write_text("no DICOM")
    (drawn,) = find_drawn(tmp_path)
    info = describe_series(find_series(tmp_path)[0])
    assert drawn.path == path
    assert drawn.frames_of_reference == {info.frame_of_reference}
    assert drawn.series_uids == {info.uid}
    assert drawn.sop_uids >= set(info.sop_uids)
    print(drawn)
    assert info.uid not in capsys.readouterr().out


@pytest.mark.skipif(not SEG.is_dir(), reason="the dcmqi example is not here")
def test_a_seg_says_what_it_was_drawn_on() -> None:
    first, second = find_drawn(SEG)
    info = describe_series(find_series(SEG)[0])
    assert (first.path.name, second.path.name) == ("liver.dcm", "partial_overlaps.dcm")
    for drawn in (first, second):
        assert drawn.frames_of_reference == {info.frame_of_reference}
        assert drawn.series_uids == {info.uid}
        assert drawn.sop_uids == set(info.sop_uids)


def test_modalities(write_patient: Callable[..., Path], tmp_path: Path) -> None:
    path = write_patient(tmp_path, rois={"Heart": BOX})
    (tmp_path / "empty").touch()
    assert modality_of(path) == "RTSTRUCT"
    assert modality_of(tmp_path / "CT" / "slice_1_0.dcm") == "CT"
    assert modality_of(tmp_path / "empty") == ""


def test_patients_are_keyed_hashes(write_patient: Callable[..., Path], tmp_path: Path) -> None:
    for name, patient in (("a", "P1"), ("b", "P1"), ("c", "P2")):
        write_patient(tmp_path / name, patient=patient, series=name, rois={})
    a, b, c = (tmp_path / name / "CT" / f"slice_{name}_0.dcm" for name in "abc")
    assert patient_pseudonym(a, key=KEY) == patient_pseudonym(b, key=KEY) != patient_pseudonym(c, key=KEY)
    assert patient_pseudonym(a, key=KEY) != patient_pseudonym(a, key=OTHER)


def test_without_a_patient_the_study_keeps_cases_together(write_patient: Callable[..., Path], tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        write_patient(tmp_path / patient, patient=patient, rois={})
        for path in (tmp_path / patient).rglob("*.dcm"):
            item = pydicom.dcmread(path)
            item.PatientID = ""
            item.save_as(path)
    first, second, other = (
        tmp_path / patient / "CT" / f"slice_1_{number}.dcm" for patient, number in (("P1", 0), ("P1", 1), ("P2", 0))
    )
    assert patient_pseudonym(first, key=KEY) == patient_pseudonym(second, key=KEY)
    assert patient_pseudonym(first, key=KEY) != patient_pseudonym(other, key=KEY)


@pytest.mark.parametrize(("size", "says_on_what"), [(-30, True), (700, False), (390, False), (358, False)])
def test_damaged_files_say_what_they_still_can(
    size: int, says_on_what: bool, write_patient: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_patient(tmp_path, rois={"Heart": BOX})
    path.write_bytes(path.read_bytes()[:size])
    (drawn,) = find_drawn(tmp_path)
    assert bool(drawn.series_uids) == says_on_what


@pytest.mark.parametrize("size", (0, 60, 140, 200, 260, 300, 330))
def test_a_file_that_no_longer_says_what_it_is_is_found_with_the_series(
    size: int, write_patient: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_patient(tmp_path, rois={"Heart": BOX})
    path.write_bytes(path.read_bytes()[:size])
    assert find_drawn(tmp_path) == ()
    assert (path,) in [series.files for series in find_series(tmp_path)]
