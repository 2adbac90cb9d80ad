"""Named segments of any format that a SegmentFile may have: `.seg.nrrd`, DICOM SEG or RTSTRUCT, told apart by what the file is."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data import dicom_seg, rtstruct, segmented_nrrd
from segsweep.data.dicom_objects import modality_of
from segsweep.data.readers import Scan
from segsweep.errors import InputError

Masks = Iterator[tuple[str, NDArray[np.bool_]]]

_NAMES: Mapping[str, Callable[[Path], tuple[str, ...]]] = {
    segmented_nrrd.SUFFIX: segmented_nrrd.segment_names,
    "SEG": dicom_seg.segment_names,
    "RTSTRUCT": rtstruct.structure_names,
}
_MASKS: Mapping[str, Callable[..., Masks]] = {
    segmented_nrrd.SUFFIX: segmented_nrrd.read_segments,
    "SEG": dicom_seg.read_segments,
    "RTSTRUCT": rtstruct.read_structures,
}


def segment_names(path: Path) -> tuple[str, ...]:
    """Names of the segments in the file's order. Raises InputError for a file of another kind or a damaged one."""
    return _NAMES[_kind(path)](path)


def read_segments(path: Path, *, scan: Scan, names: Mapping[str, str]) -> Masks:
    """(structure, mask on the scan's own grid) of each segment that `names` maps to a structure; one structure may come twice.

    Raises InputError for a file of another kind, a damaged one, one that was drawn on another scan, and another grid.
    """
    return _MASKS[_kind(path)](path, scan=scan, names=names)


def _kind(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path.name} is not there (in {path.parent}); expected a segmentation; check the path")
    kind = segmented_nrrd.SUFFIX if segmented_nrrd.is_segmented(path) else modality_of(path)
    if kind not in _NAMES:
        raise InputError(
            f"{path.name} is {'DICOM of another modality' if kind else 'no DICOM file or a damaged one'}; expected RTSTRUCT, DICOM SEG or "
            f"a name that ends with {segmented_nrrd.SUFFIX}"
        )
    return kind
