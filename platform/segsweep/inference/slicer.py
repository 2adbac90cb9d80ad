"""A segmentation as 3D Slicer's `.seg.nrrd`: named, coloured segments; structures that may overlap lie in layers of their own."""

import colorsys
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Geometry
from segsweep.data.storage import appearing
from segsweep.data.structures import LabelTable
from segsweep.errors import InputError

# Steps of hue that never come back close to an earlier one.
GOLDEN = 0.618034
# Of 9, which takes longer and gains nothing.
EFFORT = 6


def demand_segment_names(table: LabelTable) -> None:
    """Raise InputError that names the first structure whose name does not fit on a line of a header."""
    for name in table.labels.structures:
        if not name.strip() or not name.isprintable():
            raise InputError(
                f"structure {name!r} is no name for a segment; expected printable letters; choose another --format"
            )


def write_segments(label: NDArray, *, geometry: Geometry, table: LabelTable, path: Path) -> None:
    """Every structure of the table as a segment, absent ones too, for atom values (z, y, x) on `geometry`.

    The file is there whole or not at all. Raises InputError when a structure's name is none for a segment, or the file cannot be
    written.
    """
    demand_segment_names(table)
    layers = _layers(table)
    values = _values(table, layers=layers)
    with appearing(path) as unfinished, unfinished.open("wb") as whole:
        whole.write("\n".join(_header(table, geometry=geometry, layers=layers, kind=values.dtype)).encode())
        whole.write(b"\n\n")
        with gzip.GzipFile(fileobj=whole, mode="wb", compresslevel=EFFORT, mtime=0) as packed:
            for plane in label:
                packed.write(values[plane].tobytes())


def _layers(table: LabelTable) -> list[list[int]]:
    """Structures by layer: each in the first one where no atom joins it with another."""
    layers: list[list[int]] = []
    for structure in range(len(table.labels.structures)):
        rivals = {other for atom in table.atoms if structure in atom for other in atom} - {structure}
        free = (layer for layer in layers if not rivals.intersection(layer))
        layer = next(free, None)
        if layer is None:
            layers.append([structure])
        else:
            layer.append(structure)
    return layers


def _values(table: LabelTable, *, layers: Sequence[Sequence[int]]) -> NDArray:
    """(atoms, layers): in each layer the place, from 1, of the atom's structure there."""
    most = max(map(len, layers), default=0)
    found = np.zeros((len(table.atoms), max(1, len(layers))), dtype=np.uint8 if most <= 255 else "<u2")
    for column, layer in enumerate(layers):
        for value, structure in enumerate(layer, start=1):
            found[list(table.values(table.labels.structures[structure])), column] = value
    return found


def _header(table: LabelTable, *, geometry: Geometry, layers: Sequence[Sequence[int]], kind: np.dtype) -> Iterator[str]:
    sizes = [str(size) for size in geometry.shape[::-1]]
    axes = [_vector(axis) for axis in geometry.matrix[:, ::-1].T]
    listed = len(layers) > 1
    yield "NRRD0004"
    yield f"type: {'unsigned char' if kind.itemsize == 1 else 'unsigned short'}"
    yield f"dimension: {4 if listed else 3}"
    yield "space: left-posterior-superior"
    yield f"sizes: {' '.join([*([str(len(layers))] if listed else []), *sizes])}"
    yield f"space directions: {' '.join([*(['none'] if listed else []), *axes])}"
    yield f"kinds: {'list ' if listed else ''}domain domain domain"
    yield "endian: little"
    yield "encoding: gzip"
    yield f"space origin: {_vector(geometry.origin)}"
    extent = " ".join(f"0 {size - 1}" for size in geometry.shape[::-1])
    places = {
        structure: (number, value) for number, layer in enumerate(layers) for value, structure in enumerate(layer, 1)
    }
    for index, name in enumerate(table.labels.structures):
        layer, value = places[index]
        red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN % 1, 0.6, 0.9)
        yield f"Segment{index}_ID:=Segment_{index + 1}"
        yield f"Segment{index}_Name:={name}"
        yield f"Segment{index}_Color:={red:.4f} {green:.4f} {blue:.4f}"
        yield f"Segment{index}_Extent:={extent}"
        yield f"Segment{index}_LabelValue:={value}"
        yield f"Segment{index}_Layer:={layer}"
    yield "Segmentation_ContainedRepresentationNames:=Binary labelmap|"
    yield "Segmentation_MasterRepresentation:=Binary labelmap"
    yield "Segmentation_ReferenceImageExtentOffset:=0 0 0"


def _vector(values: Sequence[float] | NDArray) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"
