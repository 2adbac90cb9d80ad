"""Reads DICOM SEG: segments that may overlap, frame by frame, each put on the scan's grid by its position."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from segsweep.data.dicom_file import items, numbers, open_dicom, text, whole
from segsweep.data.geometry import Geometry
from segsweep.data.intake import MAX_BYTES, MAX_VOXELS_AN_AXIS, ORTHONORMAL_WITHIN, SPACING_MM
from segsweep.data.placement import Start, locate, paint
from segsweep.data.readers import Scan
from segsweep.errors import InputError

# Bits a voxel of each kind of segmentation.
TYPES: Mapping[str, tuple[int, ...]] = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}
# One frame a segment and slice: two hundred segments in a whole-body CT.
MAX_FRAMES = 500_000
SPACING_WITHIN = 0.05


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """One frame: its place in the pixel data, its segment's number (None in a label map, which holds all) and its plane."""

    index: int
    segment: int | None
    geometry: Geometry
    start: Start


def segment_names(path: Path) -> tuple[str, ...]:
    """Labels of the segments in the file's order. Raises InputError for a file that is damaged or holds none."""
    return tuple(
        _labels(_opened(path, tags=["Modality", "SegmentationType", "SegmentSequence"]), name=path.name).values()
    )


def read_segments(path: Path, *, scan: Scan, names: Mapping[str, str]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """(structure, mask on the scan's own grid) of each segment that `names` maps to a structure; one structure may come twice.

    Reads BINARY, LABELMAP, and FRACTIONAL (voxels of at least one half). Raises InputError for a damaged file, one that was drawn
    on another series, another grid than the scan's, and voxels outside the scan.
    """
    name = path.name
    dataset = _opened(path)
    labels = _labels(dataset, name=name)
    _demand_same_series(dataset, scan=scan, name=name)
    _demand_sound_sizes(dataset, name=name)
    frames = _frames(dataset, scan=scan, name=name)
    _demand_every_slice(dataset, frames=frames, scan=scan, name=name)
    # The planes of a label map are decoded once for all of its segments.
    shared = {frame.index: _plane(dataset, index=frame.index, name=name) for frame in frames if frame.segment is None}
    for number, label in labels.items():
        if label not in names:
            continue
        mask = np.zeros(scan.geometry.shape, dtype=bool)
        for frame in frames:
            if frame.segment is None:
                part = shared[frame.index] == number
            elif frame.segment == number:
                part = _inside(dataset, index=frame.index, name=name)
            else:
                continue
            plane = frame.geometry
            paint(part[np.newaxis], geometry=plane, start=frame.start, scan=scan.geometry, onto=mask, name=name)
        yield names[label], mask


def _opened(path: Path, *, tags: list[str] | None = None) -> Dataset:
    dataset = open_dicom(path, tags=tags)
    if text(dataset, "Modality") != "SEG":
        raise InputError(f"{path.name} is no DICOM SEG; expected modality SEG; choose another file")
    if text(dataset, "SegmentationType") not in TYPES:
        raise InputError(
            f"{path.name}: SegmentationType is unknown; expected {' or '.join(TYPES)}; export it as BINARY"
        )
    return dataset


def _labels(dataset: Dataset, *, name: str) -> dict[int, str]:
    """Segment number -> label. Number 0 is the background of a label map, if it is listed at all."""
    labels: dict[int, str] = {}
    for item in items(dataset, "SegmentSequence"):
        number = whole(item, "SegmentNumber", name=name, low=0, high=65535)
        if number in labels:
            raise InputError(f"{name}: two segments have number {number}; expected different ones; export it again")
        labels[number] = text(item, "SegmentLabel")
    labels.pop(0, None)
    if not labels or not all(labels.values()):
        raise InputError(f"{name}: SegmentSequence is empty or lacks labels; expected named segments; export it again")
    return labels


def _demand_same_series(dataset: Dataset, *, scan: Scan, name: str) -> None:
    """The frame of reference must be the scan's; where the file says which images were drawn on, these must be the scan's too."""
    if scan.reference is None:
        return
    if text(dataset, "FrameOfReferenceUID") != scan.reference.frame_of_reference:
        raise InputError(f"{name} has another frame of reference than the image; expected the same; is it this scan's?")
    drawn_on = items(dataset, "ReferencedSeriesSequence")
    for series in drawn_on:
        images = {text(item, "ReferencedSOPInstanceUID") for item in items(series, "ReferencedInstanceSequence")}
        if text(series, "SeriesInstanceUID") == scan.reference.series_uid or images & set(scan.reference.sop_uids):
            return
    if drawn_on:
        raise InputError(f"{name} was drawn on another series than the image; expected this one; is it this scan's?")


def _demand_sound_sizes(dataset: Dataset, *, name: str) -> None:
    """Sizes are judged before anything is unpacked, and must be those of the pixel data."""
    kind = text(dataset, "SegmentationType")
    rows = whole(dataset, "Rows", name=name, low=1, high=MAX_VOXELS_AN_AXIS)
    columns = whole(dataset, "Columns", name=name, low=1, high=MAX_VOXELS_AN_AXIS)
    count = whole(dataset, "NumberOfFrames", name=name, low=1, high=MAX_FRAMES)
    bits = whole(dataset, "BitsAllocated", name=name, low=1, high=16)
    described = len(items(dataset, "PerFrameFunctionalGroupsSequence"))
    if described != count:
        raise InputError(f"{name}: {described} of {count} frames are described; expected all; export it again")
    if bits not in TYPES[kind]:
        expected = " or ".join(str(number) for number in TYPES[kind])
        raise InputError(f"{name}: {bits} bits a voxel; expected {expected}; export the segmentation again")
    if kind == "LABELMAP" and count * rows * columns * bits > 8 * MAX_BYTES:
        raise InputError(f"{name}: {count} frames of {rows} x {columns} voxels are too many; export it as BINARY")
    found, expected = len(dataset.get("PixelData") or b""), -(-count * rows * columns * bits // 8)
    padded, syntax = expected + expected % 2, UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not syntax.is_transfer_syntax:
        raise InputError(f"{name}: TransferSyntaxUID is missing or unknown; expected a standard one; export it again")
    if found == 0 or not (syntax.is_compressed or found in (expected, padded)):
        raise InputError(f"{name}: {found} bytes of pixel data; expected {expected}; copy or export it again")


def _frames(dataset: Dataset, *, scan: Scan, name: str) -> list[_Frame]:
    shape = (1, int(dataset.Rows), int(dataset.Columns))
    common = _common(dataset)
    located: dict[Geometry, Start] = {}
    frames = []
    for index, groups in enumerate(items(dataset, "PerFrameFunctionalGroupsSequence")):
        plane = _plane_geometry(groups, common=common, shape=shape, scan=scan, name=name)
        if plane not in located:
            located[plane] = locate(plane, scan=scan.geometry, name=name)
        segment = None
        if text(dataset, "SegmentationType") != "LABELMAP":
            item = _group(groups, common=common, keyword="SegmentIdentificationSequence", name=name)
            segment = whole(item, "ReferencedSegmentNumber", name=name, low=1, high=65535)
        frames.append(_Frame(index=index, segment=segment, geometry=plane, start=located[plane]))
    return frames


def _plane_geometry(
    groups: Dataset, *, common: Dataset, shape: tuple[int, int, int], scan: Scan, name: str
) -> Geometry:
    position = _group(groups, common=common, keyword="PlanePositionSequence", name=name)
    orientation = _group(groups, common=common, keyword="PlaneOrientationSequence", name=name)
    measures = _group(groups, common=common, keyword="PixelMeasuresSequence", name=name)
    origin = numbers(position, "ImagePositionPatient", name=name, count=3)
    cosines = numbers(orientation, "ImageOrientationPatient", name=name, count=6).reshape(2, 3)
    row_mm, column_mm = numbers(measures, "PixelSpacing", name=name, count=2)
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=2 * ORTHONORMAL_WITHIN):
        raise InputError(f"{name}: a frame's axes are not at right angles; export the segmentation again")
    if not all(SPACING_MM[0] <= value <= SPACING_MM[1] for value in (row_mm, column_mm)):
        raise InputError(f"{name}: PixelSpacing is not from {SPACING_MM[0]} to {SPACING_MM[1]} mm; export it again")
    direction = np.stack([*cosines, np.cross(cosines[0], cosines[1])], axis=1)
    return Geometry(
        shape=shape,
        # One slice has no spacing of its own.
        spacing=(scan.geometry.spacing[0], float(row_mm), float(column_mm)),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(direction.ravel().tolist()),
    )


def _group(groups: Dataset, *, common: Dataset, keyword: str, name: str) -> Dataset:
    """A frame's own functional group, or else the one of all frames."""
    found = items(groups, keyword) or items(common, keyword)
    if not found:
        raise InputError(f"{name}: {keyword} is missing; expected it for every frame; export the segmentation again")
    return found[0]


def _common(dataset: Dataset) -> Dataset:
    """The functional groups that all frames share."""
    return next(iter(items(dataset, "SharedFunctionalGroupsSequence")), Dataset())


def _demand_every_slice(dataset: Dataset, *, frames: list[_Frame], scan: Scan, name: str) -> None:
    """Refuses frames that were drawn on every second slice, say, of this scan: the slices between would stay empty unnoticed."""
    measures = next(iter(items(_common(dataset), "PixelMeasuresSequence")), Dataset())
    axis = frames[0].geometry.reorientation.axes.index(0)
    slices = np.unique([frame.start[axis] for frame in frames])
    if len(slices) < 2 or not text(measures, "SpacingBetweenSlices"):
        return
    step, spacing = int(np.diff(slices).min()), scan.geometry.canonical().spacing[axis]
    (declared,) = numbers(measures, "SpacingBetweenSlices", name=name, count=1)
    if step > 1 and abs(declared / spacing - step) <= SPACING_WITHIN * step:
        raise InputError(
            f"{name} was drawn on slices {declared:g} mm apart, the image's are {spacing:g} mm apart; resample it to the image"
        )


def _inside(dataset: Dataset, *, index: int, name: str) -> NDArray[np.bool_]:
    """(rows, columns) of one frame of a single segment."""
    plane = _plane(dataset, index=index, name=name)
    if text(dataset, "SegmentationType") == "BINARY":
        return plane > 0
    highest = whole(dataset, "MaximumFractionalValue", name=name, low=1, high=255)
    return 2 * plane.astype(np.int32) >= highest


def _plane(dataset: Dataset, *, index: int, name: str) -> NDArray:
    """(rows, columns) of one frame as stored."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if dataset.BitsAllocated == 1 and not syntax.is_compressed and syntax.is_little_endian:
        return _unpacked(dataset, index=index)
    try:
        with warnings.catch_warnings(action="ignore"):
            return pixel_array(dataset, index=index, raw=True)
    except Exception:  # a damaged frame makes pydicom raise whatever its decoder trips over
        raise InputError(
            f"{name}: frame {index + 1} cannot be decoded ({syntax.name}); expected intact frames; export it uncompressed"
        ) from None


def _unpacked(dataset: Dataset, *, index: int) -> NDArray[np.uint8]:
    """One frame of single bits, which may start within a byte (pydicom 3.0 reads such a frame wrong when asked for it alone)."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    first, last = index * rows * columns, (index + 1) * rows * columns
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)[first // 8 : -(-last // 8)]
    return np.unpackbits(packed, bitorder="little")[first % 8 :][: last - first].reshape(rows, columns)
