"""Reads DICOM SEG: segments that may overlap, frame by frame, each put on the scan's grid by its position."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.utils import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from segsweep.data.geometry import Geometry
from segsweep.data.intake import MAX_BYTES, MAX_VOXELS_AN_AXIS, ORTHONORMAL_WITHIN, SPACING_MM
from segsweep.data.placement import Start, locate, paint
from segsweep.data.readers import Scan
from segsweep.errors import InputError

# Allowed bits a voxel of each kind of segmentation.
TYPES: Mapping[str, tuple[int, ...]] = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}
# One frame a segment and slice: two hundred segments in a whole-body CT.
MAX_FRAMES = 500_000
SPACING_WITHIN = 0.05

# pydicom's warnings quote values, which may identify a patient, on the terminal and in log files; what matters is checked here.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """One frame: its place in the pixel data, its segment's number (None in a label map, which holds all) and its plane."""

    index: int
    segment: int | None
    geometry: Geometry
    start: Start


def segment_names(path: Path) -> tuple[str, ...]:
    """Labels of the segments in the file's order. Raises InputError for a file that is damaged or holds none."""
    return tuple(_labels(_opened(path, pixels=False), name=path.name).values())


def read_segments(path: Path, *, scan: Scan, names: Mapping[str, str]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """(structure, mask on the scan's own grid) of each segment that `names` maps to a structure; one structure may come twice.

    Reads BINARY, LABELMAP, and FRACTIONAL (voxels of at least one half). Raises InputError for a damaged file, one that was drawn
    on another series, another grid than the scan's, and voxels outside the scan.
    """
    name = path.name
    dataset = _opened(path, pixels=True)
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
            paint(
                part[np.newaxis], geometry=frame.geometry, start=frame.start, scan=scan.geometry, onto=mask, name=name
            )
        yield names[label], mask


def _opened(path: Path, *, pixels: bool) -> Dataset:
    if not path.is_file():
        raise InputError(f"{path.name} is not there (in {path.parent}); expected a DICOM SEG; check the path")
    try:
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise InputError(f"{path.name} is deflated as a whole; expected it without; export it uncompressed")
        dataset = dcmread(path, stop_before_pixels=not pixels)
    except InputError:
        raise
    except Exception:  # a damaged file makes pydicom raise whatever its parser trips over, with values in the message
        raise InputError(f"{path.name} cannot be read; expected an intact DICOM SEG; copy or export it again") from None
    if _value(dataset, "Modality", name=path.name) != "SEG":
        raise InputError(f"{path.name} is no DICOM SEG; expected modality SEG; choose another file")
    kind = _value(dataset, "SegmentationType", name=path.name)
    if kind not in TYPES:
        raise InputError(
            f"{path.name}: SegmentationType is unknown; expected {' or '.join(TYPES)}; export it as BINARY"
        )
    return dataset


def _value(item: Dataset, keyword: str, *, name: str) -> Any:
    try:
        value = item.get(keyword)
    except Exception:  # see _opened
        value = None
    if value is None or (hasattr(value, "__len__") and len(value) == 0):
        raise InputError(f"{name}: {keyword} is missing or garbled; expected a complete DICOM SEG; export it again")
    return value


def _integer(item: Dataset, keyword: str, *, name: str, low: int, high: int) -> int:
    try:
        value = int(_value(item, keyword, name=name))
    except (TypeError, ValueError):
        value = low - 1
    if not low <= value <= high:
        raise InputError(f"{name}: {keyword} is not from {low} to {high}; export the segmentation again")
    return value


def _numbers(item: Dataset, keyword: str, *, name: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(np.atleast_1d(np.asarray(_value(item, keyword, name=name), dtype=float)).tolist())
    except (TypeError, ValueError):
        values = ()
    if len(values) != count or not np.isfinite(values).all():
        raise InputError(f"{name}: {keyword} is not {count} finite numbers; export the segmentation again")
    return values


def _labels(dataset: Dataset, *, name: str) -> dict[int, str]:
    """Segment number -> label. Number 0 is the background of a label map, if it is listed at all."""
    labels: dict[int, str] = {}
    for item in _value(dataset, "SegmentSequence", name=name):
        number = _integer(item, "SegmentNumber", name=name, low=0, high=65535)
        if number in labels:
            raise InputError(f"{name}: two segments have number {number}; expected different ones; export it again")
        labels[number] = str(_value(item, "SegmentLabel", name=name)).strip()
    return {number: label for number, label in labels.items() if number}


def _demand_same_series(dataset: Dataset, *, scan: Scan, name: str) -> None:
    """The frame of reference must be the scan's, and where the file says which images were drawn on, these must be the scan's."""
    if scan.reference is None:
        return
    if str(_value(dataset, "FrameOfReferenceUID", name=name)) != scan.reference.frame_of_reference:
        raise InputError(f"{name} has another frame of reference than the image; expected the same; is it this scan's?")
    for series in dataset.get("ReferencedSeriesSequence") or ():
        images = {str(item.get("ReferencedSOPInstanceUID")) for item in series.get("ReferencedInstanceSequence") or ()}
        if str(series.get("SeriesInstanceUID")) == scan.reference.series_uid or images & set(scan.reference.sop_uids):
            return
    if dataset.get("ReferencedSeriesSequence"):
        raise InputError(f"{name} was drawn on another series than the image; expected this one; is it this scan's?")


def _demand_sound_sizes(dataset: Dataset, *, name: str) -> None:
    """Sizes are judged before anything is unpacked, and must be those of the pixel data."""
    rows = _integer(dataset, "Rows", name=name, low=1, high=MAX_VOXELS_AN_AXIS)
    columns = _integer(dataset, "Columns", name=name, low=1, high=MAX_VOXELS_AN_AXIS)
    count = _integer(dataset, "NumberOfFrames", name=name, low=1, high=MAX_FRAMES)
    bits = _integer(dataset, "BitsAllocated", name=name, low=1, high=16)
    described = len(_value(dataset, "PerFrameFunctionalGroupsSequence", name=name))
    if described != count:
        raise InputError(f"{name}: {described} of {count} frames are described; expected all; export it again")
    if bits not in TYPES[dataset.SegmentationType]:
        expected = " or ".join(str(number) for number in TYPES[dataset.SegmentationType])
        raise InputError(f"{name}: {bits} bits a voxel; expected {expected}; export the segmentation again")
    if dataset.SegmentationType == "LABELMAP" and count * rows * columns * bits > 8 * MAX_BYTES:
        raise InputError(f"{name}: {count} frames of {rows} x {columns} voxels are too many; export it as BINARY")
    found, expected = len(_value(dataset, "PixelData", name=name)), -(-count * rows * columns * bits // 8)
    if not dataset.file_meta.TransferSyntaxUID.is_compressed and found not in (expected, expected + expected % 2):
        raise InputError(f"{name}: {found} bytes of pixel data; expected {expected}; copy or export it again")


def _frames(dataset: Dataset, *, scan: Scan, name: str) -> list[_Frame]:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    shared = _shared(dataset)
    located: dict[Geometry, Start] = {}
    frames = []
    for index, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        plane = _plane_geometry(groups, shared=shared, shape=(1, rows, columns), scan=scan, name=name)
        if plane not in located:
            located[plane] = locate(plane, scan=scan.geometry, name=name)
        segment = None
        if dataset.SegmentationType != "LABELMAP":
            item = _group(groups, shared=shared, keyword="SegmentIdentificationSequence", name=name)
            segment = _integer(item, "ReferencedSegmentNumber", name=name, low=1, high=65535)
        frames.append(_Frame(index=index, segment=segment, geometry=plane, start=located[plane]))
    return frames


def _plane_geometry(
    groups: Dataset, *, shared: Dataset, shape: tuple[int, int, int], scan: Scan, name: str
) -> Geometry:
    position = _group(groups, shared=shared, keyword="PlanePositionSequence", name=name)
    orientation = _group(groups, shared=shared, keyword="PlaneOrientationSequence", name=name)
    measures = _group(groups, shared=shared, keyword="PixelMeasuresSequence", name=name)
    origin = _numbers(position, "ImagePositionPatient", name=name, count=3)
    cosines = np.reshape(_numbers(orientation, "ImageOrientationPatient", name=name, count=6), (2, 3))
    row_mm, column_mm = _numbers(measures, "PixelSpacing", name=name, count=2)
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=2 * ORTHONORMAL_WITHIN):
        raise InputError(f"{name}: a frame's axes are not at right angles; export the segmentation again")
    if not all(SPACING_MM[0] <= value <= SPACING_MM[1] for value in (row_mm, column_mm)):
        raise InputError(f"{name}: PixelSpacing is not from {SPACING_MM[0]} to {SPACING_MM[1]} mm; export it again")
    direction = np.stack([*cosines, np.cross(cosines[0], cosines[1])], axis=1)
    return Geometry(
        shape=shape,
        # One slice has no spacing of its own.
        spacing=(scan.geometry.spacing[0], row_mm, column_mm),
        origin=(origin[0], origin[1], origin[2]),
        direction=tuple(direction.ravel().tolist()),
    )


def _group(groups: Dataset, *, shared: Dataset, keyword: str, name: str) -> Dataset:
    """A frame's own functional group, or else the one of all frames."""
    return _value(groups if groups.get(keyword) else shared, keyword, name=name)[0]


def _demand_every_slice(dataset: Dataset, *, frames: list[_Frame], scan: Scan, name: str) -> None:
    """Refuses frames that were drawn on every second slice, say, of this scan: the slices between would stay empty unnoticed."""
    axis = frames[0].geometry.reorientation.axes.index(0)
    slices = np.unique([frame.start[axis] for frame in frames])
    shared = _shared(dataset)
    measures = next(iter(shared.get("PixelMeasuresSequence") or ()), Dataset())
    if len(slices) < 2 or not measures.get("SpacingBetweenSlices"):
        return
    step = int(np.diff(slices).min())
    (declared,) = _numbers(measures, "SpacingBetweenSlices", name=name, count=1)
    spacing = scan.geometry.canonical().spacing[axis]
    if step > 1 and abs(declared / spacing - step) <= SPACING_WITHIN * step:
        raise InputError(
            f"{name} was drawn on slices {declared:g} mm apart, the image's are {spacing:g} mm apart; resample it to the image"
        )


def _shared(dataset: Dataset) -> Dataset:
    """The functional groups that all frames have in common."""
    return next(iter(dataset.get("SharedFunctionalGroupsSequence") or ()), Dataset())


def _inside(dataset: Dataset, *, index: int, name: str) -> NDArray[np.bool_]:
    """(rows, columns) of one frame of a single segment."""
    plane = _plane(dataset, index=index, name=name)
    if dataset.SegmentationType == "BINARY":
        return plane > 0
    highest = _integer(dataset, "MaximumFractionalValue", name=name, low=1, high=255)
    return 2 * plane.astype(np.int32) >= highest


def _plane(dataset: Dataset, *, index: int, name: str) -> NDArray:
    """(rows, columns) of one frame as stored."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if dataset.BitsAllocated == 1 and not syntax.is_compressed and syntax.is_little_endian:
        return _unpacked(dataset, index=index)
    try:
        with warnings.catch_warnings(action="ignore"):
            return pixel_array(dataset, index=index, raw=True)
    except Exception:  # see _opened
        raise InputError(
            f"{name}: frame {index + 1} cannot be decoded ({syntax.name}); expected intact frames; export it uncompressed"
        ) from None


def _unpacked(dataset: Dataset, *, index: int) -> NDArray[np.uint8]:
    """One frame of single bits, which may start within a byte (pydicom 3.0 reads such a frame wrong when asked for it alone)."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    first, last = index * rows * columns, (index + 1) * rows * columns
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)[first // 8 : -(-last // 8)]
    return np.unpackbits(packed, bitorder="little")[first % 8 :][: last - first].reshape(rows, columns)
