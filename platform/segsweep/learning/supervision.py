"""Deep supervision: how much each decoder level counts, and its target."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """Each level counts `decay` times the one above it; `heads` ends the levels that count, as in a slice.

    4: the top four; None: all; -1: all but the lowest (the only one counts nevertheless), nnU-Net's rule and the default.
    """

    decay: float = 0.5
    heads: int | None = -1

    def weights(self, num_levels: int) -> tuple[float, ...]:
        """Weights that sum to 1, from full resolution down; 0 for a level that does not count."""
        counting = max(1, len(range(num_levels)[: self.heads]))
        weights = [self.decay**level if level < counting else 0.0 for level in range(num_levels)]
        return tuple(weight / sum(weights) for weight in weights)


NNUNET = Supervision()


def shrink(atoms_BZYX: Tensor, *, shape: Sequence[int]) -> Tensor:
    """The target at a level of `shape` (z, y, x): the voxel under each coarse voxel's centre (nearest-exact)."""
    for axis, size in enumerate(shape, start=1):
        length = atoms_BZYX.shape[axis]
        if size != length:
            centres = (torch.arange(size, device=atoms_BZYX.device) * 2 + 1) * length // (2 * size)
            atoms_BZYX = atoms_BZYX.index_select(axis, centres)
    return atoms_BZYX
