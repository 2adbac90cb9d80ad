"""Reads RTSTRUCT: planar contours in patient space, drawn on the slices of one series, as masks on that series' own grid."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from segsweep.data.contours import DECIMALS, fill_contours
from segsweep.data.dicom_file import items, numbers, open_dicom, text, whole
from segsweep.data.geometry import Geometry
from segsweep.data.readers import Reference, Scan
from segsweep.errors import InputError

# The second is the newer standard's name for contours that are to be filled by the even-odd rule, as ours all are.
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# How far the points of a contour may lie off one plane: coordinates are often written with one decimal.
PLANAR_WITHIN_MM = 0.1
# How far a contour may reach beyond the outer edge of the scan's outer pixels, in pixels.
OUTSIDE_WITHIN = 0.5
# A structure drawn on this many slices, all of them equally far apart, with others between them, was left to be interpolated.
SPARSE_SLICES = 4
# No patient is further away from the scanner's centre.
MAX_MM = 1e5
_MAX_NUMBER = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """One contour in index space. `height` is its slice index before it was rounded to `index`; `points` are (row, column)."""

    index: int
    height: float
    points: NDArray[np.float64]


def structure_names(path: Path) -> tuple[str, ...]:
    """Names of the structures that have contours, in the file's order: planning systems also list what nobody drew.

    Raises InputError for a file that is damaged or no RTSTRUCT.
    """
    dataset = _opened(path)
    names = (text(roi, "ROIName") for roi, contours in _drawn(dataset, name=path.name) if contours)
    return tuple(dict.fromkeys(names))


def read_structures(path: Path, *, scan: Scan, names: Mapping[str, str]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """(structure, mask on the scan's own grid) of each drawn structure that `names` maps; one structure may come twice.

    A voxel belongs to a structure when its centre lies inside an odd number of the slice's contours, a contour written twice being one.
    Contours between slices go to the nearest one. Raises InputError for a damaged file, one that was drawn on another series or frame
    of reference, contours that are not closed, of no structure, not in the planes of the slices or out of the scan, and structures
    drawn on finer or sparser slices.
    """
    dataset, name = _opened(path), path.name
    if scan.reference is None:
        raise InputError(f"{name} was drawn on a DICOM series; expected one as the image; give the series, not a copy")
    listed = _listed_images(dataset)
    for roi, contours in _drawn(dataset, name=name):
        label = text(roi, "ROIName")
        if label not in names or not contours:
            continue
        # Never the name in the file: people type what they like there, a patient's name too.
        where = f"{name}: structure {names[label]!r}"
        _demand_same_frame(dataset, roi=roi, reference=scan.reference, where=where)
        _demand_same_series(contours, listed=listed, reference=scan.reference, where=where)
        drawings = [_placed(contour, scan=scan, where=where) for contour in contours]
        yield names[label], _mask(drawings, geometry=scan.geometry, where=where)


def _opened(path: Path) -> Dataset:
    dataset = open_dicom(path)
    if text(dataset, "Modality") != "RTSTRUCT":
        raise InputError(f"{path.name} is no RTSTRUCT; expected modality RTSTRUCT; choose another file")
    if not items(dataset, "StructureSetROISequence"):
        raise InputError(f"{path.name} lists no structures; expected at least one; export it again")
    if "ROIContourSequence" not in dataset:
        raise InputError(f"{path.name} ends before its contours; expected a whole RTSTRUCT; copy or export it again")
    return dataset


def _drawn(dataset: Dataset, *, name: str) -> Iterator[tuple[Dataset, list[Dataset]]]:
    """(structure, its contours without points) in the file's order."""
    contours: dict[int, list[Dataset]] = defaultdict(list)
    for item in items(dataset, "ROIContourSequence"):
        number = whole(item, "ReferencedROINumber", name=name, low=0, high=_MAX_NUMBER)
        contours[number] += [
            part for part in items(item, "ContourSequence") if text(part, "ContourGeometricType") != "POINT"
        ]
    seen = set()
    for roi in items(dataset, "StructureSetROISequence"):
        number = whole(roi, "ROINumber", name=name, low=0, high=_MAX_NUMBER)
        if number in seen:
            raise InputError(f"{name}: two structures have number {number}; expected different ones; export it again")
        seen.add(number)
        yield roi, contours.pop(number, [])
    nameless = next((number for number, found in contours.items() if found), None)
    if nameless is not None:
        raise InputError(f"{name}: contours of structure {nameless}, which it does not list; export it again")


def _listed_images(dataset: Dataset) -> dict[str, set[str]]:
    """Series UID -> UIDs of its images, of every series that the file says it was drawn on."""
    return {
        text(series, "SeriesInstanceUID"): {
            text(image, "ReferencedSOPInstanceUID") for image in items(series, "ContourImageSequence")
        }
        for frame in items(dataset, "ReferencedFrameOfReferenceSequence")
        for study in items(frame, "RTReferencedStudySequence")
        for series in items(study, "RTReferencedSeriesSequence")
    }


def _demand_same_frame(dataset: Dataset, *, roi: Dataset, reference: Reference, where: str) -> None:
    frames = {text(item, "FrameOfReferenceUID") for item in items(dataset, "ReferencedFrameOfReferenceSequence")}
    found = {text(roi, "ReferencedFrameOfReferenceUID")} - {""} or frames
    if found != {reference.frame_of_reference}:
        raise InputError(
            f"{where} has another frame of reference than the image; expected the same; is it this scan's?"
        )


def _demand_same_series(
    contours: Sequence[Dataset], *, listed: Mapping[str, set[str]], reference: Reference, where: str
) -> None:
    """The contours' images must be the scan's. A series that the file names may hold other images: it was cut or written anew."""
    known = set(reference.sop_uids) - {""}
    foreign = {uid for series, images in listed.items() if series != reference.series_uid for uid in images} - known
    used = {
        text(image, "ReferencedSOPInstanceUID") for part in contours for image in items(part, "ContourImageSequence")
    }
    if reference.series_uid in listed and reference.series_uid:
        belongs = not used & foreign
    else:
        belongs = bool(used) and used <= known if (used or listed) else True
    if not belongs:
        raise InputError(f"{where} was drawn on another series than the image; expected this one; is it this scan's?")


def _placed(contour: Dataset, *, scan: Scan, where: str) -> _Drawing:
    """One contour in the scan's index space, on its slice."""
    kind, geometry = text(contour, "ContourGeometricType"), scan.geometry
    if kind not in CLOSED:
        raise InputError(
            f"{where} has contours that are not closed in a plane; expected CLOSED_PLANAR; export it again"
        )
    points = _points(contour, where=where)
    index = (points - np.asarray(geometry.origin)) @ np.linalg.inv(geometry.matrix).T
    heights = index[:, 0]
    if np.ptp(heights) * geometry.spacing[0] > PLANAR_WITHIN_MM:
        raise InputError(
            f"{where} has a contour {np.ptp(heights) * geometry.spacing[0]:.2f} mm thick across the slices; expected contours in "
            "the planes of the slices; export it on this series"
        )
    height = float(heights.mean())
    nearest = int(np.floor(height + 0.5))
    edge = np.asarray(geometry.shape[1:]) - 0.5 + OUTSIDE_WITHIN
    beyond = np.any(index[:, 1:] < -0.5 - OUTSIDE_WITHIN) or np.any(index[:, 1:] > edge)
    if beyond or not 0 <= nearest < geometry.shape[0]:
        raise InputError(f"{where} has a contour outside the scan; expected all inside; is the whole series there?")
    referenced = {text(image, "ReferencedSOPInstanceUID") for image in items(contour, "ContourImageSequence")}
    uids = scan.reference.sop_uids if scan.reference else ()
    if len(referenced & set(uids)) and uids[nearest] not in referenced:
        raise InputError(
            f"{where} has a contour on slice {nearest} that says it was drawn on another one; expected one place; export it again"
        )
    return _Drawing(index=nearest, height=height, points=index[:, 1:])


def _points(contour: Dataset, *, where: str) -> NDArray[np.float64]:
    """(points, 3) in LPS mm. Millions of numbers: read from the raw text, since pydicom makes an object of each."""
    raw = contour.get_item("ContourData")
    if isinstance(raw, RawDataElement) and isinstance(raw.value, bytes):
        try:
            flat = np.array(raw.value.decode("ascii").strip(" \0").split("\\"), dtype=np.float64)
        except ValueError:
            flat = np.array([np.nan])
    else:
        flat = numbers(contour, "ContourData", name=where)
    if len(flat) % 3 or not np.all(np.abs(flat) <= MAX_MM):
        raise InputError(f"{where} has a contour whose points are not three finite numbers each; export it again")
    whole(contour, "NumberOfContourPoints", name=where, low=len(flat) // 3, high=len(flat) // 3)
    return flat.reshape(-1, 3)


def _mask(drawings: Sequence[_Drawing], *, geometry: Geometry, where: str) -> NDArray[np.bool_]:
    slices: dict[int, list[_Drawing]] = defaultdict(list)
    for drawing in drawings:
        slices[drawing.index].append(drawing)
    steps = np.diff(sorted(slices))
    if len(slices) >= SPARSE_SLICES and steps.min() == steps.max() > 1:
        raise InputError(
            f"{where} was drawn on every {_ordinal(int(steps[0]))} slice; expected all of them; interpolate the contours first"
        )
    mask = np.zeros(geometry.shape, dtype=bool)
    for index, group in slices.items():
        if np.ptp([drawing.height for drawing in group]) * geometry.spacing[0] > PLANAR_WITHIN_MM:
            raise InputError(
                f"{where} was drawn on finer slices than the scan's {geometry.spacing[0]:g} mm; expected one plane a slice; "
                "export it on this series"
            )
        # Some systems write a contour twice; by the even-odd rule it would then be gone. Wherever it begins, its corners are the same.
        once = {np.unique(drawing.points.round(DECIMALS), axis=0).tobytes(): drawing.points for drawing in group}
        mask[index] = fill_contours(list(once.values()), shape=geometry.shape[1:])
    return mask


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")
