"""No identifier of a raw scan gets into what a walk leaves (store, MLflow, models, predictions, reports, logs of Ray) or the terminal's
output: canaries in headers, file and folder names.
"""

import gzip
import json
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pydicom
import pytest
import ray
from pydicom import DataElement, config
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from segsweep import cli
from segsweep.data.geometry import Geometry
from segsweep.data.store import open_store
from segsweep.inference.writers import write_image, write_label_map

pytestmark = pytest.mark.usefixtures("cluster")
WritePatient = Callable[..., Path]
BOX = (slice(1, 4), slice(2, 7), slice(3, 8))
# Names, ids, places, free text: everything here takes any text. Other kinds (dates, UIDs) follow below.
TEXTS = (
    "PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ReferringPhysicianName",
    "PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy", "PhysiciansOfRecord", "RequestingPhysician",
    "ResponsiblePerson", "ScheduledPerformingPhysicianName", "ReviewerName",
    "MilitaryRank", "OtherPatientIDs", "IssuerOfPatientID", "AccessionNumber", "StudyID", "AdmissionID", "DeviceSerialNumber",
    "MedicalRecordLocator", "FillerOrderNumberImagingServiceRequest", "PlacerOrderNumberImagingServiceRequest",
    "RequestedProcedureID", "PerformedProcedureStepID", "ScheduledProcedureStepID", "ClinicalTrialSubjectID", "ClinicalTrialSiteName",
    "PatientAddress", "PatientTelephoneNumbers", "CountryOfResidence", "RegionOfResidence", "EthnicGroup", "Occupation",
    "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName", "Manufacturer",
    "ManufacturerModelName", "ProtocolName", "SoftwareVersions", "CurrentPatientLocation", "PatientInsurancePlanCodeSequence",
    "StudyDescription", "SeriesDescription", "ImageComments", "PatientComments", "AdditionalPatientHistory", "MedicalAlerts",
    "Allergies", "AdmittingDiagnosesDescription", "RequestedProcedureDescription", "DerivationDescription",
    "ContrastBolusAgent", "BodyPartExamined", "RequestAttributesSequence", "ReasonForStudy", "StudyComments", "VisitComments",
)  # fmt: skip
DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "LastMenstrualDate")
TIMES = ("AcquisitionDateTime", "StudyTime", "PatientBirthTime")
UIDS = ("StudyInstanceUID", "IrradiationEventUID", "ConcatenationUID")
# What an object that is drawn on a series has from it.
CARRIED = {
    "PatientName", "PatientBirthDate", "IssuerOfPatientID", "ReferringPhysicianName", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "StudyDescription", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID",
    "ReferencedFrameOfReferenceUID", "ReferencedSOPInstanceUID", "MediaStorageSOPInstanceUID",
}  # fmt: skip
# Ends after one step.
TINY = (
    "epochs=1", "iterations=1", "validation_iterations=1", "patch_size=8,16,16", "batch_size=2", "features=4", "levels=2",
)  # fmt: skip
STATED = {"structures": {"Brainstem": ["/.*brain.*stem.*/"], "Heart": ["/.*heart.*/"]}}


class Canaries:
    """Texts that occur nowhere else, each with the place where it was put."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}

    def text(self, place: str) -> str:
        return self._keep(f"QZXCANARY{len(self.places):04d}ZXQ", place=place)

    def date(self, place: str) -> str:
        return self._keep(f"{1000 + len(self.places)}0228", place=place)

    def uid(self, place: str) -> str:
        return self._keep(str(generate_uid(entropy_srcs=[place, str(len(self.places))])), place=place)

    def found(self, content: bytes) -> list[str]:
        """Where the canaries in some content were put."""
        return [place for canary, place in self.places.items() if canary.encode() in content]

    def _keep(self, canary: str, *, place: str) -> str:
        self.places[canary] = place
        return canary


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGSWEEP_CASE_KEY", "a key for these tests")
    for name in ("SEGSWEEP_WORKSPACE", "SEGSWEEP_PROJECT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    # Dates and numbers that are none are planted as well.
    monkeypatch.setattr(config.settings, "_reading_validation_mode", config.IGNORE)
    monkeypatch.setattr(config.settings, "_writing_validation_mode", config.IGNORE)


def plant(item: Dataset, *, canaries: Canaries, place: str) -> None:
    """Put a canary into every attribute of the lists above, into private ones, and into the file's meta header and preamble."""
    for keyword in TEXTS:
        if keyword.endswith("Sequence"):
            inner = Dataset()
            inner.CodeMeaning = canaries.text(f"{place} {keyword}")
            setattr(item, keyword, [inner])
        else:
            setattr(item, keyword, canaries.text(f"{place} {keyword}"))
    for keyword in DATES:
        setattr(item, keyword, canaries.date(f"{place} {keyword}"))
    for keyword in TIMES:
        setattr(item, keyword, canaries.text(f"{place} {keyword}"))
    for keyword in UIDS:
        setattr(item, keyword, canaries.uid(f"{place} {keyword}"))
    block = item.private_block(0x0011, canaries.text(f"{place} private creator"), create=True)
    block.add_new(0x01, "LO", canaries.text(f"{place} private text"))
    block.add_new(0x02, "UN", canaries.text(f"{place} private bytes").encode())
    item.file_meta.SourceApplicationEntityTitle = canaries.text(f"{place} source application")
    item.preamble = canaries.text(f"{place} preamble").encode().ljust(128, b"\0")


