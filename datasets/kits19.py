"""KiTS19: 300 late-arterial abdominal CTs of patients with kidney tumours, 210 of them with kidneys and tumours contoured.

From the 2019 Kidney Tumor Segmentation Challenge (Heller et al., Medical Image Analysis 2021, doi:10.1016/j.media.2020.101821; data at
github.com/neheller/kits19, CC BY-NC-SA 4.0). `raw` is the repository's `data` folder after its download script has run:
`case_00000/imaging.nii.gz` and `segmentation.nii.gz` (1 kidney, 2 tumour); cases 210 to 299, the challenge's test set, have no label.
Here kidneys include their tumours, as in MultiTalent. Use the corrected labels of 2020 or later: before, nnU-Net's authors left out
cases 15, 23, 37, 68, 125 and 133. Files are stored with the slice axis first; their headers say so, and are believed.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import demand_cases, scans
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("kidneys", "tumour"))
CHANNELS = ("CT",)

_VALUES = {1: ("kidneys",), 2: ("kidneys", "tumour")}
_FIRST_TEST_CASE = "case_00210"


def cases(raw: Path) -> list[CaseSource]:
    """The 210 annotated training cases and, held out as test, the unlabelled ones."""
    folders = sorted({path.parent for path in scans(raw, "case_*/*.nii.gz")})
    demand_cases(folders, raw=raw, layout="case_00000/imaging.nii.gz and segmentation.nii.gz (KiTS19)")
    return [_source(folder) for folder in folders]


def _source(folder: Path) -> CaseSource:
    case_id = folder.name
    images = (folder / "imaging.nii.gz",)
    if case_id >= _FIRST_TEST_CASE:
        return CaseSource(case_id=case_id, images=images, split="test")
    label = folder / "segmentation.nii.gz"
    return CaseSource(
        case_id=case_id,
        images=images,
        labels=(LabelFile(path=label, values=_VALUES),),
        annotated=LABELS.structures,
    )
