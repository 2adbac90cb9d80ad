"""Writes DICOM SEG: one binary segment a structure, which may overlap, on the slices of the DICOM series that they were found on."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

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

# For all threads and for good: warnings that are held back for a while in one thread would be missed in the others, which read.
warnings.filterwarnings("ignore", module="highdicom")
logging.getLogger("highdicom").setLevel(logging.CRITICAL)

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription

# highdicom demands these of every source image. It never sees the patient's: it would quote some of them in its messages.
_BLANK = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)


def write_dicom_seg(label: NDArray, *, table: LabelTable, geometry: Geometry, reference: Reference, path: Path) -> None:
    """One segment a structure, in the table's order; a frame for each of its slices. One that was not found has no frames.

    `label` holds atom values (z, y, x) on the grid of the series itself. Raises InputError for a series or names that DICOM objects
    cannot refer to.
    """
    import highdicom  # noqa: PLC0415  takes a second and 100 MB, which other formats and verbs do without

    name = path.name
    names = dicom_names(table, name=name)
    slices = source_slices(reference, name=name)
    low, high = _extent(label)
    with composing(name):
        dataset = highdicom.seg.Segmentation(
            source_images=[_blank(item, like=slices[0], geometry=geometry) for item in slices[low:high]],
            pixel_array=_segments(label[low:high], table=table),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_description(number, label=each) for number, each in enumerate(names, start=1)],
            series_instance_uid=generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=SOFTWARE,
            manufacturer_model_name=SOFTWARE,
            software_versions=VERSION,
            device_serial_number=VERSION,
            content_label="SEGMENTATION",
            series_description=SOFTWARE,
        )
        copy_patient(reference.files[0], onto=dataset)
    write_dicom(dataset, path=path)


def _extent(label: NDArray) -> tuple[int, int]:
    """The slices from the first to the last with a structure; the first slice alone when there is none, since a SEG has frames."""
    found = np.flatnonzero(label.any(axis=(1, 2)))
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 1)


def _segments(label: NDArray, *, table: LabelTable) -> NDArray:
    """Segment numbers (z, y, x) where no voxel has two structures, which is small; else masks (z, y, x, segment)."""
    member = table.membership
    present = np.unique(label)
    if member[present].sum(axis=1).max() <= 1:
        numbers = np.where(member.any(axis=1), member.argmax(axis=1) + 1, 0)
        return numbers.astype(np.min_scalar_type(member.shape[1]))[label]
    masks = np.empty((member.shape[1], *label.shape), dtype=bool)
    for index in range(len(masks)):
        masks[index] = member[:, index][label]
    return np.moveaxis(masks, 0, -1)


def _blank(source: Dataset, *, like: Dataset, geometry: Geometry) -> Dataset:
    """A slice for highdicom, of nobody. Its thickness is the distance of the slices, so that segments have no gaps."""
    for keyword in _BLANK:
        setattr(source, keyword, "")
    source.Rows, source.Columns = geometry.shape[1:]
    source.SliceThickness = source.SpacingBetweenSlices = round(geometry.spacing[0], 6)
    # Within rounding the same in all slices; highdicom wants them so to the letter.
    for keyword in ("ImageOrientationPatient", "PixelSpacing", "StudyInstanceUID"):
        setattr(source, keyword, like[keyword].value)
    return source


def _description(number: int, *, label: str) -> "SegmentDescription":
    """Codes as 3D Slicer gives a segment of which it knows nothing but the name."""
    import highdicom  # noqa: PLC0415  see above
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=SOFTWARE, version=VERSION, family=codes.DCM.ArtificialIntelligence
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*colour(number - 1)),
    )
