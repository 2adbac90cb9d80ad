"""What a quality check measures in one case: sizes, places and pieces of its structures, its range of HU, and what it looks like."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsweep.data.duplicates import signature
from segsweep.data.index import CaseRecord
from segsweep.data.remote import Grid
from segsweep.data.structures import LabelTable

# Limits in HU: below `PADDING_HU` lies no measured value, above `HIGHEST_HU` only metal.
HIGHEST_HU, PADDING_HU = 4000, -1024


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One structure in one case: volume in ml, centre as mean x index, share of its largest piece."""

    voxels: int
    volume_ml: float
    centre_x: float
    pieces: int
    largest_share: float
    cut_off: bool


@dataclass(frozen=True, kw_only=True)
class Range:
    """One channel in HU: lowest and highest value, and the shares of voxels that are padding or too high for tissue."""

    low: float
    high: float
    padding: float
    too_high: float


@dataclass(frozen=True, kw_only=True)
class CaseMeasures:
    """What was measured in one case: structures that it has, range of each channel, sha256 and look of its image."""

    record: CaseRecord
    shapes: Mapping[str, Shape]
    ranges: tuple[Range, ...]
    image_digest: str
    signature: NDArray[np.float16]


def measure(record: CaseRecord, *, grid: Grid, table: LabelTable) -> CaseMeasures:
    """Read a case once at its native grid. Raises StoreError when it is damaged."""
    image, label = grid.read_image(), grid.read_label()
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
    boxes = ndimage.find_objects(label)
    shapes = {}
    for name in table.labels.structures:
        found = [
            boxes[value - 1] for value in table.values(name) if value <= len(boxes) and boxes[value - 1] is not None
        ]
        if found:
            shapes[name] = _shape(label, boxes=found, table=table, name=name, voxel_ml=grid.geometry.voxel_ml)
    ranges = tuple(
        Range(
            low=float(channel.min()),
            high=float(channel.max()),
            padding=float(np.mean(channel < PADDING_HU)),
            too_high=float(np.mean(channel > HIGHEST_HU)),
        )
        for channel in image
    )
    return CaseMeasures(record=record, shapes=shapes, ranges=ranges, image_digest=digest, signature=signature(image[0]))


def _shape(
    label: NDArray, *, boxes: list[tuple[slice, slice, slice]], table: LabelTable, name: str, voxel_ml: float
) -> Shape:
    starts = [min(box[axis].start for box in boxes) for axis in range(3)]
    stops = [max(box[axis].stop for box in boxes) for axis in range(3)]
    part = label[tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))]
    mask = table.mask(part, structure=name)
    voxels = int(mask.sum())
    pieces, num_pieces = ndimage.label(mask, structure=np.ones((3, 3, 3)))  # type: ignore[misc]
    return Shape(
        voxels=voxels,
        volume_ml=voxels * voxel_ml,
        centre_x=starts[2] + float(mask.sum(axis=(0, 1)) @ np.arange(mask.shape[2])) / voxels,
        pieces=num_pieces,
        largest_share=int(np.bincount(pieces.ravel())[1:].max()) / voxels,
        cut_off=min(starts) == 0 or any(stop == size for stop, size in zip(stops, label.shape, strict=True)),
    )
