"""Medical Segmentation Decathlon (Antonelli et al., Nature Communications 2022, doi:10.1038/s41467-022-30695-9), any of its ten tasks.

From medicaldecathlon.com, CC BY-SA 4.0. `raw` is one unpacked task, `Task03_Liver/{imagesTr,labelsTr,imagesTs,dataset.json}`; the
prefix of its files (`liver_0.nii.gz`) tells which. A cancer is part of its organ, as in MultiTalent: liver = {1, 2}, liver_cancer =
{2}. BrainTumour's regions have the names that `brats21` gives them; its four channels, and Prostate's two, lie in one 4D file a case.
"""

from collections.abc import Mapping
from pathlib import Path

from segsweep.data.case import CaseSource
from segsweep.data.layouts import entry, pairs_of
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError, unknown
from segsweep.recipes import load

decathlon = load("datasets", name="decathlon")

# Prefix of a task's files -> value -> structures.
TASKS: Mapping[str, Mapping[int, tuple[str, ...]]] = {
    "brats": {1: ("edema",), 2: ("non-enhancing",), 3: ("enhancing",)},
    "la": {1: ("left_atrium",)},
    "liver": {1: ("liver",), 2: ("liver", "liver_cancer")},
    "hippocampus": {1: ("hippocampus_anterior",), 2: ("hippocampus_posterior",)},
    "prostate": {1: ("prostate_peripheral_zone",), 2: ("prostate_transition_zone",)},
    "lung": {1: ("lung_cancer",)},
    "pancreas": {1: ("pancreas",), 2: ("pancreas", "pancreas_cancer")},
    "hepaticvessel": {1: ("hepatic_vessel",), 2: ("hepatic_tumour",)},
    "spleen": {1: ("spleen",)},
    "colon": {1: ("colon_cancer",)},
}

channels = decathlon.channels


def labels(raw: Path) -> LabelSet:
    """The structures of the task that `raw` holds."""
    names = tuple(dict.fromkeys(name for names in _values(raw).values() for name in names))
    return LabelSet(structures=names, pairs=pairs_of(names))


def cases(raw: Path) -> list[CaseSource]:
    """The task's training and test scans. Raises InputError that names the case and file that cannot be used."""
    return decathlon.listed_cases(raw, values=_values(raw))


def _values(raw: Path) -> Mapping[int, tuple[str, ...]]:
    content = decathlon.manifest(raw)
    decathlon.channels(raw)
    names = [str(row.get("image")) for row in entry(content, key="training", kind=list, file=decathlon.FILE) if row]
    prefixes = {Path(name).name.lower().partition("_")[0] for name in names if not Path(name).name.startswith("._")}
    if len(prefixes) != 1:
        raise InputError(
            f"{decathlon.FILE}: scans of {len(prefixes)} tasks ({', '.join(sorted(prefixes))[:60]}); expected one task; "
            "convert tasks one by one"
        )
    task = prefixes.pop()
    if task not in TASKS:
        raise InputError(
            f"{decathlon.FILE}: {unknown(task, kind='Decathlon tasks', known=TASKS)}; read it as decathlon"
        )
    if set(decathlon.values(content)) != set(TASKS[task]):
        raise InputError(
            f"{decathlon.FILE}: label values {sorted(decathlon.values(content))}; expected {sorted(TASKS[task])} "
            f"for the task {task!r}; read it as decathlon"
        )
    return TASKS[task]
