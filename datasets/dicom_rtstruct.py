"""DICOM as a clinic or an archive exports it: any tree of folders with image series and the RTSTRUCT or SEG files drawn on them.

Each CT (or MR) series that such a file was drawn on is a case; other series of that modality are unlabelled cases. Cases, and the
patients whose cases stay in one fold, are known by keyed hashes (data/pseudonyms.py): no identifier goes on. Two files in `raw`
may say more. `structures.json` maps structures to spellings of their names in the files, upper and lower case alike: whole names,
or regular expressions between slashes. `pairs` (else found by L and R, left and right) and `files` (a pattern of the RTSTRUCT and
SEG files that count, by their path in `raw`; else all) may be left out:

    {"structures": {"Brainstem": ["brain stem", "/bs.*/"], "Parotid_L": ["/par.* l(eft)?/"], "Parotid_R": ["/par.* r(ight)?/"]},
     "pairs": [["Parotid_L", "Parotid_R"]], "files": "*approved*"}

Without it every name in the files is a structure, signs aside, and names that cannot be told apart so are refused: look at these
names before the store goes to others, for people typed them.
`cases.json` names cases in words of your own, by the folder of their series: {"patient one/CT": "case_01"}.
"""

import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from segsweep.data.case import CaseSource, SegmentFile, Series
from segsweep.data.dicom import SeriesInfo, describe_series, find_series
from segsweep.data.dicom_objects import DrawnObject, find_drawn, modality_of, patient_pseudonym
from segsweep.data.layouts import demand_names, entry, pairs_of, read_json, stated_pairs
from segsweep.data.pseudonyms import project_key, pseudonym
from segsweep.data.readers import file_digest
from segsweep.data.segments import segment_names
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

MODALITIES = ("CT", "MR")
STRUCTURES, CASES = "structures.json", "cases.json"


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """An RTSTRUCT or SEG file, and the names in it (none when it is damaged: reading it as part of its case will say so)."""

    drawn: DrawnObject
    names: tuple[str, ...] = ()
    damaged: bool = False


@dataclass(frozen=True, kw_only=True)
class _Found:
    """One series with what was drawn on it."""

    series: Series
    info: SeriesInfo
    drawings: tuple[_Drawing, ...]


@dataclass(frozen=True, kw_only=True)
class _Survey:
    """What `raw` holds: the labels, each structure's spellings, the series of one modality, series with unusable headers, and
    drawings so damaged that they do not say on what."""

    labels: LabelSet
    spellings: Mapping[str, re.Pattern[str]]
    modality: str
    found: tuple[_Found, ...]
    unusable: tuple[Series, ...]
    stray: tuple[Path, ...]


def labels(raw: Path) -> LabelSet:
    """The structures of `structures.json`, else all names in the files, sorted. Raises InputError for what cannot be used."""
    return _survey(raw).labels


def channels(raw: Path) -> tuple[str, ...]:
    """The modality of the series that were drawn on (`CT`). Raises InputError when there is no series."""
    return (_survey(raw).modality,)


def cases(raw: Path) -> list[CaseSource]:
    """One case a series; `annotated` are the structures that its files name. What is damaged fails when its case is read.

    Raises InputError when two files name the same structure on one series, and for a name in `cases.json` without a series.
    """
    survey, key = _survey(raw), project_key()
    named = _case_names(raw, survey=survey)
    homes = Counter(_folder(found.series, raw=raw) for found in survey.found)
    strays = {path: _owner(path, survey=survey) for path in survey.stray}
    sources, damaged = [], defaultdict(list)
    for series in survey.unusable:
        # Beside one series alone, these are slices of it that cannot be read: its case shall fail, not lose them.
        damaged[_folder(series, raw=raw)] += series.files
    for found in survey.found:
        folder = _folder(found.series, raw=raw)
        extra = damaged.pop(folder) if homes[folder] == 1 and folder in damaged else ()
        source = _source(found, survey=survey, raw=raw, name=named.get(folder, ""), key=key)
        drawn = tuple(SegmentFile(path=path, names={}) for path, owner in strays.items() if owner is found)
        images = (Series(files=(*found.series.files, *extra)),)
        sources.append(replace(source, images=images, labels=(*source.labels, *drawn)))
    for path in (path for path, owner in strays.items() if not owner):
        damaged[path.relative_to(raw).as_posix()].append(path)
    for place, files in damaged.items():
        sources.append(CaseSource(case_id=pseudonym(place, key=key), images=(Series(files=tuple(files)),)))
    return sources


def _owner(path: Path, *, survey: _Survey) -> _Found | None:
    """The series that a drawing was made on which does not say so: the only one in or below its folder, or beside that."""
    everything = [*survey.found, *survey.unusable]
    for folder in (path.parent, path.parent.parent):
        near = [one for one in everything if _first(one).is_relative_to(folder)]
        if near:
            return near[0] if len(near) == 1 and isinstance(near[0], _Found) else None
    return None


