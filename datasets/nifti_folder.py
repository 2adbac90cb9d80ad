"""Any folder of scans, in one of two plain layouts. Licence and source are your own.

`images/ID.nii.gz`, or `images/ID_0000.nii.gz`, `ID_0001.nii.gz` … for several channels, with either label maps `labels/ID.nii.gz`
(or 3D Slicer's `labels/ID.seg.nrrd`, whose segments name their structures) or one mask a structure, `labels/ID/STRUCTURE.nii.gz`; any
format that can be read will do. A scan without labels is unlabelled. `labels.json` says the rest, all of it optional but `structures`
beside label maps:

    {"structures": {"Heart": 1, "Lung_L": 2, "Lungs": [2, 3]}, "channels": ["CT"], "annotated": "all"}

A value may belong to several structures. `pairs`, such as `[["Ventricle_L", "Ventricle_R"]]`, replaces those that are found by L and R,
left and right, which leave out what may be a chamber of the heart. Annotated is every structure of a label map, or every mask or segment
that is there; `"annotated": "all"` says that one that is not there was looked for and is empty; `"annotated": {"ID": ["Heart"]}` says
it case by case.
"""

import glob
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segsweep.data.case import CaseSource, LabelFile, Labels, MaskFile, SegmentFile, lies_below
from segsweep.data.layouts import (
    channel_files,
    demand_cases,
    demand_names,
    entry,
    one_each,
    pairs_of,
    read_json,
    scans,
    stated_pairs,
    structures_by_value,
)
from segsweep.data.readers import SUFFIXES, stem
from segsweep.data.segmented_nrrd import SUFFIX as SEGMENTED
from segsweep.data.segmented_nrrd import is_segmented
from segsweep.data.segments import segment_names
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError, unknown

FILE = "labels.json"


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """What lies in the folder by case, and what `labels.json` says. `drawn` names the structures of masks and segmentations."""

    raw: Path
    maps: dict[str, Path]
    masks: dict[str, dict[str, Path]]
    segmentations: dict[str, Path]
    drawn: dict[str, tuple[str, ...]]
    values: dict[int, tuple[str, ...]]
    structures: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    channels: tuple[str, ...]
    annotated: Any


def labels(raw: Path) -> LabelSet:
    """The structures of `labels.json`, then those that have masks or segments."""
    folder = _folder(raw)
    return LabelSet(structures=folder.structures, pairs=folder.pairs)


def channels(raw: Path) -> tuple[str, ...]:
    """`channels` of `labels.json`; one CT where it names none."""
    return _folder(raw).channels


def cases(raw: Path) -> list[CaseSource]:
    """Every scan in `images/`, with the labels of its name. Raises InputError that names the case or file that cannot be used."""
    folder = _folder(raw)
    images = _images(raw, num_channels=len(folder.channels))
    demand_cases(list(images), raw=raw, layout=f"images/ID.nii.gz (or {', '.join(SUFFIXES[1:])}) and labels/")
    labelled = Counter([*folder.maps, *folder.masks, *folder.segmentations])
    for case_id in sorted(case_id for case_id, count in labelled.items() if count > 1):
        raise InputError(
            f"{case_id}: has labels of {labelled[case_id]} kinds; expected one, a label map, a folder of masks or a {SEGMENTED} file; "
            "take the others away"
        )
    if labelled and labelled.keys().isdisjoint(images):
        raise InputError(
            f"none of {len(labelled)} names in labels/ is that of a scan in images/; expected the same; rename them"
        )
    # Labels without a scan are listed too: reading the scan says that it is not there, or of no readable format.
    lost = {case_id: (_unread(raw, case_id=case_id),) for case_id in sorted(labelled.keys() - images.keys())}
    found = {**images, **lost}
    for case_id in folder.annotated if isinstance(folder.annotated, dict) else ():
        if case_id not in found:
            raise InputError(f"{FILE}: 'annotated': {unknown(case_id, kind='cases', known=found)}; correct it")
    return [_source(case_id, images=files, folder=folder) for case_id, files in found.items()]


def _images(raw: Path, *, num_channels: int) -> dict[str, tuple[Path, ...]]:
    paths = scans(raw, "images/*")
    if num_channels > 1 or (paths and all(stem(path).endswith("_0000") for path in paths)):
        return channel_files(paths, num_channels=num_channels)
    return {case_id: (path,) for case_id, path in one_each(paths).items()}


def _unread(raw: Path, *, case_id: str) -> Path:
    """A file of the case's name that is of no readable format, else where its scan should be."""
    others = sorted((raw / "images").glob(f"{glob.escape(case_id)}.*"))
    return others[0] if others else raw / "images" / f"{case_id}.nii.gz"


