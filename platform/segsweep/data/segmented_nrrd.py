"""Reads `.seg.nrrd`, 3D Slicer's segmentations: named segments in one or more layers, on a box of the scan's grid."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data import readers
from segsweep.data.placement import locate, paint
from segsweep.data.readers import Scan
from segsweep.errors import InputError

SUFFIX = ".seg.nrrd"

_FIELD = re.compile(r"Segment(\d{1,6})_(Name|LabelValue|Layer)")


def is_segmented(path: Path) -> bool:
    """Whether a file is such a segmentation by its name."""
    return path.name.lower().endswith(SUFFIX)


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """The voxels of value `value` in layer `layer`."""

    name: str
    value: int
    layer: int


def segment_names(path: Path) -> tuple[str, ...]:
    """Names of the segments in the file's order. Raises InputError for a file that is damaged or holds none."""
    return tuple(segment.name for segment in _segments(readers.read_layer_fields(path), name=path.name))


def read_segments(path: Path, *, scan: Scan, names: Mapping[str, str]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """(structure, mask on the scan's own grid) of each segment that `names` maps to a structure; one structure may come twice.

    Slicer may crop its file to what is drawn: the box is placed by its position. Raises InputError for a damaged file, another
    grid than the scan's, and voxels outside the scan.
    """
    layers = readers.read_layers(path)
    segments = _segments(layers.fields, name=path.name)
    start = locate(layers.geometry, scan=scan.geometry, name=path.name)
    for segment in segments:
        if segment.name not in names:
            continue
        if segment.layer >= len(layers.voxels):
            raise InputError(
                f"{path.name}: segment {names[segment.name]!r} is in layer {segment.layer}, but the file holds {len(layers.voxels)}; "
                "save the segmentation again"
            )
        mask = np.zeros(scan.geometry.shape, dtype=bool)
        part = layers.voxels[segment.layer] == segment.value
        paint(part, geometry=layers.geometry, start=start, scan=scan.geometry, onto=mask, name=path.name)
        yield names[segment.name], mask


def _segments(fields: Mapping[str, str], *, name: str) -> list[_Segment]:
    """The header's segments. Without a layer or a value, Slicer means the first layer and the value 1."""
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for key, text in fields.items():
        if match := _FIELD.fullmatch(key):
            found[int(match[1])][match[2]] = text.strip()
    if not found:
        raise InputError(
            f"{name}: its header names no segments; expected Segment0_Name and others as 3D Slicer writes them"
        )
    segments = [_segment(values, number=number, name=name) for number, values in sorted(found.items())]
    places = [(segment.layer, segment.value) for segment in segments]
    if len(set(places)) != len(places):
        raise InputError(f"{name}: two segments have the same layer and value; expected different ones; save it again")
    return segments


def _segment(values: Mapping[str, str], *, number: int, name: str) -> _Segment:
    numbers = {key: values.get(key, default) for key, default in (("LabelValue", "1"), ("Layer", "0"))}
    for key, text in numbers.items():
        if not re.fullmatch(r"\d{1,9}", text) or (key == "LabelValue" and int(text) == 0):
            raise InputError(
                f"{name}: Segment{number}_{key} is no whole number, or out of range; expected one; save the segmentation again"
            )
    if not values.get("Name"):
        raise InputError(f"{name}: Segment{number}_Name is missing; expected a name for every segment; save it again")
    return _Segment(name=values["Name"], value=int(numbers["LabelValue"]), layer=int(numbers["Layer"]))
