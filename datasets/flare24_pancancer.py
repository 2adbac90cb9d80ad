"""FLARE24 Task 1: lesions of any cancer in CT, about 5000 partially labelled and 5000 unlabelled scans from public collections.

From the FLARE 2024 challenge (codabench.org); licence: see the source, each part keeps its collection's own. `raw` holds
`Train-Labeled/PART/` with `Train-Labeled/labelsTr/`, `Train-Unlabeled/PART/`, `Validation-Hidden/` and
`Validation-Public/{lesion-images,lesion-gts,HealthyImages-noLesion}`; parts may be left out, and labels without a scan are passed over.

Partial means: a scan's label holds the lesions that its own collection looked for (those of the kidney in KiTS23), and other
lesions of the patient may lie unlabelled in the background. The files do not say where, so `lesion` counts as annotated in every
labelled scan, and its background is only almost surely healthy. Scans without lesion are annotated, and empty.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile, Split
from segsweep.data.layouts import demand_cases, one_each, scans
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("lesion",))
CHANNELS = ("CT",)

_LABELLED, _HEALTHY = "Train-Labeled", "HealthyImages-noLesion"
# Folder of scans, folder of their labels, and what the scans are for.
_SETS: tuple[tuple[str, str, Split], ...] = (
    (_LABELLED, f"{_LABELLED}/labelsTr", "train"),
    ("Train-Unlabeled", "", "train"),
    ("Validation-Hidden", "", "validation"),
    ("Validation-Public/lesion-images", "Validation-Public/lesion-gts", "validation"),
    (f"Validation-Public/{_HEALTHY}", "", "validation"),
)


def cases(raw: Path) -> list[CaseSource]:
    """The scans of all parts that are there."""
    found = []
    for folder, label_folder, split in _SETS:
        images = [path for path in scans(raw, f"{folder}/**/*") if path.parent.name != "labelsTr"]
        known = one_each(scans(raw, f"{label_folder}/*")) if label_folder else {}
        for stem, path in one_each(images).items():
            case_id = stem.removesuffix("_0000")
            files: tuple[LabelFile, ...] = ()
            if label_folder:
                label = known.get(case_id, raw / label_folder / f"{case_id}.nii.gz")
                files = (LabelFile(path=label, values={1: LABELS.structures}),)
            annotated = LABELS.structures if files or path.parent.name == _HEALTHY else ()
            found.append(CaseSource(case_id=case_id, images=(path,), labels=files, annotated=annotated, split=split))
    demand_cases(found, raw=raw, layout="Train-Labeled/, Train-Unlabeled/, Validation-Hidden/ or Validation-Public/")
    return found
