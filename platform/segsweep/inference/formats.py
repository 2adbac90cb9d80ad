"""The files that a segmented scan becomes: `predict --format NAME` names an entry of `FORMATS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from numpy.typing import NDArray

from segsweep.data.geometry import Geometry
from segsweep.data.readers import Reference
from segsweep.data.segrap_labels import ORGANS, TUMOURS
from segsweep.data.structures import LabelTable
from segsweep.errors import RecipeError, unknown
from segsweep.inference.masks import demand_file_names, write_masks
from segsweep.inference.segrap import demand_structures, write_stacked
from segsweep.inference.slicer import demand_segment_names, write_segments
from segsweep.inference.writers import write_label_map

DEFAULT = "nii.gz"


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A case's atom values (z, y, x) in the file's own axis order, on the file's grid, and the table that says what they mean.

    `reference` are the UIDs of the DICOM series that was segmented; None for a scan that came from elsewhere.
    """

    case_id: str
    label: NDArray
    geometry: Geometry
    table: LabelTable
    reference: Reference | None = None


# Writes a segmentation into a folder: each file complete or not at all. Raises InputError for what the format cannot hold.
Format = Callable[[Segmentation, Path], None]


def find_format(name: str) -> Format:
    """The format of that name. Raises RecipeError with the nearest names when there is none."""
    if name not in FORMATS:
        raise RecipeError(unknown(name, kind="formats", known=FORMATS))
    return FORMATS[name]


def demand_holdable(name: str, *, table: LabelTable) -> None:
    """Raise InputError when the format of that name cannot hold a model's structures: before any scan is segmented."""
    if name in DEMANDS:
        DEMANDS[name](table)


def _label_map(suffix: str) -> Format:
    """`CASE` + suffix."""

    def write(found: Segmentation, out: Path) -> None:
        write_label_map(found.label, geometry=found.geometry, path=out / f"{found.case_id}{suffix}")

    return write


def _masks(found: Segmentation, out: Path) -> None:
    """`CASE/STRUCTURE.nii.gz`."""
    write_masks(found.label, geometry=found.geometry, table=found.table, folder=out / found.case_id)


def _segments(found: Segmentation, out: Path) -> None:
    """`CASE.seg.nrrd`."""
    path = out / f"{found.case_id}.seg.nrrd"
    write_segments(found.label, geometry=found.geometry, table=found.table, path=path)


def _segrap(structures: tuple[str, ...]) -> Format:
    """`CASE.mha` of four dimensions."""

    def write(found: Segmentation, out: Path) -> None:
        path = out / f"{found.case_id}.mha"
        write_stacked(found.label, geometry=found.geometry, table=found.table, structures=structures, path=path)

    return write


FORMATS: Mapping[str, Format] = {
    "nii.gz": _label_map(".nii.gz"),
    "nrrd": _label_map(".nrrd"),
    "mha": _label_map(".mha"),
    "masks": _masks,
    "seg.nrrd": _segments,
    "segrap2023_oar": _segrap(ORGANS),
    "segrap2023_gtv": _segrap(TUMOURS),
}
# What a format asks of a model's structures.
DEMANDS: Mapping[str, Callable[[LabelTable], None]] = {
    "masks": demand_file_names,
    "seg.nrrd": demand_segment_names,
    "segrap2023_oar": partial(demand_structures, structures=ORGANS),
    "segrap2023_gtv": partial(demand_structures, structures=TUMOURS),
}
