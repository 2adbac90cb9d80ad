"""One grid of one case on disk: an OME-Zarr 0.5 image with its atoms as label image and samples of where each atom lies.

Sharded Zarr v3 with crc32c inside the shards: without it a flipped bit is read as a wrong voxel.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec

from segsweep.data.copies import LocalCopy, Voxels
from segsweep.data.geometry import Geometry, Size
from segsweep.data.manifest import REPAIR
from segsweep.data.shards import open_shards
from segsweep.errors import StoreError

Region = tuple[slice, slice, slice]

# Arrays of a grid's folder.
IMAGE, LABEL = "image", "labels/atoms/values"
PROBABILITIES = "probabilities"
INNER_CHUNK: Size = (16, 64, 64)
# nnU-Net keeps at most 10,000 voxels a class for oversampling, but at least 1 % of them (v2, preprocessing).
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
    _write_compressed(group, "image", data.image, names=("c", "z", "y", "x"))
    labels = group.create_group("labels")
    labels.attrs["ome"] = {"version": "0.5", "labels": ["atoms"]}
    atoms = labels.create_group("atoms")
    atoms.attrs["ome"] = _ome_label(data.geometry)
    _write_compressed(atoms, "values", data.label, names=("z", "y", "x"))
    samples = _sample_foreground(data.label, num_atoms=num_atoms, seed=seed)
    voxels = np.concatenate([np.zeros((0, 3), np.int32), *samples]).astype(np.int32)
    array = group.create_array(
        "foreground",
        shape=voxels.shape,
        dtype=voxels.dtype,
        chunks=(max(1, len(voxels)), 3),
        filters=[TransposeCodec(order=(1, 0))],  # indices of one axis side by side take a quarter of the bytes
        compressors=_codecs(4),
    )
    array[...] = voxels
    array.attrs["counts"] = [len(part) for part in samples]


@dataclass(frozen=True, kw_only=True)
class StoredProbabilities:
    """Quantised probabilities (k, z, y, x) opened for reading, with the facts that were written beside them."""

    voxels: Voxels
    facts: Mapping[str, Any]

    def read(self, slices: slice, /) -> NDArray[np.uint8]:
        """All channels of some slices (z), each chunk verified. Raises StoreError when one is damaged."""
        everything = slice(None)
        return self.voxels.read((everything, slices, everything, everything))


def write_probabilities(
    folder: Path, *, values: NDArray[np.uint8], geometry: Geometry, facts: Mapping[str, Any]
) -> None:
    """Write quantised probabilities (k, z, y, x) and JSON-able facts as a Zarr group at `folder`, which must not exist."""
    group = zarr.open_group(str(folder), mode="w-", zarr_format=3)
    group.attrs["segsweep"] = {"geometry": geometry_json(geometry), "facts": dict(facts)}
    _write_compressed(group, PROBABILITIES, values, names=("c", "z", "y", "x"))


def open_probabilities(folder: Path, *, name: str) -> StoredProbabilities:
    """What `write_probabilities` wrote. Raises StoreError when it is absent or of another layout; `name` begins the message."""
    try:
        facts = json.loads((folder / "zarr.json").read_bytes())["attributes"]["segsweep"]["facts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{name} cannot be opened ({type(error).__name__}); delete it, it is made again") from None
    voxels = open_shards(folder / PROBABILITIES, name=name)
    if voxels is None:
        raise StoreError(f"{name} has another layout than this segsweep writes; delete it, it is made again")
    return StoredProbabilities(voxels=voxels, facts=facts)


class GridReader:
    """A grid opened for reading. Atom values are translated to the store's own table by `lookup`.

    Where SEGSWEEP_CACHE names a folder, a grid that is read by region again and again is copied there, uncompressed. Not so one whose
    folder is not `lasting`: it lies in that cache itself, and stays mapped until `shards.let_go`.
    """

    def __init__(
        self, folder: Path, *, name: str, lookup: NDArray, lowest: int | None = None, lasting: bool = True
    ) -> None:
        self._folder, self._name, self._lookup, self._lowest, self._lasting = folder, name, lookup, lowest, lasting

    @cached_property
    def geometry(self) -> Geometry:
        """The grid, in canonical orientation."""
        path = self._folder / "zarr.json"
        try:
            return geometry_from_json(json.loads(path.read_bytes())["attributes"]["segsweep"]["geometry"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"{self._name} cannot be opened ({error!r}); {REPAIR}") from None

    @property
    def shape(self) -> Size:
        """Voxels (z, y, x)."""
        return self.geometry.shape

    def read_image(self, region: Region | None = None) -> NDArray:
        """Image (c, z, y, x) in HU, at least `lowest`, of a region within the grid (all of it by default)."""
        image = self._read(IMAGE, None if region is None else (slice(None), *region))
        return image if self._lowest is None else np.maximum(image, self._lowest)

    def read_label(self, region: Region | None = None) -> NDArray:
        """Atom values (z, y, x) of the store's table, of a region within the grid (all of it by default)."""
        values = self._read(LABEL, region)
        if self._keeps_values:
            return values.astype(self._lookup.dtype, copy=False)
        if values.dtype == self._lookup.dtype == np.uint8:
            # 0.2 ms instead of 0.4 ms for a patch that takes about a millisecond in all.
            return np.frombuffer(bytearray(values).translate(self._byte_table), np.uint8).reshape(values.shape)
        return np.take(self._lookup, values)

    @property
    def foreground(self) -> Mapping[int, NDArray[np.int32]]:
        """Atom value of the store's table -> sampled voxel indices (n, 3), for every atom but background."""
        return self._samples

    @cached_property
    def _samples(self) -> dict[int, NDArray[np.int32]]:
        array = _ForeignArray.opened(self._folder, path="foreground", name=self._name)
        voxels = array.read((slice(None), slice(None)))
        parts = np.split(voxels, np.cumsum(array.attributes["counts"])[:-1])
        return {int(self._lookup[local]): part for local, part in enumerate(parts) if local and len(part)}

    @cached_property
    def _keeps_values(self) -> bool:
        return np.array_equal(self._lookup, np.arange(len(self._lookup)))

    @cached_property
    def _byte_table(self) -> bytes:
        return self._lookup.tobytes().ljust(256, b"\0")

    @cached_property
    def _stored(self) -> Mapping[str, Voxels]:
        return _open_voxels(self._folder, name=self._name, lasting=self._lasting)

    @cached_property
    def _local(self) -> LocalCopy:
        return LocalCopy(self._folder, arrays=self._stored, fill=partial(_fill, arrays=self._stored))

    def _read(self, path: str, region: Sequence[slice] | None) -> NDArray:
        array = self._stored[path]
        if region is None:
            return array.read([slice(None)] * len(array.shape))
        copied = self._local.read(path, region=region) if self._lasting else None
        return array.read(region) if copied is None else copied


