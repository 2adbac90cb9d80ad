"""Writes RTSTRUCT: the outlines of structures in the slice planes of the DICOM series that they were found on."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
from contourpy import LineType, contour_generator
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from segsweep.data.dicom_file import numbers
from segsweep.data.dicom_writing import (
    SERIES_NUMBER,
    SOFTWARE,
    VERSION,
    colour,
    composing,
    copy_patient,
    dicom_names,
    source_slices,
    write_dicom,
)
from segsweep.data.geometry import Geometry
from segsweep.data.readers import Reference
from segsweep.data.structures import LabelTable

# The class by which structure sets refer to a study; it is retired, and nothing has taken its place (PS3.3, C.8.8.5).
_STUDY = "1.2.840.10008.3.1.2.3.1"


def write_rtstruct(label: NDArray, *, table: LabelTable, geometry: Geometry, reference: Reference, path: Path) -> None:
    """One region of interest a structure, in the table's order; one that was not found has no contours.

    `label` holds atom values (z, y, x) on the grid of the series itself. Contours are closed and lie in the slices' planes, halfway
    between the centres of the voxels inside and outside, so that whoever asks which centres lie inside gets back the same voxels; at
    corners they cut off what lies beyond those half-way points. Holes, and parts inside of holes, are contours of their own, to be
    filled by the even-odd rule. Raises InputError for a series or names that DICOM objects cannot refer to.
    """
    name = path.name
    names = dicom_names(table, name=name)
    slices = source_slices(reference, name=name)
    with composing(name):
        dataset = _structure_set(slices)
        corners = np.stack([numbers(item, "ImagePositionPatient", name=name, count=3) for item in slices])
        for index, structure in enumerate(names):
            found = _contours(table.mask(label, structure=structure), geometry=geometry, corners=corners, slices=slices)
            _add(dataset, number=index + 1, structure=structure, contours=list(found))
        copy_patient(reference.files[0], onto=dataset)
    write_dicom(dataset, path=path)


def outlines(plane: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed contours (points, 2) of row and column around what is set, halfway between centres; the last point joins the first."""
    rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
    if not len(rows):
        return []
    part = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # What touches the border is closed half a voxel beyond it.
    lines = contour_generator(z=np.pad(part, 1).astype(np.float64), line_type=LineType.Separate).lines(0.5)
    first = np.array([rows[0] - 1, columns[0] - 1])
    return [_corners(np.asarray(line)[:-1, ::-1] + first) for line in lines]


def _corners(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without those that lie between others on a straight line: whole and half numbers, so that this is exact."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _contours(
    mask: NDArray[np.bool_], *, geometry: Geometry, corners: NDArray[np.float64], slices: list[Dataset]
) -> Iterator[Dataset]:
    """`corners` are the positions (slices, 3) in LPS mm that the slices' own headers give their first pixels."""
    along = geometry.matrix[:, 1:]
    for index in np.flatnonzero(mask.any(axis=(1, 2))):
        for outline in outlines(mask[index]):
            item = Dataset()
            item.ContourImageSequence = [_image(slices[index])]
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(outline)
            points = "\\".join(f"{value:.3f}" for value in (corners[index] + outline @ along.T).ravel())
            value = (points + " " * (len(points) % 2)).encode()
            # Bytes as they will stand in the file: pydicom would make an object of each of millions of numbers.
            item[Tag("ContourData")] = RawDataElement(Tag("ContourData"), "DS", len(value), value, 0, True, True)
            yield item


def _add(dataset: Dataset, *, number: int, structure: str, contours: list[Dataset]) -> None:
    roi, drawn, observation = Dataset(), Dataset(), Dataset()
    roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, structure, "AUTOMATIC"
    roi.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
    drawn.ReferencedROINumber, drawn.ROIDisplayColor = number, list(colour(number - 1))
    if contours:
        drawn.ContourSequence = contours
    observation.ObservationNumber, observation.ReferencedROINumber = number, number
    observation.RTROIInterpretedType = observation.ROIInterpreter = ""
    dataset.StructureSetROISequence.append(roi)
    dataset.ROIContourSequence.append(drawn)
    dataset.RTROIObservationsSequence.append(observation)


def _structure_set(slices: list[Dataset]) -> Dataset:
    """A structure set without structures, on all slices."""
    dataset, now = Dataset(), datetime.now()
    dataset.file_meta = FileMetaDataset()
    # Explicit lengths have 16 bits: the points of a long contour would not fit.
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = "RTSTRUCT", generate_uid(), SERIES_NUMBER
    dataset.OperatorsName, dataset.InstanceNumber, dataset.ApprovalStatus = "", 1, "UNAPPROVED"
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.SoftwareVersions = SOFTWARE, SOFTWARE, VERSION
    dataset.StructureSetLabel = SOFTWARE
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
    dataset.ReferencedFrameOfReferenceSequence = [_frame(slices)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    return dataset


def _frame(slices: list[Dataset]) -> Dataset:
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = slices[0].SeriesInstanceUID
    series.ContourImageSequence = [_image(item) for item in slices]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = UID(_STUDY), slices[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    return item
