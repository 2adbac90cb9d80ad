"""Opens DICOM files and takes checked values out of them; no message ever quotes what a file holds, for it may name a patient."""

import logging
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from segsweep.data.intake import MAX_BYTES
from segsweep.errors import InputError

# A structure set of a whole body with two hundred structures has about 100 MB of text; only what has many frames is larger.
MAX_FILE_BYTES = 2**29
# The kinds of scans with all slices in one file, with what each has for a modality; then BINARY, FRACTIONAL and LABELMAP SEG.
ENHANCED = {
    f"1.2.840.10008.5.1.4.1.1.{end}": modality
    for end, modality in (("2.1", "CT"), ("2.2", "CT"), ("4.1", "MR"), ("4.4", "MR"), ("128.1", "PT"), ("130", "PT"))
}
_OF_MANY_FRAMES = {*ENHANCED, "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}

_UNDEFINED = 0xFFFFFFFF
_OF_MANY = tuple(
    Tag(keyword)
    for keyword in (
        "NumberOfFrames",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "PixelData",
    )
)
# 128 bytes of anything, DICM, and the element that says how many bytes of preface follow it.
_PREFACE_BYTES = 128 + 4 + 12

# Python keeps one list of warnings for all threads: one that reads must not take those of another that reads or writes.
_ONE_AT_A_TIME = threading.Lock()

# pydicom's warnings quote values on the terminal and in log files; what matters is checked here.
warnings.filterwarnings("ignore", module="pydicom")
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def is_dicom(path: Path) -> bool:
    """Whether the file starts as a DICOM file does: 128 bytes of anything, then DICM. Raises InputError for one without access."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror}); expected a readable file; check it") from None


def open_dicom(path: Path, *, tags: list[str] | None = None) -> Dataset:
    """The file's dataset, or only the elements of these names, without the pixels.

    Raises InputError for a file that is absent, no DICOM file, damaged, absurdly large, or deflated as a whole (a small file may
    then unpack to any size).
    """
    if not path.is_file():
        raise InputError(f"{path.name} is not there (in {path.parent}); expected a DICOM file; check the path")
    try:
        size = path.stat().st_size
        preface = read_file_meta_info(path)
        most = MAX_BYTES if preface.get("MediaStorageSOPClassUID") in _OF_MANY_FRAMES else MAX_FILE_BYTES
        if size > most:
            raise InputError(f"{path.name} has {size} bytes; expected at most {most}; export it again")
        if size < _PREFACE_BYTES + int(preface.get("FileMetaInformationGroupLength") or 0):
            raise InputError(f"{path.name} is cut off; expected a whole DICOM file; copy or export it again")
        if preface.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise InputError(f"{path.name} is deflated as a whole; expected it without; export it uncompressed")
        with _ONE_AT_A_TIME, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            dataset = dcmread(path, specific_tags=tags, stop_before_pixels=tags is not None)  # type: ignore[arg-type]
        if tags is None and (_ends_early(dataset) or any(" in file " in str(warning.message) for warning in warned)):
            raise InputError(f"{path.name} is cut off; expected a whole DICOM file; copy or export it again")
        return dataset
    except InputError:
        raise
    except InvalidDicomError:
        raise InputError(f"{path.name} is no DICOM file; expected one; remove it or export the series again") from None
    except Exception:  # a damaged file makes pydicom raise whatever its parser trips over, with values in the message
        raise InputError(
            f"{path.name} cannot be read; expected an intact DICOM file; copy or export it again"
        ) from None


def _ends_early(dataset: Dataset) -> bool:
    """Whether a value is shorter than stated: pydicom takes what there is, and only warns of a sequence that does not end."""
    elements = (dataset.get_item(tag) for tag in dataset.keys())  # noqa: SIM118  iterating itself would decode all values
    return any(
        isinstance(element, RawDataElement)
        and element.length != _UNDEFINED
        and len(element.value or b"") != element.length
        for element in elements
    )


def text(item: Dataset, keyword: str) -> str:
    """A value as text; empty when it is missing or garbled."""
    try:
        value = item.get(keyword)
    except Exception:  # see open_dicom
        value = None
    return "" if value is None else str(value).strip()


def sop_class(dataset: Dataset) -> str:
    """UID of what kind of object the file holds.

    Some tools that remove identifiers leave it in the file's preface alone; in a file that is cut off it may be cut off as well.
    """
    return _or_preface(text(dataset, "SOPClassUID"), preface=text(dataset.file_meta, "MediaStorageSOPClassUID"))


def sop_instance(dataset: Dataset) -> str:
    """UID of the object itself, from where its class is found too."""
    return _or_preface(text(dataset, "SOPInstanceUID"), preface=text(dataset.file_meta, "MediaStorageSOPInstanceUID"))


def _or_preface(found: str, *, preface: str) -> str:
    return preface if preface.startswith(found) else found


def items(item: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none when it is missing or garbled."""
    try:
        found = item.get(keyword)
    except Exception:  # see open_dicom
        found = None
    return list(found) if isinstance(found, Sequence) else []


def numbers(item: Dataset, keyword: str, *, name: str, count: int | None = None) -> NDArray[np.float64]:
    """The finite numbers of an element, `count` of them. Raises InputError when it is missing, garbled, or has another count."""
    try:
        value: Any = item.get(keyword)
        values = np.atleast_1d(np.asarray([] if value is None else value, dtype=np.float64))
    except Exception:  # see open_dicom
        values = np.array([np.nan])
    if len(values) == 0:
        raise InputError(f"{name}: {keyword} is missing; expected it in every file; export it again")
    if not np.isfinite(values).all() or count not in (None, len(values)):
        expected = "finite numbers" if count is None else f"{count} finite number{'s' * (count > 1)}"
        raise InputError(f"{name}: {keyword} is garbled or not finite; expected {expected}; export it again")
    return values


def whole(item: Dataset, keyword: str, *, name: str, low: int, high: int) -> int:
    """One whole number from `low` to `high`. Raises InputError for anything else."""
    (value,) = numbers(item, keyword, name=name, count=1)
    if not low <= value <= high or value != int(value):
        expected = str(low) if low == high else f"{low} to {high}"
        raise InputError(f"{name}: {keyword} is {value:g}; expected {expected}; export it again")
    return int(value)


def framed(dataset: Dataset, *, index: int, count: int, name: str) -> Dataset:
    """The dataset with one frame of its pixels, if it has pixels, and without what describes many. Raises InputError for damage."""
    frame = Dataset()
    frame.file_meta = dataset.file_meta
    for tag in dataset.keys():  # noqa: SIM118  iterating itself would decode all values
        if tag not in _OF_MANY:
            frame[tag] = dataset.get_item(tag)
    data = dataset.get("PixelData")
    if data is None:
        return frame
    try:
        if UID(dataset.file_meta.TransferSyntaxUID).is_encapsulated:
            frame.PixelData = encapsulate([get_frame(data, index, number_of_frames=count)])
        else:
            size = len(data) // count
            frame.PixelData = data[index * size : (index + 1) * size]
    except Exception:  # see open_dicom
        raise InputError(
            f"{name}: frame {index + 1} of {count} is not there; expected it; copy or export it again"
        ) from None
    return frame
