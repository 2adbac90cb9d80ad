"""VerSe20: spine CTs of 214 patients with every vertebra contoured, here as one structure.

From the MICCAI 2020 Large Scale Vertebrae Segmentation Challenge (Sekuboyina et al., Medical Image Analysis 2021,
doi:10.1016/j.media.2021.102166; subject-based data at osf.io/t98fz, CC BY-SA 4.0). `raw` holds `dataset-01training`,
`dataset-02validation` and `dataset-03test`, which are kept as splits (UniSeg draws its own): each with
`rawdata/sub-X/sub-X*_ct.nii.gz` and `derivatives/sub-X/sub-X*_seg-vert_msk.nii.gz` (vertebrae 1 to 25, 28 is T13).
Values are joined as in UniSeg. A patient may have several scans, grouped by `sub-X`. The 105 scans that VerSe20 shares with VerSe19
are only in VerSe19's download; copied into these folders they are read too. Scans come in every orientation; headers are believed.
"""

from collections.abc import Mapping
from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile, Split
from segsweep.data.layouts import demand_cases, scans
from segsweep.data.readers import stem
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("vertebrae",))
CHANNELS = ("CT",)

_VALUES = dict.fromkeys((*range(1, 26), 28), LABELS.structures)
_SPLITS: Mapping[str, Split] = {
    "dataset-01training": "train",
    "dataset-02validation": "validation",
    "dataset-03test": "test",
}


def cases(raw: Path) -> list[CaseSource]:
    """All scans, annotated, with the challenge's splits."""
    found = [
        _source(image, raw=raw, split=split)
        for part, split in _SPLITS.items()
        for image in scans(raw, f"{part}/rawdata/sub-*/sub-*_ct.nii.gz")
    ]
    demand_cases(found, raw=raw, layout="dataset-01training/rawdata/sub-X/sub-X_ct.nii.gz and derivatives/ (VerSe20)")
    return found


def _source(image: Path, *, raw: Path, split: Split) -> CaseSource:
    case_id = stem(image).removesuffix("_ct")
    part, subject = image.parents[2].name, image.parent.name
    label = raw / part / "derivatives" / subject / f"{case_id}_seg-vert_msk.nii.gz"
    return CaseSource(
        case_id=case_id,
        images=(image,),
        labels=(LabelFile(path=label, values=_VALUES),),
        annotated=LABELS.structures,
        group=subject,
        split=split,
    )
