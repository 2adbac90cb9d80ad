"""FLARE22 (Ma et al., Lancet Digital Health 2024, arXiv:2308.05862): 13 abdominal organs, 50 labelled and 2000 unlabelled CTs.

From flare22.grand-challenge.org; licence: see the source. The archives are unpacked anywhere below `raw`: files are known by
their names, labelled `FLARE22_Tr_0001_0000.nii.gz` with `FLARE22_Tr_0001.nii.gz`, unlabelled `Case_00471_0000.nii.gz`, validation
`FLARETs_0001_0000.nii.gz` with `FLARETs_0001.nii.gz` where the label is there. Pseudo-labels of `Case_…` scans are not read.
"""

import re
from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import demand_cases, one_each, pairs_of, scans
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

# In the order of their label values. The right kidney is 2 and the left one 13.
_ORGANS = (
    *("liver", "right_kidney", "spleen", "pancreas", "aorta", "inferior_vena_cava", "right_adrenal_gland"),
    *("left_adrenal_gland", "gallbladder", "esophagus", "stomach", "duodenum", "left_kidney"),
)
LABELS = LabelSet(structures=_ORGANS, pairs=pairs_of(_ORGANS))
CHANNELS = ("CT",)

_IMAGE = re.compile(r"(?P<case>(?P<set>FLARE22_Tr|FLARETs|Case)_\d+)_0000")


def cases(raw: Path) -> list[CaseSource]:
    """Labelled and unlabelled training scans and the validation scans. Raises InputError that names the case without its label."""
    files = one_each(scans(raw, "**/*"))
    images = [(name, path) for stem, path in sorted(files.items()) if (name := _IMAGE.fullmatch(stem))]
    demand_cases(images, raw=raw, layout="FLARE22_Tr_0001_0000.nii.gz with its label, or other files of FLARE22")
    return [_source(name, image=path, label=files.get(name["case"])) for name, path in images]


def _source(name: re.Match[str], *, image: Path, label: Path | None) -> CaseSource:
    case_id = name["case"]
    if name["set"] == "FLARE22_Tr" and label is None:
        raise InputError(
            f"{case_id}: {case_id}.nii.gz is missing; expected the label of every {case_id[:10]} scan; copy it"
        )
    labelled = label is not None and name["set"] != "Case"
    values = {value: (organ,) for value, organ in enumerate(_ORGANS, start=1)}
    return CaseSource(
        case_id=case_id,
        images=(image,),
        labels=(LabelFile(path=label, values=values),) if label is not None and labelled else (),
        annotated=_ORGANS if labelled else (),
        split="validation" if name["set"] == "FLARETs" else "train",
    )