def damage(folder: Path, *, patient: str, canaries: Canaries) -> None:
    """A slice that is cut, or with text where a number is due, or a contour that is open."""
    path = folder / ("rs.dcm" if patient == "contour" else "CT/slice_1_3.dcm")
    item = pydicom.dcmread(path)
    if patient == "slice":
        item.PixelData = item.PixelData[:-40]
    if patient == "number":
        item["RescaleSlope"] = DataElement("RescaleSlope", "LO", canaries.text("number RescaleSlope"))
    if patient == "contour":
        item.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "OPEN_PLANAR"
    item.save_as(path)


def spoil(folder: Path, *, canaries: Canaries, patient: str) -> None:
    """Plant canaries into every file, rename the files, and keep the UIDs in them as canaries too."""
    identity = canaries.text(f"{patient} PatientID of all files")
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        item = pydicom.dcmread(path)
        if number in (0, 5) or item.Modality == "RTSTRUCT":
            plant(item, canaries=canaries, place=f"{patient} {item.Modality} {number}")
        item.PatientID = identity
        for element in item.iterall():
            if element.VR == "UI" and not str(element.value).startswith("1.2.840.10008."):
                canaries.places.setdefault(str(element.value), f"{patient} {element.keyword}")
        for roi in item.get("StructureSetROISequence", ()):
            roi.ROIName = f"{canaries.text(f'{patient} ROI name')} {roi.ROIName}"
        path.unlink()
        item.save_as(path.with_name(f"{canaries.text(f'{patient} file name')}.dcm"), enforce_file_format=True)


def write_nifti(path: Path, *, canaries: Canaries, kind: str, seed: int) -> None:
    """An image or a label map of 6 x 12 x 10 voxels with a canary in each text of its header and in a header extension."""
    grid = Geometry(
        shape=(6, 12, 10), spacing=(3.0, 2.0, 1.5), origin=(0.0, 0.0, 0.0), direction=tuple(np.eye(3).ravel())
    )
    if kind == "images":
        voxels = np.random.default_rng(seed).integers(-1000, 1000, grid.shape).astype(np.int16)
        write_image(voxels, geometry=grid, path=path)
    else:
        label = np.zeros(grid.shape, dtype=np.uint8)
        label[BOX] = 1
        write_label_map(label, geometry=grid, path=path)
    content = bytearray(path.read_bytes())
    for field, start in (("db_name", 14), ("descrip", 148), ("aux_file", 228), ("intent_name", 328)):
        canary = canaries.text(f"{path.name} {field}").encode()
        content[start : start + len(canary)] = canary
    # Code 2 stands for DICOM attributes.
    extension = struct.pack("<2i", 64, 2) + canaries.text(f"{path.name} extension").encode().ljust(56, b"\0")
    content[108:112] = struct.pack("<f", 352 + len(extension))
    content[348:352] = b"\1\0\0\0" + extension
    path.write_bytes(content)


