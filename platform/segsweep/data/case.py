"""What a dataset recipe says about one case: which files hold its channels and its labels, and what was annotated."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from segsweep.errors import InputError

Split = Literal["train", "validation", "test"]
CASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """A label map on the scan's grid. `values` says which structures a voxel value stands for; 0 is background."""

    path: Path
    values: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class CaseSource:
    """One case as it lies on disk. `annotated` names the structures that somebody looked for in it (none = unlabelled).

    `group` keeps cases of one patient in the same fold. `split` "train" is divided into folds; the others are held out.
    """

    case_id: str
    images: tuple[Path, ...]
    labels: tuple[LabelFile, ...] = ()
    annotated: tuple[str, ...] = field(default=())
    group: str = ""
    split: Split = "train"

    def __post_init__(self) -> None:
        if not CASE_ID.fullmatch(self.case_id):
            raise InputError(
                f"case id {self.case_id!r} cannot be used: expected letters, digits, '.', '_' and '-', at most 128"
            )
