"""An uncompressed copy of a grid's arrays in the local cache, for grids that are read by region again and again."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segsweep.data.cache import DISK_FULL, LocalCache, configured_cache
from segsweep.data.shards import Shards, open_shards
from segsweep.errors import StoreError

# The copy is made at this read of a region: image and label of one patch are no reason yet, the next patch is.
COPIED_AT = 3
# Copies asked for within so many seconds stay: a data set larger than the cache is copied in part, not over and over.
SPARE_SECONDS = 3600.0
# Every so many reads a copy is counted as used; one that was dropped meanwhile is closed, since its mapping holds the disk.
TOUCHED_EVERY = 64
# Beside its voxels a copy has a checksum and an index entry for each slice, and a zarr.json for each array and group.
_SLICE_BYTES, _ARRAY_BYTES = 20, 8192


class Voxels(Protocol):
    """An array opened for reading."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def read(self, region: Sequence[slice], /) -> NDArray: ...


class LocalCopy:
    """Regions of a grid's arrays from their copy below SEGSWEEP_CACHE; `fill` writes it in a layout of `segsweep.data.shards`."""

    def __init__(self, folder: Path, *, arrays: Mapping[str, Voxels], fill: Callable[[Path], object]) -> None:
        self._folder, self._arrays, self._fill = folder, arrays, fill
        self._cache = configured_cache()
        self._key = self._facts() if self._cache else ""
        self._num_reads = 0
        self._copy: Mapping[str, Shards] | None = None

    def read(self, path: str, *, region: Sequence[slice]) -> NDArray | None:
        """A region of the array at `path`; None where there is no copy (yet), or it proved damaged and was dropped."""
        self._num_reads += 1
        if self._cache is None:
            return None
        try:
            if self._num_reads == COPIED_AT:
                self._copy = self._opened(self._cache)
            elif self._num_reads % TOUCHED_EVERY == 0 and not self._cache.touch(self._key):
                self._copy = None
            return self._copy[path].read(region) if self._copy else None
        except StoreError:
            self._copy = None
            self._cache.drop(self._key)
            return None

    def _opened(self, cache: LocalCache) -> Mapping[str, Shards] | None:
        size = sum(
            math.prod(array.shape) * array.dtype.itemsize + _SLICE_BYTES * math.prod(array.shape[:-2]) + _ARRAY_BYTES
            for array in self._arrays.values()
        )
        try:
            entry = cache.entry(self._key, size=size, fill=self._fill, spare_seconds=SPARE_SECONDS)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            return None
        return None if entry is None else {path: _shards(entry / path) for path in self._arrays}

    def _facts(self) -> str:
        """A name for the copy, another one after the case was converted again."""
        files = sorted(file for path in self._arrays for file in (self._folder / path).rglob("*") if file.is_file())
        facts = [(file.resolve().as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def _shards(folder: Path) -> Shards:
    shards = open_shards(folder, name="cached copy")
    if shards is None:
        raise StoreError("cached copy: has another layout than this segsweep writes; delete it")
    return shards
