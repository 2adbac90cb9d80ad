"""The average symmetric distance between border voxels, by which CHAOS and other challenges measure (Kavur et al. 2021, ASSD)."""

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Spacing
from segsweep.evaluation.surface import nearest_mm


def symmetric_mm(prediction: NDArray[np.bool_], *, reference: NDArray[np.bool_], spacing: Spacing) -> float:
    """Mean distance in mm of both masks' border voxels, taken together, to the other mask's; NaN when a mask is empty.

    A border voxel has a face neighbour outside its mask; the rim of the array is no border, so that a box cut out of a scan needs a
    voxel of margin. Every voxel counts alike, whereas the surface elements of NSD, HD95 and the directed means count by area.
    """
    borders = [_border(reference), _border(prediction)]
    places = [np.flatnonzero(border) for border in borders]
    if not (len(places[0]) and len(places[1])):
        return float("nan")
    distances = [
        nearest_mm(
            places[i],
            others=places[1 - i],
            shared=borders[1 - i].reshape(-1)[places[i]],
            shape=reference.shape,
            spacing=spacing,
        )
        for i in (0, 1)
    ]
    return float(np.concatenate(distances).mean())


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of the mask that have a face neighbour outside it."""
    inner = mask.copy()
    for axis in range(3):
        here, there = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        here[1:] &= there[:-1]
        here[:-1] &= there[1:]
    return mask & ~inner
