"""StructSeg 2019 task 3: 50 planning CTs of lung cancer patients with 6 thoracic organs at risk contoured.

From the MICCAI 2019 challenge Automatic Structure Segmentation for Radiotherapy Planning (structseg2019.grand-challenge.org; given
out by the organisers on request, not to be passed on). `raw` is its folder `Thoracic_OAR`: `1/data.nii.gz` and `1/label.nii.gz` to
`50/…` (1 left lung, 2 right lung, 3 heart, 4 esophagus, 5 trachea, 6 spinal cord: MultiTalent's task 51, which calls the last two
"bronchies" and "spinal_cord_nerve_thingy"). The tasks on the head and neck and on tumours have other labels: do not mix the folders.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import demand_cases, pairs_of, scans
from segsweep.data.structures import LabelSet

ORGANS = ("left_lung", "right_lung", "heart", "esophagus", "trachea", "spinal_cord")
LABELS = LabelSet(structures=ORGANS, pairs=pairs_of(ORGANS))
CHANNELS = ("CT",)

_VALUES = {value: (name,) for value, name in enumerate(ORGANS, start=1)}


def cases(raw: Path) -> list[CaseSource]:
    """All cases, annotated for training."""
    folders = sorted({path.parent for path in scans(raw, "*/*.nii.gz")})
    demand_cases(folders, raw=raw, layout="1/data.nii.gz and 1/label.nii.gz (StructSeg 2019, Thoracic_OAR)")
    return [_source(folder) for folder in folders]


def _source(folder: Path) -> CaseSource:
    case_id = f"structseg_{folder.name}"
    return CaseSource(
        case_id=case_id,
        images=(folder / "data.nii.gz",),
        labels=(LabelFile(path=folder / "label.nii.gz", values=_VALUES),),
        annotated=ORGANS,
    )
