"""LiTS: 131 abdominal CTs of seven hospitals with liver and liver tumours contoured, and 70 test CTs without labels.

From the Liver Tumor Segmentation Challenge (Bilic et al., Medical Image Analysis 2023, doi:10.1016/j.media.2022.102680; data at
competitions.codalab.org/competitions/17094, CC BY-NC-ND 4.0). `raw` holds, in any folders (`Training Batch 1` …), pairs
`volume-0.nii` and `segmentation-0.nii` (1 liver, 2 tumour) in one folder each, and `test-volume-0.nii`.
Here the liver includes its tumours, as in MultiTalent, and both are named as in `msd`. The Decathlon's Task03_Liver is the same 131 scans
(`liver_0` is `volume-0`): cases are grouped by that name, so that both copies fall into one fold. A label whose header does not
place it on the volume is refused, not mended.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import demand_cases, one_each, scans
from segsweep.data.readers import stem
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("liver", "liver_cancer"))
CHANNELS = ("CT",)

_VALUES = {1: ("liver",), 2: ("liver", "liver_cancer")}


def cases(raw: Path) -> list[CaseSource]:
    """The annotated training cases and, held out, the unlabelled test cases.

    A volume that is not there beside its label is listed too: reading it says so.
    """
    volumes = one_each(scans(raw, "**/volume-*.nii*"))
    for label in scans(raw, "**/segmentation-*.nii*"):
        volume = label.with_name(label.name.replace("segmentation", "volume", 1))
        volumes.setdefault(stem(volume), volume)
    demand_cases(tuple(volumes), raw=raw, layout="volume-0.nii and segmentation-0.nii (LiTS)")
    unlabelled = one_each(scans(raw, "**/test-volume-*.nii*"))
    return [
        *(_source(path, case_id=case_id) for case_id, path in volumes.items()),
        *(CaseSource(case_id=case_id, images=(path,), split="test") for case_id, path in unlabelled.items()),
    ]


def _source(volume: Path, *, case_id: str) -> CaseSource:
    label = volume.with_name(volume.name.replace("volume", "segmentation", 1))
    return CaseSource(
        case_id=case_id,
        images=(volume,),
        labels=(LabelFile(path=label, values=_VALUES),),
        annotated=LABELS.structures,
        group=case_id.replace("volume-", "liver_"),
    )
