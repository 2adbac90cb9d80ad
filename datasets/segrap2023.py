"""SegRap2023 (Luo et al., Medical Image Analysis 2025, arXiv:2312.09576): 45 organs at risk and 2 tumour volumes in head and neck.

From segrap2023.grand-challenge.org, on request; licence: see the source. `raw` holds, at any depth, `segrap_0000/` with `image.nii.gz`
(without contrast), `image_contrast.nii.gz` (registered to it) and one mask a structure (`Brain.nii.gz` …, `GTVp.nii.gz`,
`GTVnd.nii.gz`), or instead of the masks the organisers' one-hot label set, `Task001/segrap_0000.nii.gz` (54 values) and
`Task002/segrap_0000.nii.gz`, in a folder of its own. Masks are preferred, and one that is not there counts as not annotated. Ids to
0119 are the training set, to 0139 the validation set, the others the test set.

Both channels are CT, and are normalised as CT; nnU-Net's official baseline z-scores them. `segrap2023_oar` and `segrap2023_gtv` are the
challenge's two tasks, with one of the channels each.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile, Labels, MaskFile, Split
from segsweep.data.layouts import demand_cases, pairs_of, scans
from segsweep.data.readers import stem
from segsweep.data.segrap_labels import OFFICIAL, ORGANS, TUMOURS
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

LABELS = LabelSet(structures=(*ORGANS, *TUMOURS), pairs=pairs_of(ORGANS))
CHANNELS = ("non_contrast_CT", "contrast_CT")

# Folder of the one-hot label set -> what it holds.
_TASKS = {
    "task001": (ORGANS, OFFICIAL),
    "task002": (TUMOURS, {value: (name,) for value, name in enumerate(TUMOURS, start=1)}),
}
_IMAGES = ("image", "image_contrast")
_CASE = re.compile(r"segrap_(\d{4})")


def cases(raw: Path) -> list[CaseSource]:
    """All cases in the order of their ids. Raises InputError that names a case that is there twice."""
    folders: dict[Path, dict[str, Path]] = {}
    for path in scans(raw, "**/segrap_*/*.nii.gz"):
        folders.setdefault(path.parent, {})[stem(path)] = path
    demand_cases(list(folders), raw=raw, layout="segrap_0000/image.nii.gz and image_contrast.nii.gz")
    names = [folder.name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} is there twice below {raw}; expected it once; take one away")
    sets = {(path.parent.name.lower(), stem(path)): path for path in scans(raw, "**/[Tt]ask00[12]/segrap_*.nii.gz")}
    return [_source(folder.name, files=folders[folder], sets=sets) for folder in sorted(folders, key=lambda f: f.name)]


def task_cases(raw: Path, *, structures: Collection[str], channel: str) -> list[CaseSource]:
    """The same cases with some of the structures and one channel alone; files of the others are not read."""
    index = CHANNELS.index(channel)
    return [
        replace(
            case,
            images=case.images[index : index + 1],
            labels=tuple(file for file in case.labels if _structures(file) <= set(structures)),
            annotated=tuple(name for name in case.annotated if name in structures),
        )
        for case in cases(raw)
    ]


def _structures(file: Labels) -> set[str]:
    if isinstance(file, MaskFile):
        return {file.structure}
    return {name for names in file.values.values() for name in names} if isinstance(file, LabelFile) else set()


def _source(case_id: str, *, files: dict[str, Path], sets: dict[tuple[str, str], Path]) -> CaseSource:
    labels: list[Labels] = []
    annotated: list[str] = []
    for task, (structures, values) in _TASKS.items():
        masks = [name for name in structures if name in files]
        labels += [MaskFile(path=files[name], structure=name) for name in masks]
        annotated += masks
        if not masks and (task, case_id) in sets:
            labels.append(LabelFile(path=sets[task, case_id], values=values))
            annotated += structures
    split = _split(case_id)
    folder = next(iter(files.values())).parent
    if split == "train" and not labels:  # reading it says that it is not there
        labels.append(MaskFile(path=folder / f"{ORGANS[0]}.nii.gz", structure=ORGANS[0]))
    images = tuple(folder / f"{name}.nii.gz" for name in _IMAGES)
    return CaseSource(case_id=case_id, images=images, labels=tuple(labels), annotated=tuple(annotated), split=split)


def _split(case_id: str) -> Split:
    number = _CASE.fullmatch(case_id)
    if number is None:
        raise InputError(f"{case_id} is no case of SegRap2023; expected segrap_0000 to segrap_0199; rename the folder")
    return "train" if int(number[1]) < 120 else "validation" if int(number[1]) < 140 else "test"
