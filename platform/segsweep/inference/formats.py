"""The files that a segmented scan becomes: `predict --format NAME` names an entry of `FORMATS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from segsweep.data.geometry import Geometry
from segsweep.data.readers import Reference
from segsweep.data.structures import LabelTable
from segsweep.errors import RecipeError, unknown
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


def _label_map(suffix: str) -> Format:
    """`CASE` + suffix."""

    def write(found: Segmentation, out: Path) -> None:
        write_label_map(found.label, geometry=found.geometry, path=out / f"{found.case_id}{suffix}")

    return write


FORMATS: Mapping[str, Format] = {
    "nii.gz": _label_map(".nii.gz"),
    "nrrd": _label_map(".nrrd"),
    "mha": _label_map(".mha"),
}