def below(*folders: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of everything in the folders; of what is compressed or a database, also what is in it."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            yield path.relative_to(folder).as_posix(), content(path) if path.is_file() else b""


def content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        return data + gzip.decompress(data)
    if path.suffix == ".db":  # its pages cut long texts
        with closing(sqlite3.connect(path)) as database:
            return data + "\n".join(database.iterdump()).encode()
    return data


def convert(dataset: str, *, raw: Path, store: Path) -> int:
    """Exit code of converting and checking at the command line."""
    code = cli.main(["convert", dataset, str(raw), "--store", str(store)])
    cli.main(["check", str(store)])
    return code


def leaks(content: Iterable[tuple[str, bytes]], *, canaries: Canaries) -> list[str]:
    return [f"{place} in {name}" for name, data in content for place in canaries.found(name.encode() + b"\n" + data)]


def ray_session() -> Path:
    """Its logs, and what else Ray keeps in files."""
    return Path(ray._private.worker._global_node.get_session_dir_path())  # type: ignore[union-attr]


@pytest.mark.usefixtures("in_process")
def test_dicom(write_patient: WritePatient, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The whole walk with two good patients and three that cannot be used."""
    store, scans, canaries = tmp_path / "store", tmp_path / "scans", Canaries()
    raw = tmp_path / canaries.text("raw folder name")
    rois = {"brain stem": BOX, "heart": (slice(0, 2), slice(0, 3), slice(0, 2))}
    for patient in ("good", "better", "slice", "number", "contour"):
        folder = raw / canaries.text(f"{patient} folder name")
        write_patient(folder, patient=patient, rois=rois)
        damage(folder, patient=patient, canaries=canaries)
        spoil(folder, canaries=canaries, patient=patient)
    (raw / "structures.json").write_text(json.dumps(STATED))
    write_nifti(scans / "scan.nii", canaries=canaries, kind="images", seed=0)
    assert len(canaries.places) > 4 * 60
    planted = {leak.partition(" in ")[0] for leak in leaks(below(tmp_path), canaries=canaries)}
    assert planted == set(canaries.places.values())

    assert convert("dicom_rtstruct", raw=raw, store=store) == 2
    opened = open_store(store)
    assert len(opened.cases) == 2
    assert opened.table.labels.structures == ("Brainstem", "Heart")
    shown = capfd.readouterr()
    # The complaints name the file at fault, and nothing from inside it.
    assert {place.split(" ", 1)[1] for place in canaries.found(shown.err.encode())} <= {"file name", "folder name"}
    assert len([line for line in shown.err.splitlines() if line.startswith("segsweep: ")]) == 3
    assert canaries.found(shown.out.encode()) == []

    model = "models:/dicom_rtstruct-ensemble"
    assert cli.main(["train", "unet", str(store), *TINY]) == 0
    assert cli.main(["tune", "default", str(store), "trials=1", *TINY]) == 0
    assert cli.main(["ensemble", str(store)]) == 0
    assert cli.main(["predict", model, str(store), "predictions", "--split", "train"]) == 0
    assert cli.main(["predict", model, str(scans), "segmented"]) == 0
    assert cli.main(["evaluate", "predictions", str(store)]) == 0
    assert {path.name for path in (tmp_path / "predictions").glob("*.gz")} == {
        f"{case}.nii.gz" for case in opened.cases
    }
    shown = capfd.readouterr()
    assert canaries.found((shown.out + shown.err).encode()) == []
    for kind in ("dicom-seg", "rtstruct"):
        drawn_for_the_hospital(kind, model=model, raw=raw, canaries=canaries)
        shutil.rmtree(kind)
    shown = capfd.readouterr()
    said = canaries.found((shown.out + shown.err).encode())
    assert {place.split(" ", 1)[1] for place in said} <= {"file name", "folder name"}
    shutil.rmtree(raw)
    shutil.rmtree(scans)
    names = {path.name for path in tmp_path.rglob("*")}
    assert {"mlflow.db", "studies.db", "MLmodel", "weights.safetensors", "scan.nii.gz", "report.html"} <= names
    assert leaks(below(tmp_path, ray_session()), canaries=canaries) == []


def drawn_for_the_hospital(kind: str, *, model: str, raw: Path, canaries: Canaries) -> None:
    """Objects on the series carry what DICOM demands of the patient, and nothing else; two of the five series cannot be read."""
    assert cli.main(["predict", model, str(raw), kind, "--format", kind]) == 2
    files = list(Path(kind).glob("*.dcm"))
    assert len(files) == 3
    for path in files:
        patient = {place.split()[0] for place in canaries.found(path.name.encode())}
        assert {place.split(" ", 1)[1] for place in canaries.found(path.name.encode())} == {"folder name"}
        carried = canaries.found(path.read_bytes())
        assert {place.split()[0] for place in carried} == patient
        assert {place.split()[-1] for place in carried} - {"files"} <= CARRIED
        assert any(place.endswith("PatientName") for place in carried)
    assert canaries.found((Path(kind) / "labels.json").read_bytes()) == []


def test_a_folder_that_cannot_be_converted_at_all(
    write_patient: WritePatient, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw, store, canaries = tmp_path / "raw", tmp_path / "store", Canaries()
    write_patient(raw / "a", rois={"brain stem": BOX})
    spoil(raw, canaries=canaries, patient="cut")
    for path in sorted(raw.rglob("*.dcm"))[:1]:
        path.write_bytes(path.read_bytes()[:1500])
    (raw / "structures.json").write_text(json.dumps(STATED))
    assert cli.main(["convert", "dicom_rtstruct", str(raw), "--store", str(store)]) == 2
    shown = capfd.readouterr()
    assert shown.err.startswith("segsweep: ")
    assert set(canaries.found((shown.out + shown.err).encode())) <= {"cut file name"}
    assert leaks(below(store, ray_session()), canaries=canaries) == []


def test_nifti(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Free text of a NIfTI header, and a header extension that holds DICOM."""
    raw, store, canaries = tmp_path / "raw", tmp_path / "store", Canaries()
    for number in range(2):
        for kind in ("images", "labels"):
            write_nifti(raw / kind / f"c{number}.nii", canaries=canaries, kind=kind, seed=number)
    (raw / "labels.json").write_text(json.dumps({"structures": {"Heart": 1}, "channels": ["CT"]}))
    assert len(leaks(below(raw), canaries=canaries)) == len(canaries.places) == 4 * 5
    assert convert("nifti_folder", raw=raw, store=store) == 0
    shown = capfd.readouterr()
    assert leaks(below(store, ray_session()), canaries=canaries) == []
    assert canaries.found((shown.out + shown.err).encode()) == []
