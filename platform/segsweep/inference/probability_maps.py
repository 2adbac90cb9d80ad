"""Probabilities of a case's structures, kept on request beside its label map: `CASE.probabilities.zarr`, quantised to 8 bits.

They lie on the grid of the model (of the first, in an ensemble), in canonical orientation, and where a finder shows where to look, in
its region alone: the scan's own grid would hold more voxels, but nothing more that is known. The group's attributes have the grid
and, under `facts`, the structures in the order of the channels; a probability p is kept as round(255 p).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data.arrays import write_probabilities
from segsweep.data.geometry import Geometry
from segsweep.data.manifest import committed
from segsweep.errors import InputError
from segsweep.inference.export import CERTAIN, Planes, Scores

SUFFIX = ".probabilities.zarr"


class ProbabilityMaps:
    """Filled while a case's slices of scores pass by, then written."""

    def __init__(self) -> None:
        self._geometry: Geometry | None = None
        self._values: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def passing(self, scores: Scores, *, geometry: Geometry) -> Planes:
        """The slices of scores on a grid as they are."""
        self._geometry = geometry
        for index, plane in enumerate(scores.planes):
            share = scores.probabilities(plane)
            if not index:
                self._values = np.empty((len(share), *geometry.shape), dtype=np.uint8)
            self._values[:, index] = np.rint(share * CERTAIN)
            yield plane

    def write(self, path: Path, *, structures: Sequence[str]) -> None:
        """Write a Zarr group (array `probabilities`, structure, z, y, x) that is there whole or not at all; an older one is replaced."""
        assert self._geometry is not None  # a case was segmented
        facts = {"structures": list(structures), "certain": CERTAIN}
        try:
            with committed(path) as partial:
                write_probabilities(partial, values=self._values, geometry=self._geometry, facts=facts)
        except OSError as error:
            raise InputError(
                f"{path.name} cannot be written ({error}); expected a writable folder with space left"
            ) from None
