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
class Series:
    """The slices of one DICOM series, one file each, in any order."""

    files: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class ChannelFile:
    """One NIfTI file that holds all of several channels, one after the other along its fourth axis."""

    path: Path
    num_channels: int


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """A label map on the scan's grid. `values` says which structures a voxel value stands for; 0 is background.

    Voxels of value `ignore` count as unknown: nothing is learnt from them and nothing is scored there. `flip` ("", "y", "zy", ...) is
    for a dataset whose label headers are known not to fit: see data/flips.py.
    """

    path: Path
    values: Mapping[int, tuple[str, ...]]
    ignore: int | None = None
    flip: str | None = None


@dataclass(frozen=True, kw_only=True)
class MaskFile:
    """A file of its own for one structure, on the scan's grid: every voxel that is not 0 belongs to it."""

    path: Path
    structure: str


@dataclass(frozen=True, kw_only=True)
class SegmentFile:
    """RTSTRUCT, DICOM SEG or `.seg.nrrd`: named segments, which may overlap. `names` maps their names to structures.

    Segments that `names` leaves out are not read.
    """

    path: Path
    names: Mapping[str, str]


Image = Path | Series | ChannelFile
Labels = LabelFile | MaskFile | SegmentFile


def lies_below(path: Path, *, root: Path) -> bool:
    """Whether a file is below a folder when links are followed. Links in a circle are not."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


@dataclass(frozen=True, kw_only=True)
class CaseSource:
    """One case as it lies on disk. `annotated` names the structures that somebody looked for in it (none = unlabelled).

    `group` keeps cases of one patient in the same fold. `split` "train" is divided into folds; the others are held out.
    Where `root` is set, files must lie below that folder when links are followed.
    """

    case_id: str
    images: tuple[Image, ...]
    labels: tuple[Labels, ...] = ()
    annotated: tuple[str, ...] = field(default=())
    group: str = ""
    split: Split = "train"
    root: Path | None = None

    @property
    def num_channels(self) -> int:
        """How many channels the images hold together."""
        return sum(image.num_channels if isinstance(image, ChannelFile) else 1 for image in self.images)

    def __post_init__(self) -> None:
        if not CASE_ID.fullmatch(self.case_id):
            raise InputError(
                f"case id {self.case_id[:160]!r} cannot be used; expected plain letters and digits, and after the first '.', '_' and '-', "
                "at most 128; rename the case's files"
            )