def _first(one: _Found | Series) -> Path:
    return (one.series if isinstance(one, _Found) else one).files[0]


def _source(found: _Found, *, survey: _Survey, raw: Path, name: str, key: bytes) -> CaseSource:
    first = found.series.files[0]
    patient = patient_pseudonym(first, key=key)
    files = [
        SegmentFile(path=drawing.drawn.path, names=_recognised(drawing, survey=survey)) for drawing in found.drawings
    ]
    holders: dict[str, Path] = {}
    for file in files:
        for structure in sorted(set(file.names.values())):
            other = holders.setdefault(structure, file.path)
            if other != file.path:
                raise InputError(
                    f"{structure} is in {other.relative_to(raw)} and in {file.path.relative_to(raw)}, drawn on the same series; "
                    f"expected one file for it; choose with 'files' in {STRUCTURES} or take one away"
                )
    return CaseSource(
        case_id=name or pseudonym(patient, found.info.uid, key=key),
        images=(found.series,),
        labels=tuple(
            file for file, drawing in zip(files, found.drawings, strict=True) if file.names or not drawing.names
        ),
        annotated=tuple(structure for structure in survey.labels.structures if structure in holders),
        group=patient,
    )


def _recognised(drawing: _Drawing, *, survey: _Survey) -> dict[str, str]:
    """The names in a file that a structure is spelt like. Raises InputError for a name that two structures claim."""
    found: dict[str, str] = {}
    for name in drawing.names:
        matches = [structure for structure, spelling in survey.spellings.items() if spelling.fullmatch(name)]
        if len(matches) > 1:
            raise InputError(
                f"{STRUCTURES}: {matches[0]!r} and {matches[1]!r} have spellings that both fit a name in "
                f"{drawing.drawn.path.name}; expected one; correct them"
            )
        if matches:
            found[name] = matches[0]
    return found


