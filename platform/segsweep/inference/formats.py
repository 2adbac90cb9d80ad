"""The files that a segmented scan becomes: `predict --format NAME` names an entry of `FORMATS`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from numpy.typing import NDArray

from segsweep.data.dicom_writing import dicom_names
from segsweep.data.geometry import Geometry
from segsweep.data.readers import Reference
from segsweep.data.segrap_labels import ORGANS, TUMOURS
from segsweep.data.structures import LabelTable
from segsweep.errors import InputError, RecipeError, unknown
from segsweep.inference.dicom_seg import write_dicom_seg
from segsweep.inference.masks import demand_file_names, write_masks
from segsweep.inference.rtstruct import write_rtstruct
from segsweep.inference.scans import ScanCase, Segmentable, StoreCase, files_of
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


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a segmentation becomes `CASE` + suffix: complete or not at all, InputError for what the format cannot hold.

    `demand` refuses, before any scan is segmented, structures that it could not hold. What is `of_series` refers to a DICOM series.
    """

    suffix: str
    writer: Callable[[Segmentation, Path], None]
    demand: Callable[[LabelTable], object] | None = None
    of_series: bool = False

    def path(self, out: Path, *, case_id: str) -> Path:
        """The file or folder that a case becomes in the folder `out`."""
        return out / f"{case_id}{self.suffix}"

    def write(self, found: Segmentation, out: Path) -> None:
        """Write a case into the folder `out`."""
        self.writer(found, self.path(out, case_id=found.case_id))


def find_format(name: str) -> Format:
    """The format of that name. Raises RecipeError with the nearest names when there is none."""
    if name not in FORMATS:
        raise RecipeError(unknown(name, kind="formats", known=FORMATS))
    return FORMATS[name]


def demand_possible(name: str, *, scans: Sequence[Segmentable], table: LabelTable) -> None:
    """Raises InputError, before hours are spent, where a format cannot hold a model's structures, or the scans are no DICOM series."""
    wanted = find_format(name)
    if wanted.of_series and any(isinstance(scan, ScanCase | StoreCase) for scan in scans):
        raise _no_series("these scans", name=name)
    if wanted.demand is not None:
        wanted.demand(table)


def demand_apart(targets: Iterable[Path], *, scans: Sequence[Segmentable]) -> None:
    """Raises InputError that names a file or folder to be written which is, or holds, a file that these scans are read from."""
    there = {target.resolve(): target for target in targets if target.exists()}
    for file in (file.resolve() for scan in scans if there for file in files_of(scan) if file.exists()):
        for place in (file, *file.parents):
            if place in there:
                raise InputError(
                    f"{there[place]} is, or holds, a scan that is to be segmented, and its result would take its place; "
                    "expected another place for results; choose an empty folder"
                )


def _no_series(what: str, *, name: str) -> InputError:
    others = ", ".join(other for other, one in FORMATS.items() if not one.of_series)
    return InputError(
        f"the format {name} refers to a DICOM series; {what} did not come as one; segment the series, or choose one of {others}"
    )


def _label_map(found: Segmentation, path: Path) -> None:
    write_label_map(found.label, geometry=found.geometry, path=path)


def _masks(found: Segmentation, path: Path) -> None:
    write_masks(found.label, geometry=found.geometry, table=found.table, folder=path)


def _segments(found: Segmentation, path: Path) -> None:
    write_segments(found.label, geometry=found.geometry, table=found.table, path=path)


def _segrap(structures: tuple[str, ...]) -> Format:
    """A file of four dimensions."""

    def write(found: Segmentation, path: Path) -> None:
        write_stacked(found.label, geometry=found.geometry, table=found.table, structures=structures, path=path)

    return Format(suffix=".mha", writer=write, demand=partial(demand_structures, structures=structures))


def _of_series(name: str, *, suffix: str, writer: Callable[..., None]) -> Format:
    """A file on the slices of the series."""

    def write(found: Segmentation, path: Path) -> None:
        if found.reference is None:
            raise _no_series(found.case_id, name=name)
        writer(found.label, table=found.table, geometry=found.geometry, reference=found.reference, path=path)

    return Format(suffix=suffix, writer=write, demand=partial(dicom_names, name=f"format {name}"), of_series=True)


FORMATS: Mapping[str, Format] = {
    "nii.gz": Format(suffix=".nii.gz", writer=_label_map),
    "nrrd": Format(suffix=".nrrd", writer=_label_map),
    "mha": Format(suffix=".mha", writer=_label_map),
    "masks": Format(suffix="", writer=_masks, demand=demand_file_names),
    "seg.nrrd": Format(suffix=".seg.nrrd", writer=_segments, demand=demand_segment_names),
    "segrap2023_oar": _segrap(ORGANS),
    "segrap2023_gtv": _segrap(TUMOURS),
    "dicom-seg": _of_series("dicom-seg", suffix=".seg.dcm", writer=write_dicom_seg),
    "rtstruct": _of_series("rtstruct", suffix=".rtstruct.dcm", writer=write_rtstruct),
}
