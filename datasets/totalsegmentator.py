"""TotalSegmentator (Wasserthal et al., Radiology: Artificial Intelligence 2023, doi:10.1148/ryai.230024): CTs of the whole body.

From zenodo.org (version 1 record 6802614: 1204 CTs, 104 classes; version 2 record 10047292: 1228 CTs, 117 classes), CC BY 4.0. `raw` holds
`s0000/ct.nii.gz`, `s0000/segmentations/CLASS.nii.gz` and `meta.csv` (`;`, with `image_id` and `split`), all at 1.5 mm. Every class
that has files is a structure; classes may overlap by a voxel, and both are kept. Labels were made by a model and corrected.
"""

import csv
from pathlib import Path

from segsweep.data.case import CaseSource, MaskFile, Split
from segsweep.data.layouts import demand_cases, pairs_of, scans
from segsweep.data.readers import stem
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

CHANNELS = ("CT",)
FILE = "meta.csv"
_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}


def labels(raw: Path) -> LabelSet:
    """The classes that have files, by name."""
    classes = sorted({stem(path) for path in scans(raw, "s*/segmentations/*")})
    if not classes:
        raise InputError(
            f"{raw} holds no s0000/segmentations/CLASS.nii.gz; expected TotalSegmentator's folder; choose it"
        )
    return LabelSet(structures=tuple(classes), pairs=pairs_of(classes))


def cases(raw: Path) -> list[CaseSource]:
    """Every subject, annotated for the classes that it has files of, in the split of `meta.csv`."""
    masks: dict[str, list[Path]] = {}
    for path in scans(raw, "s*/segmentations/*"):
        masks.setdefault(path.parent.parent.name, []).append(path)
    subjects = sorted({path.parent for path in scans(raw, "s*/ct.nii.gz")} | {raw / name for name in masks})
    demand_cases(subjects, raw=raw, layout="s0000/ct.nii.gz, s0000/segmentations/ and meta.csv")
    splits = _splits(raw)
    return [_source(path / "ct.nii.gz", masks=masks.get(path.name, []), splits=splits) for path in subjects]


def _source(image: Path, *, masks: list[Path], splits: dict[str, str]) -> CaseSource:
    case_id = image.parent.name
    split = splits.get(case_id, "")
    if split not in _SPLITS:
        raise InputError(
            f"{case_id}: its split in {FILE} is {split!r}; expected {', '.join(_SPLITS)}; copy {FILE} of the same version"
        )
    return CaseSource(
        case_id=case_id,
        images=(image,),
        labels=tuple(MaskFile(path=path, structure=stem(path)) for path in masks),
        annotated=tuple(stem(path) for path in masks),
        split=_SPLITS[split],
    )


def _splits(raw: Path) -> dict[str, str]:
    try:
        with (raw / FILE).open(encoding="utf-8-sig", newline="") as file:
            return {row["image_id"]: row["split"] or "" for row in csv.DictReader(file, delimiter=";")}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise InputError(
            f"{FILE} cannot be used ({type(error).__name__}: {error}); expected columns image_id and split with ';' between; "
            "copy it beside the subjects"
        ) from None
