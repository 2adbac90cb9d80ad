"""Finds the RTSTRUCT and SEG files of a folder and the series that they were drawn on; knows patients by keyed hashes alone."""

from dataclasses import dataclass, field
from pathlib import Path

from segsweep.data.dicom_file import is_dicom, items, open_dicom, text
from segsweep.data.pseudonyms import pseudonym

DRAWN = ("RTSTRUCT", "SEG")


@dataclass(frozen=True, kw_only=True)
class DrawnObject:
    """An RTSTRUCT or SEG file with the UIDs of what it was drawn on: identifiers, for pairing only, never to be stored."""

    path: Path
    frames_of_reference: frozenset[str] = field(repr=False)
    series_uids: frozenset[str] = field(repr=False)
    sop_uids: frozenset[str] = field(repr=False)


def modality_of(path: Path) -> str:
    """The modality of a DICOM file (`CT`, `SEG`); empty for any other file. Raises InputError for a damaged DICOM file."""
    return text(open_dicom(path, tags=["Modality"]), "Modality") if is_dicom(path) else ""


def find_drawn(folder: Path) -> tuple[DrawnObject, ...]:
    """Every RTSTRUCT and SEG below a folder, by path. Raises InputError for a damaged one."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(_drawn(path) for path in paths if modality_of(path) in DRAWN)


def patient_pseudonym(path: Path, *, key: bytes) -> str:
    """A keyed hash of the patient of a DICOM file; of the study where the file names no patient. Raises InputError for a damaged one."""
    header = open_dicom(path, tags=["PatientID", "StudyInstanceUID"])
    return pseudonym("patient", text(header, "PatientID") or text(header, "StudyInstanceUID"), key=key)


def _drawn(path: Path) -> DrawnObject:
    """The file is read as a whole, so that one that is cut off is not taken for one that refers to little."""
    dataset = open_dicom(path)
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
