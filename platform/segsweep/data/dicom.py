"""Reads DICOM series, one file a slice or enhanced ones: sorted along the normal of the slices, in the scanner's units (HU for CT)."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data.case import Series
from segsweep.data.dicom_file import (
    ENHANCED,
    Dataset,
    is_dicom,
    numbers,
    open_dicom,
    sop_class,
    sop_instance,
    text,
    whole,
)
from segsweep.data.dicom_frames import FRAME_TAGS, number_of_frames, one_frame
from segsweep.data.dicom_pixels import stored_values
from segsweep.data.geometry import Geometry
from segsweep.data.intake import MAX_BYTES, MAX_VOXELS_AN_AXIS, ORTHONORMAL_WITHIN, SPACING_MM
from segsweep.data.layouts import files_below
from segsweep.data.readers import Reference, Scan, file_digest
from segsweep.errors import InputError

# The kinds of one slice a file, with what each has for a modality.
CLASSES = {"1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.4": "MR", "1.2.840.10008.5.1.4.1.1.128": "PT"}
# Positions are often written with one decimal.
REGULAR_WITHIN_MM = 0.1
SAME_POSITION_MM = 0.01
SAME_COSINE = 1e-4
SAME_SPACING = 1e-4
MAX_RESCALE = 1e6

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType", "NumberOfFrames",
    "Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SeriesInfo:
    """What the headers of a series say. `sop_uids` come in the order of its files; UIDs are identifiers, never to be stored."""

    modality: str
    num_slices: int
    uid: str = field(repr=False)
    frame_of_reference: str = field(repr=False)
    sop_uids: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class _Slice:
    path: Path
    frame: int | None  # of an enhanced image, from 0
    sop_uid: str
    series_uid: str
    frame_of_reference: str
    modality: str
    shape: tuple[int, int]
    spacing: NDArray[np.float64]  # mm between rows, between columns
    cosines: NDArray[np.float64]  # 2 x 3: along a row, along a column, in LPS
    position: NDArray[np.float64]  # LPS mm of the first pixel

    @property
    def name(self) -> str:
        return _named(self.path, self.frame)


def find_series(folder: Path) -> tuple[Series, ...]:
    """Every CT, MR and PET image series below a folder, in the order of their first files. Headers alone are read.

    Passed over: localizers, hidden files, and everything that is no such image or no DICOM file (by its content or as .dcm). Files
    that do not say of which series they are, damaged ones among them, are a series of their own in each folder, which fails when it is
    read. Raises InputError for a folder that is not there, and for a link that leads out of it or to nothing.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder.name} is no folder (in {folder.parent}); expected one with DICOM files; check the path"
        )
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files_below(folder):
        if (path.suffix.lower() == ".dcm" or is_dicom(path)) and (uid := _series_uid(path)) is not None:
            found[uid or str(path.parent)].append(path)
    return tuple(Series(files=tuple(files)) for files in found.values())


def _series_uid(path: Path) -> str | None:
    """Series of an image; empty for one that does not say so or is damaged, None for a DICOM file of another kind."""
    try:
        header = open_dicom(path, tags=_TAGS)
    except InputError:
        return ""
    kind = sop_class(header)
    if kind and (kind not in (*CLASSES, *ENHANCED) or "LOCALIZER" in text(header, "ImageType")):
        return None
    return text(header, "SeriesInstanceUID") if kind else ""


def describe_series(series: Series) -> SeriesInfo:
    """Modality, size and identifiers of a series, from its headers. Raises InputError for files of several series or none."""
    slices = _headers(series)
    return SeriesInfo(
        modality=slices[0].modality,
        num_slices=len(slices),
        uid=slices[0].series_uid,
        frame_of_reference=slices[0].frame_of_reference,
        sop_uids=tuple(part.sop_uid for part in slices),
    )


def series_digest(series: Series) -> str:
    """The `digest` that reading the series would give: one sha256 over those of its files, whatever their names and order."""
    digests = sorted(file_digest(path) for path in series.files)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_series(series: Series) -> Scan:
    """The series as (z, y, x), z along the normal of its slices, int16 where that is lossless, else float32; padding is kept.

    The distance of slices is that of their positions, never SliceThickness. Values are rescaled slice by slice (HU for CT, the
    scanner's own units for MR and PET). Raises InputError that names folder or file for slices that are missing, doubled, tilted, of
    different size, direction or series, and for damaged or unsupported files.
    """
    slices = _headers(series)
    name = slices[0].path.parent.name
    _demand_equal_slices(slices, name=name)
    slices = _sorted_slices(slices)
    geometry = _geometry(slices, name=name)
    voxels = np.empty(geometry.shape, dtype=np.float32)
    for path, indices in _by_file(slices).items():
        dataset = open_dicom(path)
        for index in indices:
            frame = slices[index].frame
            one = dataset if frame is None else one_frame(dataset, index=frame, name=path.name)
            voxels[index] = _rescaled(one, part=slices[index])
    return Scan(
        voxels=_narrowed(voxels, name=name),
        geometry=geometry,
        digest=series_digest(series),
        reference=Reference(
            frame_of_reference=slices[0].frame_of_reference,
            series_uid=slices[0].series_uid,
            sop_uids=tuple(part.sop_uid for part in slices),
            files=tuple(part.path for part in slices),
        ),
    )


