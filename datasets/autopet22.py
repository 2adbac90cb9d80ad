"""AutoPET22: 1014 whole-body FDG-PET/CT studies of 900 patients with tumour lesions contoured; 513 studies have none.

From the MICCAI 2022 challenge autoPET (Gatidis et al., Scientific Data 2022, doi:10.1038/s41597-022-01718-3; data at
doi:10.7937/gkr0-xv29 and fdat.uni-tuebingen.de/records/wf9fy-txq84, under the licence stated there). `raw` is the folder
`FDG-PET-CT-Lesions` in its NIfTI form: `PETCT_*/<study>/CTres.nii.gz` (CT resampled to the PET grid, HU), `SUV.nii.gz` (PET in
units of body-weight SUV) and `SEG.nii.gz` (1 lesion); `CT.nii.gz` and `PET.nii.gz` (Bq/ml) are not read. Study folders bear dates,
which stay out of case names: a patient's studies are numbered from 0 in the order of their folders, so keep the folders complete.
A study without lesions is annotated: somebody looked and found none (UniSeg trains only on the other 501).
"""

from itertools import groupby
from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import demand_cases, scans
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("lesion",))
CHANNELS = ("CT", "PET")

_VALUES = {1: ("lesion",)}


def cases(raw: Path) -> list[CaseSource]:
    """All studies, annotated for training, grouped by patient."""
    studies = sorted({path.parent for path in scans(raw, "PETCT_*/*/*.nii.gz")})
    demand_cases(studies, raw=raw, layout="PETCT_*/<study>/CTres.nii.gz, SUV.nii.gz and SEG.nii.gz (AutoPET 2022)")
    return [
        _source(study, number=number)
        for _, folders in groupby(studies, key=lambda study: study.parent)
        for number, study in enumerate(folders)
    ]


def _source(study: Path, *, number: int) -> CaseSource:
    patient = study.parent.name
    case_id = f"{patient}_{number}"
    ct, suv, label = (study / f"{kind}.nii.gz" for kind in ("CTres", "SUV", "SEG"))
    return CaseSource(
        case_id=case_id,
        images=(ct, suv),
        labels=(LabelFile(path=label, values=_VALUES),),
        annotated=LABELS.structures,
        group=patient,
    )
