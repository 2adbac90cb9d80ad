"""One grid of one case on disk: an OME-Zarr 0.5 image with its atoms as label image and samples of where each atom lies.

Sharded Zarr v3 with crc32c inside the shards: without it a flipped bit is read as a wrong voxel (DESIGN.md 5).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from segsweep.data.geometry import Geometry, Size
from segsweep.errors import StoreError

Region = tuple[slice, slice, slice]

INNER_CHUNK: Size = (16, 64, 64)
# nnU-Net keeps at most 10,000 voxels a class for oversampling, but at least 1 % of them (METHODS.md 1.3).
MOST_SAMPLES, LEAST_SHARE = 10_000, 0.01


@dataclass(frozen=True, kw_only=True)
class GridData:
    """What a grid holds: image (c, z, y, x) in HU, label (z, y, x) in case-local atom values."""

    image: NDArray
    label: NDArray
    geometry: Geometry


def write_grid(folder: Path, *, data: GridData, num_atoms: int, channels: tuple[str, ...], seed: int) -> None:
    """Write image, label and foreground samples as an OME-Zarr group at `folder`, which must not exist."""
    group = zarr.open_group(str(folder), mode="w-", zarr_format=3)
    group.attrs["ome"] = _ome_image(data.geometry, channels=channels)
    group.attrs["segsweep"] = {"geometry": geometry_json(data.geometry)}
    _write(group, "image", data.image, names=("c", "z", "y", "x"))
    labels = group.create_group("labels")
    labels.attrs["ome"] = {"version": "0.5", "labels": ["atoms"]}
    atoms = labels.create_group("atoms")
    atoms.attrs["ome"] = _ome_label(data.geometry)
    _write(atoms, "values", data.label, names=("z", "y", "x"))
    samples = _sample_foreground(data.label, num_atoms=num_atoms, seed=seed)
    voxels = np.concatenate([np.zeros((0, 3), np.int32), *samples]).astype(np.int32)
    array = group.create_array(
        "foreground", shape=voxels.shape, dtype=voxels.dtype, chunks=(max(1, len(voxels)), 3), compressors=_codecs(4)
    )
    array[...] = voxels
    array.attrs["counts"] = [len(part) for part in samples]


class GridReader:
    """A grid opened for reading. Atom values are translated to the store's own table by `lookup`."""

    def __init__(self, folder: Path, *, name: str, lookup: NDArray) -> None:
        self._folder, self._name, self._lookup = folder, name, lookup

    @cached_property
    def _group(self) -> zarr.Group:
        try:
            return zarr.open_group(str(self._folder), mode="r", zarr_format=3)
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"{self._name}: cannot be opened ({type(error).__name__}); convert the case again"
            ) from None

    @cached_property
    def _image(self) -> zarr.Array:
        return self._array("image")

    @cached_property
    def _label(self) -> zarr.Array:
        return self._array("labels/atoms/values")

    @cached_property
    def geometry(self) -> Geometry:
        """The grid, in canonical orientation."""
        return geometry_from_json(self._attributes["geometry"])

    @property
    def _attributes(self) -> Mapping[str, Any]:
        return self._group.attrs["segsweep"]  # type: ignore[return-value]

    @property
    def shape(self) -> Size:
        """Voxels (z, y, x)."""
        return self.geometry.shape

    def read_image(self, region: Region | None = None) -> NDArray:
        """Image (c, z, y, x) in HU of a region within the grid (all of it by default)."""
        return self._read(self._image, (slice(None), *(region or (slice(None),) * 3)), "image")

    def read_label(self, region: Region | None = None) -> NDArray:
        """Atom values (z, y, x) of the store's table, of a region within the grid (all of it by default)."""
        return self._lookup[self._read(self._label, region or (slice(None),) * 3, "label")]

    @property
    def foreground(self) -> Mapping[int, NDArray[np.int32]]:
        """Atom value of the store's table -> sampled voxel indices (n, 3), for every atom but background."""
        return self._samples

    @cached_property
    def _samples(self) -> dict[int, NDArray[np.int32]]:
        array = self._array("foreground")
        voxels = self._read(array, (slice(None), slice(None)), "foreground")
        counts: list[int] = list(array.attrs["counts"])  # type: ignore[arg-type]
        parts = np.split(voxels, np.cumsum(counts)[:-1])
        return {int(self._lookup[local]): part for local, part in enumerate(parts) if local and len(part)}

    def _array(self, path: str) -> zarr.Array:
        array = self._group[path]
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{self._name}: {path} is not an array; convert the case again")
        return array

    def _read(self, array: zarr.Array, selection: tuple[slice, ...], what: str) -> NDArray:
        try:
            return np.asarray(array[selection])
        except Exception as error:  # codecs raise many types; each means that the bytes are not what was written
            raise StoreError(f"{self._name}: {what} is damaged ({error}); convert the case again") from None


