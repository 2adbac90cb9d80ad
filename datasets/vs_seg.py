"""VS-SEG: contrast-enhanced T1 MRs of 242 patients before radiosurgery, with the vestibular schwannoma contoured.

From Vestibular-Schwannoma-SEG (Shapey et al., Scientific Data 2021, doi:10.1038/s41597-021-01064-w; data at
doi:10.7937/TCIA.9YTJ-5Q73, CC BY 4.0). TCIA has DICOM; `raw` is what the authors' conversion scripts
(github.com/KCL-BMEIS/VS_Seg, preprocessing) make of it: a folder a patient `vs_gk_1`, `vs_gk_2` … with `vs_gk_t1_refT1.nii.gz` and
`vs_gk_seg_refT1.nii.gz` (1 tumour). T2 images may lie beside them and are not read: they are on a grid of their own unless registered.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import demand_cases, scans
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("tumour",))
CHANNELS = ("T1",)

_VALUES = {1: ("tumour",)}


def cases(raw: Path) -> list[CaseSource]:
    """All patients, annotated for training."""
    folders = sorted({path.parent for path in scans(raw, "vs_gk_*/vs_gk_*.nii.gz")})
    demand_cases(folders, raw=raw, layout="vs_gk_1/vs_gk_t1_refT1.nii.gz and vs_gk_seg_refT1.nii.gz (VS-SEG)")
    return [_source(folder) for folder in folders]


def _source(folder: Path) -> CaseSource:
    case_id = folder.name
    return CaseSource(
        case_id=case_id,
        images=(folder / "vs_gk_t1_refT1.nii.gz",),
        labels=(LabelFile(path=folder / "vs_gk_seg_refT1.nii.gz", values=_VALUES),),
        annotated=LABELS.structures,
    )
