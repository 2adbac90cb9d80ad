"""SegRap2023's first task: 45 organs at risk on the CT without contrast alone, as MultiTalent's authors took it.

Reads what `segrap2023` reads, from the same source and under its terms; the contrast CT and the tumours may be missing.
"""
# pyright: reportMissingImports=false

from pathlib import Path

from segsweep.data.case import CaseSource
from segsweep.data.layouts import pairs_of
from segsweep.data.segrap_labels import ORGANS
from segsweep.data.structures import LabelSet
from segsweep.datasets.segrap2023 import task_cases

LABELS = LabelSet(structures=ORGANS, pairs=pairs_of(ORGANS))
CHANNELS = ("non_contrast_CT",)


def cases(raw: Path) -> list[CaseSource]:
    """All cases in the order of their ids. Raises InputError that names a case that is there twice."""
    return task_cases(raw, structures=ORGANS, channel=CHANNELS[0])