def _source(case_id: str, *, images: tuple[Path, ...], folder: _Folder) -> CaseSource:
    annotated = _annotated(case_id, folder=folder)
    masks = folder.masks.get(case_id, {})
    files: list[Labels] = [MaskFile(path=path, structure=name) for name, path in masks.items() if name in annotated]
    if case_id in folder.segmentations:
        names = {name: name for name in folder.drawn[case_id] if name in annotated}
        files.append(SegmentFile(path=folder.segmentations[case_id], names=names))
    if annotated and case_id not in folder.drawn and (folder.maps or not folder.drawn):
        # Where labels are masks, none may mean that all are empty; a label map that is not there fails when it is read.
        path = folder.maps.get(case_id, folder.raw / "labels" / f"{case_id}.nii.gz")
        values = {value: tuple(n for n in names if n in annotated) for value, names in folder.values.items()}
        files.append(LabelFile(path=path, values=values))
    return CaseSource(case_id=case_id, images=images, labels=tuple(files), annotated=annotated)


def _annotated(case_id: str, *, folder: _Folder) -> tuple[str, ...]:
    if isinstance(folder.annotated, dict) and case_id in folder.annotated:
        return _stated(case_id, folder=folder)
    if case_id in folder.maps or (folder.annotated == "all" and case_id in folder.drawn):
        return folder.structures
    return tuple(name for name in folder.structures if name in folder.drawn.get(case_id, ()))


def _stated(case_id: str, *, folder: _Folder) -> tuple[str, ...]:
    names = entry(folder.annotated, key=case_id, kind=list, file=FILE)
    for name in names:
        if name not in folder.structures:
            raise InputError(
                f"{FILE}: {case_id} is annotated for {str(name)[:60]!r}, which is no structure; correct it"
            )
    return tuple(name for name in folder.structures if name in names)


def _folder(raw: Path) -> _Folder:
    files = scans(raw, "labels/*")
    segmentations = {path.name[: -len(SEGMENTED)]: path for path in files if is_segmented(path)}
    maps = one_each(path for path in files if path not in segmentations.values())
    folders: dict[str, list[Path]] = {}
    for path in scans(raw, "labels/*/*"):
        if is_segmented(path):  # read as a mask, its segments would be one structure
            raise InputError(
                f"labels/{path.parent.name}/{path.name} holds named segments; expected masks in a folder, or "
                f"labels/{path.parent.name}{SEGMENTED}; move it there"
            )
        folders.setdefault(path.parent.name, []).append(path)
    masks = {case_id: one_each(paths) for case_id, paths in folders.items()}
    drawn = {case_id: tuple(paths) for case_id, paths in masks.items()}
    drawn |= {case_id: _segment_names(path, root=raw) for case_id, path in segmentations.items()}
    content: dict[str, Any] = {}
    if maps or (raw / FILE).is_file():
        content = read_json(raw / FILE, what='a file such as {"structures": {"Heart": 1, "Lungs": [2, 3]}}')
    for key in sorted(set(content) - {"structures", "pairs", "channels", "annotated"}):
        raise InputError(
            f"{FILE}: {key[:60]!r} means nothing; expected structures, pairs, channels, annotated; correct the file"
        )
    stated = entry(content if maps else {"structures": {}, **content}, key="structures", kind=dict, file=FILE)
    stated = {name: value for name, value in stated.items() if (name, value) != ("background", 0)}
    values = structures_by_value(stated, file=FILE)
    structures = tuple(dict.fromkeys([*stated, *sorted({name for names in drawn.values() for name in names})]))
    names = entry({"channels": ["CT"], **content}, key="channels", kind=list, file=FILE)
    demand_names([*structures, *names], file=FILE)
    if not structures or not names:
        raise InputError(f"{raw} has no structures or no channels; expected names in {FILE} or masks in labels/ID/")
    annotated = content.get("annotated")
    if annotated not in (None, "all") and not isinstance(annotated, dict):
        raise InputError(
            f"{FILE}: 'annotated' is {str(annotated)[:60]!r}; expected \"all\" or lists by case; correct it"
        )
    return _Folder(
        raw=raw,
        maps=maps,
        masks=masks,
        segmentations=segmentations,
        drawn=drawn,
        values=values,
        structures=structures,
        pairs=stated_pairs(content, file=FILE) if "pairs" in content else pairs_of(structures),
        channels=tuple(names),
        annotated=annotated,
    )


def _segment_names(path: Path, *, root: Path) -> tuple[str, ...]:
    """None for a file that is damaged or a link out of the folder, which reading it says."""
    try:
        return segment_names(path) if lies_below(path, root=root) else ()
    except InputError:
        return ()
