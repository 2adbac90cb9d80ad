"""What the DICOM objects drawn on a series share: its slices as they refer to them, its patient and study, and a file written whole."""

import colorsys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from pydicom import dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID

from segsweep.data.dicom_file import open_dicom, sop_class, sop_instance, text
from segsweep.data.readers import Reference
from segsweep.data.storage import appearing
from segsweep.data.structures import LabelTable
from segsweep.errors import InputError, SegsweepError

SOFTWARE = "segsweep"
VERSION = version(SOFTWARE)
SERIES_NUMBER = 1000

# What an object on a series has in common with it: PS3.3, C.7.1.1 (patient), C.7.2.1 (study) and C.7.4.1 (frame of reference).
_DEMANDED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
    "AccessionNumber", "PositionReferenceIndicator",
)  # fmt: skip
_IF_PRESENT = (
    "SpecificCharacterSet", "IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified", "StudyDescription",
)  # fmt: skip
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_PLACE = ("Modality", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
_TEXT_CHARACTERS = 64  # of a value of the kind LO


def source_slices(reference: Reference, *, name: str) -> list[Dataset]:
    """What an object says of the slices that it was drawn on, in the order of z: identity and place, nothing of the patient.

    `name` is the object's, for errors. Raises InputError for files that changed or went away since they were read, for a series that
    lacks a UID, and for an enhanced one.
    """
    if len(set(reference.files)) != len(reference.sop_uids):
        raise InputError(
            f"{name}: the series holds many slices in one file; expected one slice a file; choose another format"
        )
    slices = [_header(path, keywords=(*_UIDS, *_PLACE)) for path in reference.files]
    for item, path, uid in zip(slices, reference.files, reference.sop_uids, strict=True):
        item.SOPClassUID, item.SOPInstanceUID = UID(sop_class(item)), UID(sop_instance(item))
        missing = next((keyword for keyword in _UIDS if not text(item, keyword)), None)
        if missing:
            raise InputError(
                f"{name}: {path.name} has no {missing}; expected one in every slice; choose another format"
            )
        if text(item, "SOPInstanceUID") != uid:
            raise InputError(f"{name}: {path.name} was changed while the scan was segmented; segment it again")
    return slices


def copy_patient(source: Path, *, onto: Dataset) -> None:
    """Give an object the patient and study of the series that a file belongs to: values as they are, letter by letter.

    What DICOM demands and the file lacks stays empty. Raises InputError for a file that cannot be read.
    """
    header = _header(source, keywords=(*_DEMANDED, *_IF_PRESENT, "StudyInstanceUID", "FrameOfReferenceUID"))
    for keyword in _DEMANDED:
        setattr(onto, keyword, "")
    found = (header.get_item(tag) for tag in header.keys())  # noqa: SIM118  iterating itself would decode all values
    onto.update({element.tag: element for element in found if element is not None and element.value})


def dicom_names(table: LabelTable, *, name: str) -> tuple[str, ...]:
    """The structures, if DICOM can hold their names whatever the patient's character set. Raises InputError if not."""
    for structure in table.labels.structures:
        if not structure.isascii() or len(structure) > _TEXT_CHARACTERS or "\\" in structure:
            raise InputError(
                f"{name}: DICOM cannot hold the structure name {structure!r}; expected 1 to {_TEXT_CHARACTERS} ASCII characters "
                "without a backslash; choose another format"
            )
    return table.labels.structures


def colour(index: int) -> tuple[int, int, int]:
    """Red, green and blue from 0 to 255; neighbours are far apart on the colour wheel."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.7, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


@contextmanager
def composing(name: str) -> Iterator[None]:
    """Turns whatever the libraries raise while they compose an object, which may quote a patient, into an InputError."""
    try:
        yield
    except (SegsweepError, OSError, MemoryError):
        raise
    except Exception:
        raise InputError(
            f"{name} cannot be made: the headers of its series do not fit the standard; correct them or choose another format"
        ) from None


def write_dicom(dataset: Dataset, *, path: Path) -> None:
    """The object as a file, which is there complete or not at all. Raises InputError when the folder cannot be written."""
    with appearing(path) as unfinished, composing(path.name):
        dcmwrite(unfinished, dataset, enforce_file_format=True)


def _header(path: Path, *, keywords: tuple[str, ...]) -> Dataset:
    """Those elements of a file that it has, as bytes where they are text, so that they can be written again as they are."""
    header, copied = open_dicom(path, tags=list(keywords)), Dataset()
    copied.file_meta = header.file_meta
    for keyword in keywords:
        tag, kind = Tag(keyword), dictionary_VR(keyword)
        element = header.get_item(tag)
        if isinstance(element, RawDataElement) and kind != "SQ":
            value = element.value or b""
            copied[tag] = RawDataElement(tag, kind, len(value), value, 0, False, True)
        elif element is not None:
            copied[tag] = header[tag]
    return copied
