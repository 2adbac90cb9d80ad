"""SegRap2023's second task: the gross tumour volumes GTVp and GTVnd on the contrast CT alone, as MultiTalent's authors took it.

Reads what `segrap2023` reads, from the same source and under its terms; the CT without contrast and the organs may be missing.
"""
# pyright: reportMissingImports=false

from pathlib import Path

from segsweep.data.case import CaseSource
from segsweep.data.segrap_labels import TUMOURS
from segsweep.data.structures import LabelSet
from segsweep.datasets.segrap2023 import task_cases

LABELS = LabelSet(structures=TUMOURS)
CHANNELS = ("contrast_CT",)


def cases(raw: Path) -> list[CaseSource]:
    """All cases in the order of their ids. Raises InputError that names a case that is there twice."""
    return task_cases(raw, structures=TUMOURS, channel=CHANNELS[0])
