"""DICOM series in a folder tree as cases, each named by its folder, or by a pseudonym where the folder's name tells who the patient is."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segsweep.data.case import CASE_ID, Series
from segsweep.data.dicom import find_series
from segsweep.data.dicom_file import Dataset, open_dicom, text
from segsweep.data.dicom_objects import patient_pseudonym
from segsweep.data.pseudonyms import project_key, pseudonym
from segsweep.errors import InputError

_IDENTIFYING = ("PatientName", "PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber")
_TAGS = ["SeriesInstanceUID", "Modality", "PatientIdentityRemoved", *_IDENTIFYING]
# Shorter parts of a name ("Li") count where they stand alone, longer ones anywhere in a folder's name.
_LONG = 4


@dataclass(frozen=True, kw_only=True)
class NamedSeries:
    """A series and its case id, which is `hidden` in a pseudonym where the path of its folder tells too much."""

    case_id: str
    series: Series
    hidden: bool


@dataclass(frozen=True, kw_only=True)
class _Found:
    series: Series
    folder: Path  # that holds all of its files
    header: Dataset  # of its first file; empty when it cannot be read

    @property
    def uid(self) -> str:
        return text(self.header, "SeriesInstanceUID")


def name_series(root: Path, *, modality: str = "") -> tuple[NamedSeries, ...]:
    """Every series of a modality (any by default) in a folder and below, sorted by case id. Only headers are read.

    The id is the path of the series' folder from `root`, joined by "_" (of `root` itself, its name), with "_" for what an id cannot
    hold, and a pseudonym at its end where several series share it. Where that path holds the patient's name, numbers or birth date
    as the header gives them, and the header does not say that the patient's identity was removed, the id is the pseudonym alone: the
    one that the dataset recipe `dicom_rtstruct` gives the series. Files that do not say of which series they are belong to the only
    series in their folder, which then fails when it is read rather than lose a slice; elsewhere they are a series that fails.

    Raises InputError for a folder that is not there and for a link that leads out of it.
    """
    found = [_found(series) for series in find_series(root)]
    chosen = _with_strays([one for one in found if not modality or text(one.header, "Modality") in ("", modality)])
    paths = ["/".join(one.folder.relative_to(root).parts) or root.resolve().name for one in chosen]
    counts = Counter(map(_cleaned, paths))
    named = [_named(one, path=path, alone=counts[_cleaned(path)] == 1) for one, path in zip(chosen, paths, strict=True)]
    return tuple(sorted(named, key=lambda one: one.case_id))


def _found(series: Series) -> _Found:
    folder = Path(os.path.commonpath([path.parent for path in series.files]))
    try:
        return _Found(series=series, folder=folder, header=open_dicom(series.files[0], tags=_TAGS))
    except InputError:  # reading the case will say so
        return _Found(series=series, folder=folder, header=Dataset())


def _with_strays(found: Sequence[_Found]) -> list[_Found]:
    """The series, those that are alone in their folder together with the files of no series beside them."""
    homes = Counter(one.folder for one in found if one.uid)
    strays = {one.folder: one.series.files for one in found if not one.uid and homes[one.folder] == 1}
    return [
        _Found(
            series=Series(files=(*one.series.files, *(strays.get(one.folder, ()) if one.uid else ()))),
            folder=one.folder,
            header=one.header,
        )
        for one in found
        if one.uid or one.folder not in strays
    ]


def _cleaned(path: str) -> str:
    """What an id can hold of a path; empty when that is nothing."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", path).strip("._-")
    return cleaned if CASE_ID.fullmatch(cleaned) else ""


def _named(one: _Found, *, path: str, alone: bool) -> NamedSeries:
    words = _cleaned(path)
    hidden = not words or _tells(path, header=one.header)
    case_id = words
    if hidden or not alone:
        own = _pseudonym(one, path=path)
        case_id = own if hidden else f"{words[:100]}_{own}"
    return NamedSeries(case_id=case_id, series=one.series, hidden=hidden)


def _pseudonym(one: _Found, *, path: str) -> str:
    key = project_key()
    if not one.uid:
        return pseudonym(path, key=key)
    return pseudonym(patient_pseudonym(one.series.files[0], key=key), one.uid, key=key)


def _tells(path: str, *, header: Dataset) -> bool:
    """Whether a path holds something by which the header knows the patient."""
    if text(header, "PatientIdentityRemoved") == "YES":
        return False
    values = [text(header, keyword) for keyword in _IDENTIFYING]
    known = {part for value in values for part in (*_parts(value), "".join(_parts(value)))} - {""}
    said = _parts(path)
    return any(part in said or (len(part) >= _LONG and part in "".join(said)) for part in known)


def _parts(words: str) -> list[str]:
    return re.findall(r"[^\W_]+", words.casefold())