def _headers(series: Series) -> list[_Slice]:
    if not series.files:
        raise InputError("a series without files cannot be read; expected one file a slice; check the dataset recipe")
    slices = [part for path in series.files for part in _parts(path)]
    different = next((part for part in slices if part.series_uid != slices[0].series_uid), None)
    if different:
        raise InputError(
            f"{different.path.parent.name} holds several series: {different.name} is of another one than "
            f"{slices[0].name}; expected one; choose one or sort the files into a folder each"
        )
    return slices


def _parts(path: Path) -> list[_Slice]:
    """The slice in a file, or all those in an enhanced one."""
    header, name = open_dicom(path, tags=_TAGS), path.name
    kind = sop_class(header)
    if (kind not in CLASSES and kind not in ENHANCED) or text(header, "Modality") != (CLASSES | ENHANCED)[kind]:
        open_dicom(path)  # a damaged file of another kind is first of all damaged
        raise InputError(f"{name} is no image slice that can be read; expected one of CT, MR or PET; choose its series")
    if "LOCALIZER" in text(header, "ImageType"):
        raise InputError(f"{name} is a localizer; expected a slice of a scan; leave it out")
    if kind in ENHANCED:
        whole_header = open_dicom(path, tags=[*_TAGS, *FRAME_TAGS])
        return [
            _slice(one_frame(whole_header, index=index, name=name), path=path, frame=index)
            for index in range(number_of_frames(whole_header, name=name))
        ]
    if text(header, "NumberOfFrames") not in ("", "1"):
        raise InputError(
            f"{name} holds many frames in one file; expected one slice a file; export it as a classic series"
        )
    return [_slice(header, path=path, frame=None)]


def _named(path: Path, frame: int | None) -> str:
    return path.name if frame is None else f"{path.name} (frame {frame + 1})"


def _slice(header: Dataset, *, path: Path, frame: int | None) -> _Slice:
    name = _named(path, frame)
    cosines = numbers(header, "ImageOrientationPatient", name=name, count=6).reshape(2, 3)
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=ORTHONORMAL_WITHIN):
        raise InputError(f"{name}: ImageOrientationPatient is not two unit vectors at a right angle; export it again")
    spacing = numbers(header, "PixelSpacing", name=name, count=2)
    if not np.all((spacing >= SPACING_MM[0]) & (spacing <= SPACING_MM[1])):
        raise InputError(f"{name}: PixelSpacing is out of {SPACING_MM[0]} to {SPACING_MM[1]} mm; correct the spacing")
    return _Slice(
        path=path,
        frame=frame,
        sop_uid=sop_instance(header),
        series_uid=text(header, "SeriesInstanceUID"),
        frame_of_reference=text(header, "FrameOfReferenceUID"),
        modality=text(header, "Modality"),
        shape=(
            whole(header, "Rows", name=name, low=1, high=MAX_VOXELS_AN_AXIS),
            whole(header, "Columns", name=name, low=1, high=MAX_VOXELS_AN_AXIS),
        ),
        spacing=spacing,
        cosines=cosines,
        position=numbers(header, "ImagePositionPatient", name=name, count=3),
    )


def _demand_equal_slices(slices: Sequence[_Slice], *, name: str) -> None:
    first = slices[0]
    if len(slices) < 2:
        raise InputError(f"{name}: {first.name} is a single slice; expected at least two; add the others")
    if 2 * len(slices) * first.shape[0] * first.shape[1] > MAX_BYTES:
        raise InputError(
            f"{name}: {len(slices)} slices of {first.shape} are more than {MAX_BYTES} bytes; crop the scan"
        )
    for part in slices[1:]:
        if part.shape != first.shape:
            differs = "Rows or Columns"
        elif not np.allclose(part.spacing, first.spacing, rtol=SAME_SPACING, atol=0):
            differs = "PixelSpacing"
        elif not np.allclose(part.cosines, first.cosines, atol=SAME_COSINE, rtol=0):
            differs = "ImageOrientationPatient"
        elif part.frame_of_reference != first.frame_of_reference:
            differs = "FrameOfReferenceUID"
        else:
            continue
        raise InputError(
            f"{name}: {differs} of {part.name} is not that of {first.name}; expected the same in all slices; "
            "sort the files into a folder a stack"
        )