@dataclass(frozen=True, kw_only=True)
class _ForeignArray:
    """An array that zarr-python reads, whatever its layout."""

    array: zarr.Array
    name: str

    @classmethod
    def opened(cls, folder: Path, *, path: str, name: str) -> "_ForeignArray":
        try:
            array = zarr.open_array(str(folder / path), mode="r", zarr_format=3)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{name}, {path} cannot be opened ({type(error).__name__}); {REPAIR}") from None
        return cls(array=array, name=f"{name}, {path}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def attributes(self) -> Mapping[str, Any]:
        return self.array.attrs

    def read(self, region: Sequence[slice], /) -> NDArray:
        try:
            return np.asarray(self.array[tuple(region)])
        except Exception as error:  # codecs raise many types; each means that the bytes are not what was written
            raise StoreError(f"{self.name} is damaged ({error}); {REPAIR}") from None


def _open_voxels(folder: Path, *, name: str, lasting: bool) -> Mapping[str, Voxels]:
    return {
        path: open_shards(folder / path, name=f"{name}, {path}", lasting=lasting)
        or _ForeignArray.opened(folder, path=path, name=name)
        for path in (IMAGE, LABEL)
    }


def _fill(folder: Path, *, arrays: Mapping[str, Voxels]) -> None:
    """Write a copy of the arrays without compression, one slice a chunk; reading them verifies their checksums."""
    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    for path, array in arrays.items():
        values = array.read([slice(None)] * len(array.shape))
        _write(group, path, values, chunk=(1, *values.shape[-2:]), codecs=[Crc32cCodec()])


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


def _write_compressed(group: zarr.Group, name: str, values: NDArray, *, names: tuple[str, ...]) -> None:
    chunk = tuple(min(c, n) for c, n in zip(INNER_CHUNK, values.shape[-3:], strict=True))
    _write(group, name, values, chunk=chunk, codecs=_codecs(values.dtype.itemsize), names=names)


def _write(
    group: zarr.Group,
    name: str,
    values: NDArray,
    *,
    chunk: tuple[int, ...],
    codecs: Sequence[BloscCodec | Crc32cCodec],
    names: tuple[str, ...] | None = None,
) -> None:
    """One shard a channel, every chunk of it written, as `segsweep.data.shards` reads it."""
    lead = (1,) * (values.ndim - 3)
    shard = tuple(-(-n // c) * c for n, c in zip(values.shape[-3:], chunk, strict=True))
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(*lead, *chunk),
        shards=(*lead, *shard),
        compressors=codecs,
        dimension_names=names,
        config={"write_empty_chunks": True},
    )
    array[...] = values


def _codecs(typesize: int) -> list[BloscCodec | Crc32cCodec]:
    # LZ4HC also for labels: half the bytes of LZ4, read as fast (benchmarks/patch_reads.py).
    shuffle = "shuffle" if typesize > 1 else "noshuffle"
    return [BloscCodec(cname="lz4hc", clevel=5, shuffle=shuffle, typesize=typesize), Crc32cCodec()]


def _sample_foreground(label: NDArray, *, num_atoms: int, seed: int) -> list[NDArray]:
    """Per atom (background empty) the indices of sampled voxels, (n, 3)."""
    generator = np.random.default_rng(seed)
    inside = np.flatnonzero(label)
    values = label.ravel()[inside]
    order = inside[np.argsort(values, kind="stable")]
    ends = np.cumsum(np.bincount(values, minlength=num_atoms))
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
