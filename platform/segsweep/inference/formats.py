"""The files that a segmented scan becomes: `predict --format NAME` names an entry of `FORMATS`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from segsweep.data.geometry import Geometry
from segsweep.data.readers import Reference
from segsweep.data.structures import LabelTable
from segsweep.errors import InputError, RecipeError, unknown
from segsweep.inference.dicom_seg import write_dicom_seg
from segsweep.inference.rtstruct import write_rtstruct
from segsweep.inference.scans import ScanCase, Segmentable, StoreCase
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


def demand_series(scans: Sequence[Segmentable], *, kind: str) -> None:
    """Raises InputError for scans that are no DICOM series where the format refers to one, before hours are spent on them."""
    if kind in _OF_SERIES and any(isinstance(scan, ScanCase | StoreCase) for scan in scans):
        raise _no_series("these scans", kind=kind)


def _no_series(what: str, *, kind: str) -> InputError:
    others = ", ".join(name for name in FORMATS if name not in _OF_SERIES)
    return InputError(
        f"the format {kind} refers to a DICOM series; {what} did not come as one; segment the series, or choose one of {others}"
    )


def _of_series(kind: str) -> Format:
    """`CASE.seg.dcm`, `CASE.rtstruct.dcm`."""

    def write(found: Segmentation, out: Path) -> None:
        if found.reference is None:
            raise _no_series(found.case_id, kind=kind)
        suffix, writer = _OF_SERIES[kind]
        path = out / f"{found.case_id}{suffix}"
        writer(found.label, table=found.table, geometry=found.geometry, reference=found.reference, path=path)

    return write


def _label_map(suffix: str) -> Format:
    """`CASE` + suffix."""

    def write(found: Segmentation, out: Path) -> None:
        write_label_map(found.label, geometry=found.geometry, path=out / f"{found.case_id}{suffix}")

    return write


_OF_SERIES: Mapping[str, tuple[str, Callable[..., None]]] = {
    "dicom-seg": (".seg.dcm", write_dicom_seg),
    "rtstruct": (".rtstruct.dcm", write_rtstruct),
}

FORMATS: Mapping[str, Format] = {
    "nii.gz": _label_map(".nii.gz"),
    "nrrd": _label_map(".nrrd"),
    "mha": _label_map(".mha"),
    "dicom-seg": _of_series("dicom-seg"),
    "rtstruct": _of_series("rtstruct"),
}
