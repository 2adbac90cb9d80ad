"""A grid of a store in a bucket: opening it asks for nothing, and its voxels come when they are read, or are fetched before."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data.arrays import GridReader, Region
from segsweep.data.downloads import Download
from segsweep.data.geometry import Geometry, Size
from segsweep.data.manifest import Manifest


class RemoteGrid:
    """Reads as a GridReader does, from the copy in the node-local cache, which the cache may drop between two reads."""

    def __init__(
        self,
        uri: str,
        *,
        name: str,
        geometry: Geometry,
        demand: Callable[[Manifest], None],
        opened: Callable[[Path], GridReader],
    ) -> None:
        self._copy = Download(uri, name=name, demand=demand, opened=opened)
        self._foreground: Mapping[int, NDArray[np.int32]] | None = None
        self.geometry = geometry

    @property
    def shape(self) -> Size:
        """Voxels (z, y, x)."""
        return self.geometry.shape

    @property
    def key(self) -> str:
        """What the cache calls its copy; empty as long as nothing was asked of the storage."""
        return self._copy.key

    def fetch(self, spare: Collection[str] = ()) -> bool:
        """Have the copy in the cache; False where that has no room now unless copies of these keys go. Raises as `Download.fetch`."""
        return self._copy.fetch(spare)

    def read_image(self, region: Region | None = None) -> NDArray:
        """As `GridReader.read_image`."""
        return self._copy.read(lambda grid: grid.read_image(region))

    def read_label(self, region: Region | None = None) -> NDArray:
        """As `GridReader.read_label`."""
        return self._copy.read(lambda grid: grid.read_label(region))

    @property
    def foreground(self) -> Mapping[int, NDArray[np.int32]]:
        """As `GridReader.foreground`."""
        if self._foreground is None:
            self._foreground = self._copy.read(lambda grid: grid.foreground)
        return self._foreground


Grid = GridReader | RemoteGrid
