"""SegTHOR: 40 chest CTs of lung or esophageal cancer patients with 4 organs at risk contoured, and 20 test CTs without labels.

From the ISBI 2019 challenge Segmentation of THoracic Organs at Risk (Lambert et al., IPTA 2020, doi:10.1109/IPTA50016.2020.9286453; data
at competitions.codalab.org/competitions/21145 after registration, for research). `raw` holds `train/Patient_01/Patient_01.nii.gz`
and `train/Patient_01/GT.nii.gz` (1 esophagus, 2 heart, 3 trachea, 4 aorta: MultiTalent's task 55) and `test/Patient_41.nii.gz`.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import demand_cases, scans
from segsweep.data.readers import stem
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("esophagus", "heart", "trachea", "aorta"))
CHANNELS = ("CT",)

_VALUES = {value: (name,) for value, name in enumerate(LABELS.structures, start=1)}


def cases(raw: Path) -> list[CaseSource]:
    """The annotated training cases and, held out, the unlabelled test cases."""
    folders = sorted({path.parent for path in scans(raw, "train/Patient_*/*.nii.gz")})
    demand_cases(folders, raw=raw, layout="train/Patient_01/Patient_01.nii.gz and GT.nii.gz (SegTHOR)")
    return [
        *(_source(folder) for folder in folders),
        *(
            CaseSource(case_id=stem(image), images=(image,), split="test")
            for image in scans(raw, "test/Patient_*.nii.gz")
        ),
    ]


def _source(folder: Path) -> CaseSource:
    case_id = folder.name
    return CaseSource(
        case_id=case_id,
        images=(folder / f"{case_id}.nii.gz",),
        labels=(LabelFile(path=folder / "GT.nii.gz", values=_VALUES),),
        annotated=LABELS.structures,
    )
