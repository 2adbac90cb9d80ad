"""FLARE22 (Ma et al., Lancet Digital Health 2024, arXiv:2308.05862): 13 abdominal organs, 50 labelled and 2000 unlabelled CTs.

From flare22.grand-challenge.org; licence: see the source. The archives are unpacked anywhere below `raw`: files are known by
their names, labelled `FLARE22_Tr_0001_0000.nii.gz` with `FLARE22_Tr_0001.nii.gz`, unlabelled `Case_00471_0000.nii.gz`, validation
`FLARETs_0001_0000.nii.gz` with `FLARETs_0001.nii.gz` where the label is there. Pseudo-labels of `Case_…` scans are not read.
"""

import re
from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import demand_cases, one_each, pairs_of, scans
from segsweep.data.readers import stem
from segsweep.data.structures import LabelSet

# In the order of their label values. The right kidney is 2 and the left one 13.
_ORGANS = (
    *("liver", "right_kidney", "spleen", "pancreas", "aorta", "inferior_vena_cava", "right_adrenal_gland"),
    *("left_adrenal_gland", "gallbladder", "esophagus", "stomach", "duodenum", "left_kidney"),
)
LABELS = LabelSet(structures=_ORGANS, pairs=pairs_of(_ORGANS))
CHANNELS = ("CT",)

_FILE = re.compile(r"(?P<case>(?P<set>FLARE22_Tr|FLARETs|Case)_\d+)(?P<channel>_0000)?")


def cases(raw: Path) -> list[CaseSource]:
    """Labelled and unlabelled training scans and the validation scans.

    A training scan that is not there while its label is, is listed too: reading it says so.
    """
    named = [(path, match) for path in scans(raw, "**/*") if (match := _FILE.fullmatch(stem(path)))]
    images = one_each(path for path, match in named if match["channel"])
    labels = one_each(path for path, match in named if not match["channel"] and match["set"] != "Case")
    for name, label in labels.items():
        if name.startswith("FLARE22_Tr"):
            images.setdefault(f"{name}_0000", label.with_name(label.name.replace(name, f"{name}_0000", 1)))
    demand_cases(list(images), raw=raw, layout="FLARE22_Tr_0001_0000.nii.gz with its label, or other files of FLARE22")
    return [_source(name.removesuffix("_0000"), image=images[name], labels=labels) for name in sorted(images)]


def _source(case_id: str, *, image: Path, labels: dict[str, Path]) -> CaseSource:
    values = {value: (organ,) for value, organ in enumerate(_ORGANS, start=1)}
    labelled = case_id.startswith("FLARE22_Tr") or case_id in labels
    label = labels.get(case_id, image.with_name(f"{case_id}.nii.gz"))
    files = (LabelFile(path=label, values=values),) if labelled else ()
    return CaseSource(
        case_id=case_id,
        images=(image,),
        labels=files,
        annotated=_ORGANS if files else (),
        split="validation" if case_id.startswith("FLARETs") else "train",
    )
