"""BraTS21: 1251 brain MRs of glioma patients in four sequences, with three tumour regions contoured.

From the RSNA-ASNR-MICCAI Brain Tumor Segmentation Challenge 2021 (Baid et al., arXiv:2107.02314; data at synapse.org/Synapse:syn25829067
after registration, for research). `raw` is the unpacked training data: `BraTS2021_00000/BraTS2021_00000_t1.nii.gz`, `_t1ce`, `_t2`,
`_flair` and `_seg` (1 non-enhancing core, 2 edema, 4 enhancing tumour; there is no 3). The regions do not overlap and are named as in
UniSeg; whole tumour and tumour core are their unions. All files lie on one 240 x 240 x 155 grid of 1 mm, skull-stripped.
A patient's validation or test data come without labels and in other folders; they are not read.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import demand_cases, scans
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("edema", "non-enhancing", "enhancing"))
CHANNELS = ("T1", "T1ce", "T2", "FLAIR")

_VALUES = {2: ("edema",), 1: ("non-enhancing",), 4: ("enhancing",)}


def cases(raw: Path) -> list[CaseSource]:
    """All cases, annotated for training."""
    folders = sorted({path.parent for path in scans(raw, "BraTS2021_*/*.nii.gz")})
    demand_cases(folders, raw=raw, layout="BraTS2021_00000/BraTS2021_00000_t1.nii.gz and so on (BraTS 2021)")
    return [_source(folder) for folder in folders]


def _source(folder: Path) -> CaseSource:
    case_id = folder.name
    *images, label = (
        folder / f"{case_id}_{kind}.nii.gz" for kind in (*(channel.lower() for channel in CHANNELS), "seg")
    )
    return CaseSource(
        case_id=case_id,
        images=tuple(images),
        labels=(LabelFile(path=label, values=_VALUES),),
        annotated=LABELS.structures,
    )
