"""Finds the RTSTRUCT and SEG files of a folder and the series that they were drawn on; knows patients by keyed hashes alone."""

from dataclasses import dataclass, field
from pathlib import Path

from segsweep.data.dicom_file import is_dicom, open_dicom, text
from segsweep.data.pseudonyms import pseudonym
from segsweep.errors import InputError

DRAWN = ("RTSTRUCT", "SEG")

_DRAWN_ON = ["FrameOfReferenceUID", "ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence"]


@dataclass(frozen=True, kw_only=True)
class DrawnObject:
    """An RTSTRUCT or SEG file with the UIDs of what it was drawn on: identifiers, for pairing only, never to be stored."""

    path: Path
    frames_of_reference: frozenset[str] = field(repr=False)
    series_uids: frozenset[str] = field(repr=False)
    sop_uids: frozenset[str] = field(repr=False)


def modality(path: Path) -> str:
    """The modality of a DICOM file (`CT`, `SEG`); empty for any other file. Raises InputError for a damaged DICOM file."""
    return text(open_dicom(path, tags=["Modality"]), "Modality") if is_dicom(path) else ""


def find_drawn(folder: Path) -> tuple[DrawnObject, ...]:
    """Every RTSTRUCT and SEG below a folder, by path. Raises InputError for a damaged one."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(_drawn(path) for path in paths if modality(path) in DRAWN)


def patient_pseudonym(path: Path, *, key: bytes) -> str:
    """A keyed hash of the patient of a DICOM file; of the study where the file names no patient. Raises InputError for a damaged one."""
    header = open_dicom(path, tags=["PatientID", "StudyInstanceUID"])
    return pseudonym("patient", text(header, "PatientID") or text(header, "StudyInstanceUID"), key=key)


def _drawn(path: Path) -> DrawnObject:
    """The frame of reference of an RTSTRUCT stands inside a sequence, that of a SEG beside the others."""
    uids: dict[str, set[str]] = {
        "FrameOfReferenceUID": set(),
        "SeriesInstanceUID": set(),
        "ReferencedSOPInstanceUID": set(),
    }
    try:
        for element in open_dicom(path, tags=_DRAWN_ON).iterall():
            if element.keyword in uids:
                uids[element.keyword].add(str(element.value))
    except InputError:
        raise
    except (
        Exception
    ):  # a damaged sequence makes pydicom raise whatever its parser trips over, with values in the message
        raise InputError(
            f"{path.name} cannot be read; expected an intact DICOM file; copy or export it again"
        ) from None
    return DrawnObject(
        path=path,
        frames_of_reference=frozenset(uids["FrameOfReferenceUID"]),
        series_uids=frozenset(uids["SeriesInstanceUID"]),
        sop_uids=frozenset(uids["ReferencedSOPInstanceUID"]),
    )