def _survey(raw: Path) -> _Survey:
    """Headers are read once for as long as no file below `raw` changes."""
    stats = ((str(path), path.stat()) for path in sorted(raw.rglob("*")) if path.is_file())
    return _surveyed(raw, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


@lru_cache(maxsize=1)
def _surveyed(raw: Path, files: tuple[tuple[str, int, int], ...]) -> _Survey:  # noqa: ARG001  a change in `files` reads again
    stated = _stated(raw)
    wanted = entry(stated, key="files", kind=str, file=STRUCTURES) if "files" in stated else "*"
    drawn = [one for one in find_drawn(raw) if fnmatch.fnmatch(one.path.relative_to(raw).as_posix(), wanted)]
    drawings = [_drawing(one) for one in _without_copies(drawn)]
    described = [(series, _info(series)) for series in find_series(raw)]
    found = _paired([(series, info) for series, info in described if info], drawings=drawings)
    modality = _modality(found, raw=raw)
    chosen = tuple(one for one in found if one.info.modality == modality)
    paired = {part.drawn.path for one in found for part in one.drawings}
    stray = [part.drawn.path for part in drawings if part.damaged and part.drawn.path not in paired]
    whole = all(info for _, info in described)
    if whole and len(drawings) > len(stray) and not any(one.drawings for one in chosen):
        raise InputError(
            f"{raw}: no RTSTRUCT or SEG was drawn on a series that is here; expected the series beside them; copy these too"
        )
    if not stated:
        _demand_distinct([part for one in chosen for part in one.drawings])
    spellings = _spellings(stated, names={name for one in chosen for part in one.drawings for name in part.names})
    structures = tuple(spellings)
    unusable = [series for series, info in described if not info and _may_be(series.files[0], modality=modality)]
    # A file that says nothing, in a folder without a series, may as well have been a drawing.
    folders = {one.series.files[0].parent for one in chosen}
    lone = [
        series.files[0]
        for series in unusable
        if len(series.files) == 1 and _may_be(series.files[0], modality="") and series.files[0].parent not in folders
    ]
    pairs = stated_pairs(stated, file=STRUCTURES) if "pairs" in stated else pairs_of(structures)
    return _Survey(
        labels=LabelSet(structures=structures, pairs=pairs),
        spellings=spellings,
        modality=modality,
        found=chosen,
        unusable=tuple(series for series in unusable if series.files[0] not in lone),
        stray=(*lone, *stray),
    )


def _without_copies(drawn: list[DrawnObject]) -> list[DrawnObject]:
    """The first of files that are equal byte by byte: an export often holds one structure set in several folders."""
    sizes = [one.path.stat().st_size for one in drawn]
    counts, found = Counter(sizes), dict[str, DrawnObject]()
    for one, size in zip(drawn, sizes, strict=True):
        found.setdefault(file_digest(one.path) if counts[size] > 1 else str(one.path), one)
    return list(found.values())


def _info(series: Series) -> SeriesInfo | None:
    try:
        return describe_series(series)
    except InputError:
        return None


def _may_be(path: Path, *, modality: str) -> bool:
    """Whether a file is of that modality; one that does not say so may be."""
    try:
        return modality_of(path) in ("", modality)
    except InputError:
        return True


def _drawing(drawn: DrawnObject) -> _Drawing:
    try:
        return _Drawing(drawn=drawn, names=segment_names(drawn.path))
    except InputError:
        return _Drawing(drawn=drawn, damaged=True)


def _paired(series: list[tuple[Series, SeriesInfo]], *, drawings: list[_Drawing]) -> list[_Found]:
    """Each series with the files that refer to it by UID.

    A series without any gets those that only share its frame of reference: right where a file names no series, and refused by name
    when it is read where it names another one.
    """
    exact = [[part for part in drawings if _refers(part.drawn, info=info)] for _, info in series]
    used = {part.drawn.path for parts in exact for part in parts}
    loose = [part for part in drawings if part.drawn.path not in used]
    return [
        _Found(
            series=one,
            info=info,
            drawings=tuple(
                parts or [part for part in loose if info.frame_of_reference in part.drawn.frames_of_reference]
            ),
        )
        for (one, info), parts in zip(series, exact, strict=True)
    ]


def _refers(drawn: DrawnObject, *, info: SeriesInfo) -> bool:
    return info.uid in drawn.series_uids or not drawn.sop_uids.isdisjoint(info.sop_uids)


def _modality(found: list[_Found], *, raw: Path) -> str:
    """That of most series that were drawn on, else of most series."""
    usable = [one for one in found if one.info.modality in MODALITIES]
    if not usable:
        raise InputError(f"{raw}: holds no {' or '.join(MODALITIES)} series; expected DICOM files; choose their folder")
    counts = Counter(one.info.modality for one in usable if one.drawings) or Counter(
        one.info.modality for one in usable
    )
    return min(counts, key=lambda modality: (-counts[modality], modality))


def _folder(series: Series, *, raw: Path) -> str:
    return series.files[0].parent.relative_to(raw).as_posix()


def _stated(raw: Path) -> dict[str, Any]:
    if not (raw / STRUCTURES).exists():
        return {}
    stated = read_json(raw / STRUCTURES, what="structures and the spellings of their names")
    demand_names(entry(stated, key="structures", kind=dict, file=STRUCTURES), file=STRUCTURES)
    unknown = sorted(set(stated) - {"structures", "pairs", "files"})
    if unknown:
        raise InputError(
            f"{STRUCTURES}: {unknown[0]!r} is unknown; expected structures, pairs and files; correct the file"
        )
    return stated


def _demand_distinct(drawings: list[_Drawing]) -> None:
    """Raises InputError, which quotes no name, for a drawing in which two names would be one structure, or one would be none."""
    for drawing in drawings:
        structures = [_structure(name).casefold() for name in set(drawing.names)]
        if "" in structures or len(set(structures)) < len(structures):
            raise InputError(
                f"{drawing.drawn.path.name}: two of its names differ in signs or capitals alone, or one has neither letters nor digits; "
                f"expected names that stay distinct without signs; say in {STRUCTURES} which names are which structure"
            )


def _structure(name: str) -> str:
    """A name without what cannot be in a structure's."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_")[:128]


def _spellings(stated: dict[str, Any], *, names: set[str]) -> dict[str, re.Pattern[str]]:
    """Structure -> what its names look like, as stated, or each name found as it is (without what cannot be in a name)."""
    spelt: dict[str, Any] = dict(stated.get("structures", {}))
    if not stated:
        clean = {name: _structure(name) for name in names}
        for name in sorted(names, key=lambda name: (clean[name], name)):
            known = next((other for other in spelt if other.casefold() == clean[name].casefold()), clean[name])
            spelt.setdefault(known, []).append(name)
    return {structure: _pattern([structure, *_texts(spelt[structure], of=structure)]) for structure in spelt}


def _texts(value: Any, *, of: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f"{STRUCTURES}: the spellings of {of!r} are no list of texts; expected one; correct the file")
    return value


def _pattern(spellings: list[str]) -> re.Pattern[str]:
    """What fits any of the spellings; one between slashes is a regular expression."""
    parts = [text[1:-1] if len(text) > 2 and text[0] == text[-1] == "/" else re.escape(text) for text in spellings]
    try:
        return re.compile("|".join(f"(?:{part})" for part in parts), re.IGNORECASE)
    except re.error as error:
        raise InputError(
            f"{STRUCTURES}: a spelling of {spellings[0]!r} is no regular expression ({error}); correct it"
        ) from None


def _case_names(raw: Path, *, survey: _Survey) -> dict[str, str]:
    """Folder of a series -> the case's name, from `cases.json` where there is one."""
    if not (raw / CASES).exists():
        return {}
    named = read_json(raw / CASES, what="case names by the folder of their series")
    folders = {_folder(found.series, raw=raw) for found in survey.found}
    for folder in named:
        if folder not in folders:
            raise InputError(
                f"{CASES}: {folder!r} holds no series that is a case; expected its folder in {raw.name}/; correct it"
            )
        entry(named, key=folder, kind=str, file=CASES)
    return named
