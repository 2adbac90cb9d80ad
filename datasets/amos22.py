"""AMOS22 (Ji et al., NeurIPS 2022 Datasets and Benchmarks, arXiv:2206.08023): 15 abdominal organs; the 300 labelled CTs are taken.

From amos22.grand-challenge.org (zenodo record 7262581); licence: see the source. `raw` holds `imagesTr`, `labelsTr`, `imagesVa`,
`labelsVa` and `imagesTs` with `amos_0001.nii.gz`. Ids below 500 are CT; MR (500 and above) is passed over, as in MultiTalent, which
trains on the CTs of both labelled sets: here `imagesVa` is the validation split. `imagesTs` is held out and unlabelled.
"""

import re
from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile, Split
from segsweep.data.layouts import demand_cases, one_each, pairs_of, scans
from segsweep.data.readers import stem
from segsweep.data.structures import LabelSet

_ORGANS = (
    *("spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "postcava"),
    *("pancreas", "right_adrenal_gland", "left_adrenal_gland", "duodenum", "bladder", "prostate_uterus"),
)
LABELS = LabelSet(structures=_ORGANS, pairs=pairs_of(_ORGANS))
CHANNELS = ("CT",)

_FIRST_MR = 500
_SPLITS: dict[str, Split] = {"Tr": "train", "Va": "validation", "Ts": "test"}


def cases(raw: Path) -> list[CaseSource]:
    """The CTs of the three sets. One that is not there beside its label is listed too: reading it says so."""
    paths = [*scans(raw, "images*/amos_*.nii.gz"), *scans(raw, "labels*/amos_*.nii.gz")]
    kinds = {path: path.parent.name[6:] for path in paths if path.parent.name[6:] in _SPLITS and _is_ct(path)}
    images = sorted({raw / f"images{kind}" / path.name for path, kind in kinds.items()})
    demand_cases(images, raw=raw, layout="imagesTr/amos_0001.nii.gz, labelsTr/ and the other sets of AMOS22")
    return [_source(raw, case_id=case_id, image=path) for case_id, path in one_each(images).items()]


def _is_ct(path: Path) -> bool:
    number = re.fullmatch(r"amos_(\d{4})", stem(path))
    return number is not None and int(number[1]) < _FIRST_MR


def _source(raw: Path, *, case_id: str, image: Path) -> CaseSource:
    kind = image.parent.name[6:]
    if kind == "Ts":
        return CaseSource(case_id=case_id, images=(image,), split="test")
    label = raw / f"labels{kind}" / image.name
    values = {value: (name,) for value, name in enumerate(_ORGANS, start=1)}
    return CaseSource(
        case_id=case_id,
        images=(image,),
        labels=(LabelFile(path=label, values=values),),
        annotated=_ORGANS,
        split=_SPLITS[kind],
    )
