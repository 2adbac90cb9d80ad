"""What the DICOM tests share: writers of small series and structure sets, through pydicom, of which any element can be changed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import config, dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from segsweep.data.case import Series

SHAPE = (5, 8, 7)
SPACING = (3.0, 0.8, 0.7)
CENTRE = np.array([12.5, -30.25, 41.0])
CANARY = "Canary^Patient"


def anatomy(position: np.ndarray) -> np.ndarray:
    """HU at LPS positions (..., 3): 40 more a mm to the left, 7 more to the back, 3 more to the head; so a swap shows."""
    return np.rint((position - CENTRE) @ [40.0, 7.0, 3.0]).astype(int)


def slices(*, row: Sequence[float], column: Sequence[float]) -> list[Dataset]:
    """An anatomical CT of SHAPE around CENTRE; `row` is the direction in which the column index grows, as in DICOM."""
    across, down = np.asarray(row, dtype=float), np.asarray(column, dtype=float)
    normal = np.cross(across, down)
    first = CENTRE - sum((n - 1) / 2 * s * a for n, s, a in zip(SHAPE, SPACING, (normal, down, across), strict=True))
    made = []
    for k in range(SHAPE[0]):
        corner = first + k * SPACING[0] * normal
        y, x = np.meshgrid(np.arange(SHAPE[1]), np.arange(SHAPE[2]), indexing="ij")
        position = corner + y[..., None] * SPACING[1] * down + x[..., None] * SPACING[2] * across
        item = Dataset()
        item.SOPClassUID, item.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{k + 1}"
        item.SeriesInstanceUID, item.FrameOfReferenceUID, item.Modality = "1.2.3", "1.2.9", "CT"
        item.PatientName = item.PatientID = item.StudyDescription = CANARY
        item.ImageType, item.SliceThickness = ["ORIGINAL", "PRIMARY", "AXIAL"], 1.25
        item.ImagePositionPatient = [float(value) for value in corner.round(6)]
        item.ImageOrientationPatient = [float(value) for value in np.round([*across, *down], 8)]
        item.PixelSpacing = [SPACING[1], SPACING[2]]
        item.Rows, item.Columns, item.SamplesPerPixel = SHAPE[1], SHAPE[2], 1
        item.PhotometricInterpretation, item.PixelRepresentation = "MONOCHROME2", 0
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
        item.RescaleSlope, item.RescaleIntercept = 1, -1024
        item.PixelData = (anatomy(position) + 1024).astype("<u2").tobytes()
        made.append(item)
    return made


class DicomWriter:
    """Writes below `folder`; elements are written as they are, however wrong."""

    shape = SHAPE
    spacing = SPACING
    canary = CANARY
    anatomy = staticmethod(anatomy)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def garble(self, dataset: Dataset, keyword: str, value: bytes, *, vr: str = "DS") -> None:
        """Puts bytes into an element as they are."""
        dataset[Tag(keyword)] = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True)

    def series(
        self,
        folder: str = "series",
        *,
        row: Sequence[float] = (1, 0, 0),
        column: Sequence[float] = (0, 1, 0),
        edit: Callable[[list[Dataset]], Any] | None = None,
        syntax: str = ExplicitVRLittleEndian,
    ) -> Series:
        """An anatomical CT, changed by `edit`, in files whose names are in no order of position."""
        made = slices(row=row, column=column)
        if edit:
            edit(made)
        names = [f"{(k * 3) % len(made)}{k}.dcm" for k in range(len(made))]
        pairs = zip(names, made, strict=True)
        return Series(files=tuple(sorted(self.write(item, f"{folder}/{name}", syntax=syntax) for name, item in pairs)))

    def contour(self, points: np.ndarray, *, uid: str | None = None) -> Dataset:
        """A closed planar contour through (points, 3) in LPS mm, drawn on an image if `uid` names it."""
        item = Dataset()
        item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
        item.ContourData = [f"{value:.4f}" for value in np.ravel(points)]
        if uid:
            item.ContourImageSequence = [Dataset()]
            item.ContourImageSequence[0].ReferencedSOPInstanceUID = uid
        return item

    def structures(
        self, structures: Mapping[str, Sequence[Dataset]], *, edit: Callable[[Dataset], Any] | None = None
    ) -> Path:
        """An RTSTRUCT of name -> contours on the series above, changed by `edit`."""
        dataset = structure_set(structures)
        if edit:
            edit(dataset)
        return self.write(dataset, "structures.dcm")

    def write(self, dataset: Dataset, name: str, *, syntax: str = ExplicitVRLittleEndian) -> Path:
        """One file."""
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "1.2")
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2")
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        dcmwrite(path, dataset, enforce_file_format=True)
        return path


def structure_set(structures: Mapping[str, Sequence[Dataset]]) -> Dataset:
    """An RTSTRUCT of name -> contours, on the series that `slices` makes."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", "1.2.4"
    dataset.Modality, dataset.PatientName, dataset.PatientID = "RTSTRUCT", CANARY, CANARY
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, series.ContourImageSequence = "1.2.3", []
    for k in range(SHAPE[0]):
        image = Dataset()
        image.ReferencedSOPInstanceUID = f"1.2.3.{k + 1}"
        series.ContourImageSequence.append(image)
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = "1.2.9", [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, "1.2.9"
        drawn.ReferencedROINumber, drawn.ContourSequence = number, list(contours)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    return dataset


@pytest.fixture
def dicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DicomWriter:
    """Writes series and structure sets in the test's own folder."""
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    return DicomWriter(tmp_path)