def geometry_json(geometry: Geometry) -> dict[str, Any]:
    """JSON-able dictionary; `geometry_from_json` takes it back."""
    return {
        "shape": list(geometry.shape),
        "spacing": list(geometry.spacing),
        "origin": list(geometry.origin),
        "direction": list(geometry.direction),
    }


def geometry_from_json(values: Mapping[str, Any]) -> Geometry:
    """The Geometry that `geometry_json` wrote."""
    return Geometry(**{name: tuple(values[name]) for name in ("shape", "spacing", "origin", "direction")})


def _write(group: zarr.Group, name: str, values: NDArray, *, names: tuple[str, ...]) -> None:
    lead = (1,) * (values.ndim - 3)
    spatial = values.shape[-3:]
    chunk = tuple(min(c, n) for c, n in zip(INNER_CHUNK, spatial, strict=True))
    shard = tuple(-(-n // c) * c for n, c in zip(spatial, chunk, strict=True))
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(*lead, *chunk),
        shards=(*lead, *shard),
        compressors=_codecs(values.dtype.itemsize),
        dimension_names=names,
    )
    array[...] = values


def _codecs(typesize: int) -> list[BloscCodec | Crc32cCodec]:
    shuffle = "shuffle" if typesize > 1 else "noshuffle"
    return [BloscCodec(cname="lz4hc", clevel=5, shuffle=shuffle, typesize=typesize), Crc32cCodec()]


def _sample_foreground(label: NDArray, *, num_atoms: int, seed: int) -> list[NDArray]:
    """Per atom (background empty) the indices of sampled voxels, (n, 3)."""
    generator = np.random.default_rng(seed)
    flat = label.ravel()
    order = np.argsort(flat, kind="stable") if num_atoms > 1 else np.zeros(0, int)
    ends = np.searchsorted(flat[order], np.arange(num_atoms), side="right")
    samples = [np.zeros((0, 3), np.int64)]
    for atom in range(1, num_atoms):
        voxels = order[ends[atom - 1] : ends[atom]]
        keep = min(len(voxels), max(MOST_SAMPLES, int(np.ceil(LEAST_SHARE * len(voxels)))))
        chosen = np.sort(generator.choice(voxels, keep, replace=False)) if keep < len(voxels) else voxels
        samples.append(np.stack(np.unravel_index(chosen, label.shape), axis=1))
    return samples


def _ome_image(geometry: Geometry, *, channels: tuple[str, ...]) -> dict[str, Any]:
    axes = [{"name": "c", "type": "channel"}, *_space_axes()]
    scale = [{"type": "scale", "scale": [1.0, *geometry.spacing]}]
    dataset = {"path": "image", "coordinateTransformations": scale}
    colours = [{"label": name, "color": "FFFFFF", "window": _CT_WINDOW, "active": True} for name in channels]
    return {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [dataset]}], "omero": {"channels": colours}}


def _ome_label(geometry: Geometry) -> dict[str, Any]:
    dataset = {"path": "values", "coordinateTransformations": [{"type": "scale", "scale": list(geometry.spacing)}]}
    multiscales = [{"axes": _space_axes(), "datasets": [dataset]}]
    return {"version": "0.5", "multiscales": multiscales, "image-label": {"source": {"image": "../../"}}}


def _space_axes() -> list[dict[str, str]]:
    return [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]


# How viewers first show a CT (HU).
_CT_WINDOW = {"start": -160.0, "end": 240.0, "min": -1024.0, "max": 3071.0}