def _sorted_slices(slices: Sequence[_Slice]) -> list[_Slice]:
    normal = _axes(slices[0])[2]
    return sorted(slices, key=lambda part: float(normal @ part.position))


def _axes(part: _Slice) -> NDArray[np.float64]:
    """Unit vectors (rows of a 3 x 3 matrix) along x, y and z of the array, at exact right angles."""
    across = part.cosines[0] / np.linalg.norm(part.cosines[0])
    normal = np.cross(across, part.cosines[1])
    normal /= np.linalg.norm(normal)
    return np.stack([across, np.cross(normal, across), normal])


def _geometry(slices: Sequence[_Slice], *, name: str) -> Geometry:
    """The grid of sorted slices. Raises InputError when their positions are no regular stack along the normal."""
    axes = _axes(slices[0])
    placed = np.stack([part.position - slices[0].position for part in slices]) @ axes.T
    heights = placed[:, 2]
    _demand_regular(heights, slices=slices, name=name)
    shift = np.linalg.norm(placed[:, :2], axis=1)
    if shift.max() > REGULAR_WITHIN_MM:
        angle = math.degrees(math.atan2(shift[-1], heights[-1]))
        raise InputError(
            f"{name}: its slices are shifted against each other by up to {shift.max():.2f} mm, as with a gantry tilt of {angle:.1f} "
            "degrees; expected a stack along the normal; resample the scan to right angles"
        )
    spacing = float(heights[-1]) / (len(slices) - 1)
    if not SPACING_MM[0] <= spacing <= SPACING_MM[1]:
        raise InputError(
            f"{name}: its slices are {spacing:g} mm apart; expected {SPACING_MM[0]} to {SPACING_MM[1]}; are slices missing?"
        )
    origin = slices[0].position
    return Geometry(
        shape=(len(slices), *slices[0].shape),
        spacing=(spacing, float(slices[0].spacing[0]), float(slices[0].spacing[1])),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(axes.T.ravel().tolist()),
    )


def _demand_regular(heights: NDArray[np.float64], *, slices: Sequence[_Slice], name: str) -> None:
    """Refuses doubled and missing slices. `heights` in mm, ascending."""
    steps = np.diff(heights)
    closest, widest, usual = int(steps.argmin()), int(steps.argmax()), float(np.median(steps))
    if steps[closest] < SAME_POSITION_MM:
        pair = _both(slices[closest], slices[closest + 1])
        raise InputError(f"{name}: {pair} lie at one position; expected one slice each; keep one copy, phase or echo")
    if np.abs(heights - np.linspace(0, heights[-1], len(heights))).max() <= min(REGULAR_WITHIN_MM, usual / 4):
        return
    pair = _both(slices[widest], slices[widest + 1])
    raise InputError(
        f"{name}: {pair} are {steps[widest]:.2f} mm apart, most slices {usual:.2f} mm; expected regular steps; "
        "add the missing slices or remove the extra ones"
    )


def _both(one: _Slice, other: _Slice) -> str:
    """Two slices by their names, with their folders where a series lies in two of them."""
    if one.path.name != other.path.name or one.path == other.path:
        return f"{one.name} and {other.name}"
    return f"{one.path.parent.name}/{one.name} and {other.path.parent.name}/{other.name}"


def _by_file(slices: Sequence[_Slice]) -> dict[Path, list[int]]:
    """The places of the slices in each file, which is opened once."""
    found: dict[Path, list[int]] = defaultdict(list)
    for index, part in enumerate(slices):
        found[part.path].append(index)
    return found


def _rescaled(dataset: Dataset, *, part: _Slice) -> NDArray[np.float32]:
    name = part.name
    values = stored_values(dataset, name=name)
    if "ModalityLUTSequence" in dataset:
        raise InputError(
            f"{name} has a table for its values; expected RescaleSlope and RescaleIntercept; export it again"
        )
    if part.modality == "MR" and "RescaleSlope" not in dataset:
        return values.astype(np.float32)
    (slope,) = numbers(dataset, "RescaleSlope", name=name, count=1)
    (intercept,) = numbers(dataset, "RescaleIntercept", name=name, count=1)
    if slope == 0 or abs(slope) > MAX_RESCALE or abs(intercept) > MAX_RESCALE:
        raise InputError(
            f"{name}: RescaleSlope and RescaleIntercept are {slope:g} and {intercept:g}; expected at most {MAX_RESCALE:g} and a slope "
            "that is not 0; export it again"
        )
    return (values * slope + intercept).astype(np.float32)


def _narrowed(voxels: NDArray[np.float32], *, name: str) -> NDArray:
    low, high = voxels.min(), voxels.max()
    if low == high:
        raise InputError(f"{name}: all voxels are {low:g}; expected an image with contrast; export the scan again")
    if low >= -32768 and high <= 32767 and all(bool(np.all(plane == np.rint(plane))) for plane in voxels):
        return voxels.astype(np.int16)
    return voxels
