"""Finds the RTSTRUCT and SEG files of a folder and the series that they were drawn on; knows patients by keyed hashes alone."""

from dataclasses import dataclass, field
from pathlib import Path

from segsweep.data.dicom_file import is_dicom, items, open_dicom, sop_class, text
from segsweep.data.layouts import files_below
from segsweep.data.pseudonyms import pseudonym
from segsweep.errors import InputError

DRAWN = ("RTSTRUCT", "SEG")
# A file that was cut off before its modality still says what it is: a structure set, a segmentation, a label map.
_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("481.3", "66.4", "66.7"))
# What a file says early on about the images that it was drawn on.
_REFERENCES = [
    "ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence", "FrameOfReferenceUID", "StructureSetROISequence",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DrawnObject:
    """An RTSTRUCT or SEG file with the UIDs of what it was drawn on: identifiers, for pairing only, never to be stored.

    A damaged file has those that can still be read, often none.
    """

    path: Path
    frames_of_reference: frozenset[str] = field(repr=False)
    series_uids: frozenset[str] = field(repr=False)
    sop_uids: frozenset[str] = field(repr=False)


def modality_of(path: Path) -> str:
    """The modality of a DICOM file (`CT`, `SEG`); empty for any other file. Raises InputError for a damaged DICOM file."""
    return text(open_dicom(path, tags=["Modality"]), "Modality") if is_dicom(path) else ""


def find_drawn(folder: Path) -> tuple[DrawnObject, ...]:
    """Every RTSTRUCT and SEG below a folder, by path, damaged ones too where they still say that they are one; hidden files are none."""
    return tuple(_drawn(path) for path in files_below(folder) if _is_drawn(path))


def patient_pseudonym(path: Path, *, key: bytes) -> str:
    """A keyed hash of the patient of a DICOM file; of the study where the file names no patient. Raises InputError for a damaged one."""
    header = open_dicom(path, tags=["PatientID", "StudyInstanceUID"])
    return pseudonym("patient", text(header, "PatientID") or text(header, "StudyInstanceUID"), key=key)


def _is_drawn(path: Path) -> bool:
    if not is_dicom(path):
        return False
    try:
        header = open_dicom(path, tags=["SOPClassUID", "Modality"])
    except InputError:  # its header does not even say what it is: `find_series` finds it, as a file of no series
        return False
    return text(header, "Modality") in DRAWN or sop_class(header) in _CLASSES


def _drawn(path: Path) -> DrawnObject:
    try:
        dataset = open_dicom(path, tags=_REFERENCES)
    except InputError:
        return DrawnObject(path=path, frames_of_reference=frozenset(), series_uids=frozenset(), sop_uids=frozenset())
    frames = items(dataset, "ReferencedFrameOfReferenceSequence")
    studies = [study for frame in frames for study in items(frame, "RTReferencedStudySequence")]
    series = [part for study in studies for part in items(study, "RTReferencedSeriesSequence")]
    series += items(dataset, "ReferencedSeriesSequence")
    images = [
        image
        for part in series
        for keyword in ("ContourImageSequence", "ReferencedInstanceSequence")
        for image in items(part, keyword)
    ]
    named = [(dataset, "FrameOfReferenceUID"), *((frame, "FrameOfReferenceUID") for frame in frames)]
    named += [(roi, "ReferencedFrameOfReferenceUID") for roi in items(dataset, "StructureSetROISequence")]
    return DrawnObject(
        path=path,
        frames_of_reference=frozenset(text(item, keyword) for item, keyword in named) - {""},
        series_uids=frozenset(text(part, "SeriesInstanceUID") for part in series) - {""},
        sop_uids=frozenset(text(image, "ReferencedSOPInstanceUID") for image in images) - {""},
    )
