"""Deep supervision: how much each decoder level counts, and its target."""

from collections.abc import Sequence

import torch
from torch import Tensor


def supervision_weights(num_levels: int) -> tuple[float, ...]:
    """1/2^i from full resolution down, the last level 0 when there are several, normalised to 1 (nnU-Net v2, deep supervision)."""
    weights = [0.5**level for level in range(num_levels)]
    if num_levels > 1:
        weights[-1] = 0.0
    return tuple(weight / sum(weights) for weight in weights)


def shrink(atoms_BZYX: Tensor, *, shape: Sequence[int]) -> Tensor:
    """The target at a level of `shape` (z, y, x): the voxel under each coarse voxel's centre (nearest-exact)."""
    for axis, size in enumerate(shape, start=1):
        length = atoms_BZYX.shape[axis]
        if size != length:
            centres = (torch.arange(size, device=atoms_BZYX.device) * 2 + 1) * length // (2 * size)
            atoms_BZYX = atoms_BZYX.index_select(axis, centres)
    return atoms_BZYX
