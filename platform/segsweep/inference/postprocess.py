"""Connected components of a label map: the largest of a structure stays, and what lies too far from the body's centre goes.

The rules of FLARE22's accelerated nnU-Net (Huang et al., 2022, section 2.4) and, as `axes="z"`, those of its released code; with
`foreground` also nnU-Net's for all structures together (Isensee et al., Nature Methods 2021).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsweep.data.geometry import Spacing
from segsweep.data.structures import LabelTable
from segsweep.learning.crop import box
from segsweep.learning.inference import CleanUp
from segsweep.learning.patches import Region

# Voxels that share a corner are connected.
NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True, kw_only=True)
class Components:
    """The components of a mask, numbered from 1 in `numbers` (z, y, x), which lies at `region` of it.

    `sizes` (n) are in voxels, `centroids` (n, 3) in mm from the centre of the mask's voxel (0, 0, 0).
    """

    numbers: NDArray[np.int32]
    region: Region
    sizes: NDArray[np.int64]
    centroids: NDArray[np.float64]


def clean(label: NDArray, *, rules: CleanUp, table: LabelTable, spacing: Spacing) -> NDArray:
    """Atom values (z, y, x) without the components that the rules refuse: the whole foreground's go first, then those too far away, and
    the largest is of what then stays. Of equal ones, it is the one that comes first in (z, y, x).

    A voxel of a refused component of a structure keeps its other structures, where the table has an atom of these alone.
    """
    if rules == CleanUp():
        return label
    result = label.copy()
    part = result[box(label > 0, margin=(0, 0, 0))]
    if rules.foreground == "largest":
        _keep_largest(part)
    centre = _centre(part, rules=rules, table=table, spacing=spacing)
    for name in table.labels.structures:
        if name not in rules.largest and centre is None:
            continue
        found = components(table.mask(part, structure=name), spacing=spacing)
        kept = np.ones(len(found.sizes), dtype=bool)
        if centre is not None:
            axes = slice(0, 1) if rules.axes == "z" else slice(None)
            kept = np.linalg.norm((found.centroids - centre)[:, axes], axis=1) <= rules.farthest_mm
        if name in rules.largest:
            kept &= np.arange(len(kept)) == np.argmax(np.where(kept, found.sizes, 0)) if len(kept) else kept
        refused = np.concatenate([[False], ~kept])[found.numbers]
        seen = part[found.region]
        seen[refused] = _without(name, table=table)[seen[refused]]
    return result


def _keep_largest(label: NDArray) -> None:
    """Leave background alone outside the largest component of all that is not background."""
    numbers = np.empty(label.shape, dtype=np.int32)
    ndimage.label(label > 0, structure=NEIGHBOURS_26, output=numbers)
    sizes = np.bincount(numbers.ravel())[1:]
    if len(sizes) > 1:
        label[numbers != 1 + np.argmax(sizes)] = 0


def components(mask: NDArray[np.bool_], *, spacing: Spacing) -> Components:
    """The 26-connected components of a mask (z, y, x)."""
    region = box(mask, margin=(0, 0, 0))
    inside = mask[region]
    numbers = np.empty(inside.shape, dtype=np.int32)
    count = int(ndimage.label(inside, structure=NEIGHBOURS_26, output=numbers))  # pyright: ignore[reportArgumentType]
    sizes = np.zeros(count, dtype=np.int64)
    centroids = np.zeros((count, 3))
    # Plane by plane: the indices of all voxels of a large organ would take several times the scan's memory.
    for axis in range(3):
        for index, plane in enumerate(np.moveaxis(numbers, axis, 0), start=region[axis].start):
            found = np.bincount(plane.ravel(), minlength=count + 1)[1:]
            centroids[:, axis] += index * found
            sizes += found * (axis == 0)
    return Components(numbers=numbers, region=region, sizes=sizes, centroids=centroids / sizes[:, None] * spacing)


def _centre(label: NDArray, *, rules: CleanUp, table: LabelTable, spacing: Spacing) -> NDArray[np.float64] | None:
    if not rules.anchors or not set(rules.anchors) <= set(table.labels.structures):
        return None
    centroids = []
    for name in rules.anchors:
        found = components(table.mask(label, structure=name), spacing=spacing)
        if not len(found.sizes):
            return None
        centroids.append(found.centroids[np.argmax(found.sizes)])
    return np.mean(centroids, axis=0)


def _without(name: str, *, table: LabelTable) -> NDArray:
    """For each atom value, that of the same atom without a structure; the value itself where there is no such atom."""
    structure = table.labels.structures.index(name)
    values = {atom: value for value, atom in enumerate(table.atoms)}
    rest = [tuple(other for other in atom if other != structure) for atom in table.atoms]
    return np.asarray([values.get(atom, value) for value, atom in enumerate(rest)], dtype=table.dtype)
