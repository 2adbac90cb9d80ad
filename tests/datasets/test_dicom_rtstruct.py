"""Any tree of DICOM: series and what was drawn on them are paired by UIDs, and named by hashes that say nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from segsweep.data.case import CaseSource, SegmentFile, Series
from segsweep.data.dataset import describe
from segsweep.data.reading import read_case
from segsweep.errors import InputError
from segsweep.recipes import load

recipe = load("datasets", name="dicom_rtstruct")

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SEG, RTSTRUCT = DATA / "dcmqi_seg", DATA / "ibsi_sts" / "dicom"
WritePatient = Callable[..., Path]
BOX = (slice(1, 4), slice(2, 7), slice(3, 8))
SMALL = (slice(0, 2), slice(0, 3), slice(0, 2))
ROIS = {"brain stem": BOX, "Parotis li": SMALL, "PAROTIS RE": SMALL, "zz_help": BOX}
STATED: dict[str, Any] = {
    "structures": {
        "Brainstem": ["Brain Stem", "/bs.*/"],
        "Parotid_L": ["/parotis l.*/"],
        "Parotid_R": ["/parotis r.*/"],
    }
}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSWEEP_CASE_KEY", "a key for these tests")


def state(raw: Path, **values: Any) -> Path:
    (raw / "structures.json").write_text(json.dumps(STATED | values))
    return raw


def names_of(source: CaseSource) -> dict[str, str]:
    return {
        name: structure
        for file in source.labels
        if isinstance(file, SegmentFile)
        for name, structure in file.names.items()
    }


def test_structures_as_stated(write_patient: WritePatient, tmp_path: Path) -> None:
    path = write_patient(tmp_path / "b", rois=ROIS)
    dataset = describe("dicom_rtstruct", raw=state(tmp_path))
    (source,) = dataset.cases
    assert dataset.channels == ("CT",)
    assert dataset.labels.structures == ("Brainstem", "Parotid_L", "Parotid_R")
    assert dataset.labels.pairs == (("Parotid_L", "Parotid_R"),)
    assert names_of(source) == {"brain stem": "Brainstem", "Parotis li": "Parotid_L", "PAROTIS RE": "Parotid_R"}
    assert source.annotated == dataset.labels.structures
    assert source.labels[0].path == path
    raw = read_case(source, labels=dataset.labels)
    expected = np.zeros((6, 12, 10), dtype=bool)
    expected[BOX] = True
    np.testing.assert_array_equal(raw.masks[0], expected)
    assert int(raw.masks[2].sum()) == 12


def test_without_a_statement_every_name_is_a_structure(write_patient: WritePatient, tmp_path: Path) -> None:
    write_patient(tmp_path / "a", rois={"Eye_L": SMALL, "Eye R": SMALL, "GTV #1": BOX, "Heart": BOX})
    write_patient(tmp_path / "b", patient="P2", rois={"eye_l": SMALL})
    first, second = describe("dicom_rtstruct", raw=tmp_path).cases
    labels = recipe.labels(tmp_path)
    assert labels.structures == ("Eye_L", "Eye_R", "GTV_1", "Heart")
    assert labels.pairs == (("Eye_L", "Eye_R"),)
    assert names_of(second)["eye_l"] == names_of(first)["Eye_L"] == "Eye_L"


@pytest.mark.parametrize("names", [("Prostate >7mm", "Prostate <7mm"), ("Smith", "SMITH"), ("Heart", "***")])
def test_without_a_statement_no_two_names_of_a_file_become_one_and_none_is_lost(
    names: tuple[str, str], write_patient: WritePatient, tmp_path: Path
) -> None:
    write_patient(tmp_path, rois=dict.fromkeys(names, BOX))
    for ask in (recipe.labels, recipe.cases):
        with pytest.raises(InputError, match=r"rs\.dcm: two of its names .* in structures\.json") as caught:
            ask(tmp_path)
        assert not any(name in str(caught.value) for name in names)
    state(tmp_path, structures={"one": [names[0]], "other": []})
    assert names_of(recipe.cases(tmp_path)[0])[names[0]] == "one"


def test_series_and_files_are_paired_by_uid_wherever_they_lie(write_patient: WritePatient, tmp_path: Path) -> None:
    drawn = {}
    for patient in ("P1", "P2"):
        for series in ("1", "2"):
            folder = tmp_path / f"{patient}-{series}"
            path = write_patient(folder, patient=patient, series=series, rois={f"only {patient} {series}": BOX})
            drawn[patient, series] = path.rename(tmp_path / f"rs_{patient}_{series}.dcm")
    shutil.move(tmp_path / "P1-1" / "CT" / "slice_1_0.dcm", tmp_path / "P2-2" / "elsewhere.dcm")
    dataset = describe("dicom_rtstruct", raw=tmp_path)
    assert len(dataset.cases) == 4
    for source in dataset.cases:
        (image,), (file,) = source.images, source.labels
        assert isinstance(image, Series)
        header = pydicom.dcmread(image.files[0], stop_before_pixels=True)
        assert len(image.files) == 6
        assert file.path.name.startswith(f"rs_{header.PatientID}")
        assert f"slice_{file.path.stem[-1]}_5.dcm" in [path.name for path in image.files]
        read_case(source, labels=dataset.labels)


def test_cases_and_patients_are_hashes(
    write_patient: WritePatient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patient, series in (("P1", "1"), ("P1", "2"), ("P2", "1")):
        write_patient(tmp_path / f"{patient}{series}", patient=patient, series=series, rois={})
    sources = recipe.cases(tmp_path)
    assert len({source.case_id for source in sources}) == 3
    assert len({source.group for source in sources}) == 2
    assert all(len(text) == 12 and int(text, 16) >= 0 for source in sources for text in (source.case_id, source.group))
    assert [source.case_id for source in recipe.cases(tmp_path)] == [source.case_id for source in sources]
    monkeypatch.setenv("SEGSWEEP_CASE_KEY", "another key for these tests")
    assert not {source.case_id for source in recipe.cases(tmp_path)} & {source.case_id for source in sources}


def test_series_without_a_drawing_are_unlabelled_and_other_modalities_no_case(
    write_patient: WritePatient, tmp_path: Path
) -> None:
    write_patient(tmp_path / "a", rois=ROIS)
    write_patient(tmp_path / "b", series="2", frame="2", rois={})
    write_patient(tmp_path / "c", series="3", frame="3", modality="MR", rois={})
    sources = recipe.cases(state(tmp_path))
    assert sorted(len(source.annotated) for source in sources) == [0, 3]
    assert [source.labels for source in sources if not source.annotated] == [()]
    assert recipe.channels(tmp_path) == ("CT",)


def test_series_of_magnetic_resonance(write_patient: WritePatient, tmp_path: Path) -> None:
    write_patient(tmp_path / "a", modality="MR", rois=ROIS)
    write_patient(tmp_path / "b", series="2", frame="2", rois={})
    assert recipe.channels(tmp_path) == ("MR",)
    assert [len(source.labels) for source in recipe.cases(tmp_path)] == [1]


def test_a_file_that_names_another_series_is_refused_when_its_case_is_read(
    write_patient: WritePatient, tmp_path: Path
) -> None:
    path = write_patient(tmp_path / "a", rois=ROIS)
    other = write_patient(tmp_path / "b", series="2", rois=ROIS)
    shutil.copy(other, path)
    shutil.rmtree(tmp_path / "b")
    (source,) = recipe.cases(state(tmp_path))
    assert source.labels
    with pytest.raises(InputError, match=r"rs\.dcm.*another series"):
        read_case(source, labels=recipe.labels(tmp_path))


def test_a_damaged_file_fails_its_own_case_alone(write_patient: WritePatient, tmp_path: Path) -> None:
    broken = write_patient(tmp_path / "a", rois=ROIS)
    write_patient(tmp_path / "b", patient="P2", rois=ROIS)
    item = pydicom.dcmread(broken)
    del item.StructureSetROISequence
    item.save_as(broken)
    labels, outcomes = recipe.labels(state(tmp_path)), []
    for source in recipe.cases(tmp_path):
        try:
            outcomes.append(len(read_case(source, labels=labels).masks))
        except InputError as error:
            outcomes.append(str(error))
    assert sorted(str(outcome).rpartition(": ")[2] for outcome in outcomes) == [
        "3",
        "rs.dcm lists no structures; expected at least one; export it again",
    ]


@pytest.mark.parametrize("place", ["a/rs.dcm", "a/RS/rs.dcm", "rs.dcm"])
@pytest.mark.parametrize("size", (60, 140, 360, 390, 800, -30))
def test_a_file_cut_off_in_its_header_fails_its_own_case_alone(
    size: int, place: str, write_patient: WritePatient, tmp_path: Path
) -> None:
    """In a folder above several series, a file that no longer says what it was drawn on is a failure of its own."""
    path = write_patient(tmp_path / "a", rois=ROIS)
    write_patient(tmp_path / "b", patient="P2", rois=ROIS)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    broken = path.rename(tmp_path / place)
    broken.write_bytes(broken.read_bytes()[:size])
    labels, failures, read = recipe.labels(state(tmp_path)), [], []
    for source in recipe.cases(tmp_path):
        try:
            read.append(len(read_case(source, labels=labels).masks))
        except InputError as error:
            failures.append(str(error))
    (failure,) = failures
    assert f": {broken.name} " in failure
    assert sorted(read) == ([0, 3] if place == "rs.dcm" and 0 < size < 800 else [3])


def test_a_file_cut_off_within_a_name_of_its_series_fails_its_own_case(
    write_patient: WritePatient, tmp_path: Path
) -> None:
    """Wherever it is cut: what is left of an identifier fits no series."""
    path = write_patient(tmp_path / "a", rois={"Heart": BOX})
    write_patient(tmp_path / "b", patient="P2", rois={"Heart": BOX})
    whole = path.read_bytes()
    for size in range(400, len(whole), 37):
        path.write_bytes(whole[:size])
        owner = next(source for source in recipe.cases(tmp_path) if "a" in source.images[0].files[0].parts)
        assert [file.path for file in owner.labels] == [path], size


def test_the_only_file_is_damaged(write_patient: WritePatient, tmp_path: Path) -> None:
    path = write_patient(tmp_path, rois=ROIS)
    path.write_bytes(path.read_bytes()[:800])
    (source,) = recipe.cases(tmp_path)
    with pytest.raises(InputError, match=r"rs\.dcm is cut off"):
        read_case(source, labels=recipe.labels(tmp_path))


def test_a_series_with_unusable_headers_fails_alone(write_patient: WritePatient, tmp_path: Path) -> None:
    write_patient(tmp_path / "a", rois=ROIS)
    write_patient(tmp_path / "b", patient="P2", rois=ROIS)
    path = tmp_path / "a" / "CT" / "slice_1_2.dcm"
    item = pydicom.dcmread(path)
    item.PixelSpacing = [0.0, 1.5]
    item.save_as(path)
    good, bad = recipe.cases(state(tmp_path))
    read_case(good, labels=recipe.labels(tmp_path))
    with pytest.raises(InputError, match=r"slice_1_2\.dcm: PixelSpacing"):
        read_case(bad, labels=recipe.labels(tmp_path))


def test_a_slice_of_no_series_fails_the_series_beside_it(write_patient: WritePatient, tmp_path: Path) -> None:
    """The scan would only be shorter without its last slice."""
    write_patient(tmp_path, rois=ROIS)
    path = tmp_path / "CT" / "slice_1_0.dcm"
    item = pydicom.dcmread(path)
    del item.SeriesInstanceUID, item.ImagePositionPatient
    item.save_as(path)
    (source,) = recipe.cases(state(tmp_path))
    with pytest.raises(InputError, match=r"slice_1_0\.dcm: ImagePositionPatient is missing"):
        read_case(source, labels=recipe.labels(tmp_path))


@pytest.mark.skipif(not SEG.is_dir(), reason="the dcmqi example is not here")
def test_a_real_series_with_two_segmentations() -> None:
    (source,) = recipe.cases(SEG)
    raw = read_case(source, labels=recipe.labels(SEG))
    found = {source.annotated[index]: int(mask.sum()) for index, mask in raw.masks.items()}
    assert found["Liver"] == 107098
    assert (found["GREEN"], found["PURPLE"]) == (9602, 117 + 117 + 10509)


@pytest.mark.skipif(not RTSTRUCT.is_dir(), reason="the IBSI examples are not here")
def test_a_real_series_with_an_rtstruct() -> None:
    (source,) = recipe.cases(RTSTRUCT)
    raw = read_case(source, labels=recipe.labels(RTSTRUCT))
    assert source.annotated == ("GTV_Mass_CT",)
    assert int(raw.masks[0].sum()) == 17090


def test_names_of_ones_own(write_patient: WritePatient, tmp_path: Path) -> None:
    write_patient(tmp_path / "a", rois={})
    write_patient(tmp_path / "b", patient="P2", rois={})
    (tmp_path / "cases.json").write_text(json.dumps({"a/CT": "first"}))
    ids = [source.case_id for source in recipe.cases(tmp_path)]
    assert ids[0] == "first"
    assert len(ids[1]) == 12
    (tmp_path / "cases.json").write_text(json.dumps({"c/CT": "first"}))
    with pytest.raises(InputError, match=r"cases\.json: 'c/CT' holds no series"):
        recipe.cases(tmp_path)


def test_two_files_for_one_structure(write_patient: WritePatient, tmp_path: Path) -> None:
    second = pydicom.dcmread(write_patient(tmp_path, rois=ROIS))
    second.StructureSetLabel = "revised"
    second.save_as(tmp_path / "second_approved.dcm")
    with pytest.raises(InputError, match=r"Brainstem is in rs\.dcm and in second_approved\.dcm.*'files'"):
        recipe.cases(state(tmp_path))
    (source,) = recipe.cases(state(tmp_path, files="*approved*"))
    assert [file.path.name for file in source.labels] == ["second_approved.dcm"]


def test_copies_of_one_file_are_one(write_patient: WritePatient, tmp_path: Path) -> None:
    first = write_patient(tmp_path / "b", rois=ROIS)
    (tmp_path / "a").mkdir()
    shutil.copy(first, tmp_path / "a" / "exported again.dcm")
    dataset = describe("dicom_rtstruct", raw=state(tmp_path))
    (source,) = dataset.cases
    assert [file.path.name for file in source.labels if isinstance(file, SegmentFile)] == ["exported again.dcm"]
    assert len(read_case(source, labels=dataset.labels).masks) == 3


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"structures": {"A": ["/(/"]}}, "no regular expression"),
        ({"structures": {"A": "brain stem"}}, "no list of texts"),
        ({"structures": ["A"]}, "'structures' is"),
        (
            {"structures": {"A": ["brain stem"], "B": ["/brain.*/"]}},
            "'A' and 'B' have spellings that both fit a name in rs.dcm",
        ),
        ({"pairs": [["Parotid_L"]]}, r"no list of \[left, right\]"),
        ({"pairs": [["Parotid_L", "Eye_R"]]}, "Eye_R"),
        ({"files": 3}, "'files' is"),
        ({"aliases": {}}, "'aliases' is unknown"),
    ],
)
def test_statements_that_cannot_be_used(
    values: dict[str, Any], word: str, write_patient: WritePatient, tmp_path: Path
) -> None:
    write_patient(tmp_path, rois=ROIS)
    with pytest.raises(InputError, match=word):
        recipe.cases(state(tmp_path, **values))


def test_folders_that_cannot_be_used(write_patient: WritePatient, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no CT or MR series"):
        recipe.cases(tmp_path)
    path = write_patient(tmp_path / "a", rois=ROIS)
    write_patient(tmp_path / "b", patient="P2", rois={})
    path.rename(tmp_path / "rs.dcm")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(InputError, match="no RTSTRUCT or SEG was drawn on a series that is here"):
        recipe.cases(tmp_path)
