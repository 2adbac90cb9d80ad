"""One case as far as a choice among candidates for an ensemble can change it: scores any weighted mean of them.

Voxels of one kind are only counted, since Dice asks for no more. Surfaces need the label map, which is made for every mean anew.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Spacing
from segsweep.evaluation.decision import Decision
from segsweep.evaluation.surface import surfaces
from segsweep.inference.export import CERTAIN


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """Voxels between two atoms, sorted by kind: the i-th kind begins at `starts[i]`, and its voxels have one reference `value`."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    value: NDArray[np.intp]
    starts: NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Where the voxels lie, for scores of surfaces at a tolerance; lengths in mm.

    `label` (z, y, x) has the atoms that no mean changes, and 0 elsewhere; `places` (n,) and `others` (m,) are positions in it of the
    voxels between two atoms and of those that may take more. `reference` (z, y, x) are reference values.
    """

    label: NDArray[np.uint16]
    reference: NDArray[np.uint16]
    places: NDArray[np.intp]
    others: NDArray[np.intp]
    spacing: Spacing
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A case. Weights are whole numbers, so that sums are exact.

    `least` (atoms, reference values) counts the voxels that no mean changes, and those of `kinds` as if all took their first atom;
    `lead` (candidates, n) is of these. `values` (candidates, k, m) and `truth` (m,) are of voxels that may take more than two atoms.
    With a `volume`, scores are NSD, otherwise Dice. `membership` is (reference values, structures). `disagreement` (candidates,
    candidates) is the share of voxels with unlike labels among those that either calls foreground.
    """

    case: str
    decision: Decision
    membership: NDArray[np.bool_]
    annotated: NDArray[np.bool_]
    least: NDArray[np.int64]
    kinds: Kinds
    lead: NDArray[np.int16]
    values: NDArray[np.uint8]
    truth: NDArray[np.intp]
    disagreement: NDArray[np.float64]
    volume: Volume | None = None

    def scores(self, shares: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores (structures,) of the mean with these weights; 1 where both masks are empty, NaN where nothing was annotated."""
        lead, sums = (_weighted(values, shares=shares) for values in (self.lead, self.values))
        return self._scores(lead, sums=sums, total=int(shares.sum()))

    def additions(self, shares: NDArray[np.int64], *, candidates: Sequence[int]) -> NDArray[np.float64]:
        """Scores (additions, structures) of the means that have one candidate once more than these weights."""
        total = int(shares.sum()) + 1
        lead, sums = (_weighted(values, shares=shares, total=total) for values in (self.lead, self.values))
        return np.stack(
            [self._scores(lead + self.lead[one], sums=sums + self.values[one], total=total) for one in candidates]
        )

    def _scores(self, lead: NDArray, *, sums: NDArray, total: int) -> NDArray[np.float64]:
        taken = lead > 0
        others = self.decision.atoms(sums, total=total) if len(self.truth) else self.truth
        if self.volume is None:
            return np.where(self.annotated, self._dice(taken, others=others), np.nan)
        return self._nsd(self.volume, taken=taken, others=others)

    def _dice(self, taken: NDArray[np.bool_], *, others: NDArray[np.intp]) -> NDArray[np.float64]:
        mine, theirs = self.decision.membership.astype(np.float64), self.membership.astype(np.float64)
        counts = self._counts(taken, others=others).astype(np.float64)
        both = ((mine.T @ counts) * theirs.T).sum(axis=1)
        sizes = counts.sum(axis=1) @ mine + counts.sum(axis=0) @ theirs
        return np.divide(2.0 * both, sizes, out=np.ones(len(sizes)), where=sizes > 0)

    def _counts(self, taken: NDArray[np.bool_], *, others: NDArray[np.intp]) -> NDArray[np.int64]:
        """Voxels (atoms, reference values) where voxels between two atoms have the second one if `taken`."""
        counts, kinds = self.least.copy(), self.kinds
        if len(kinds.starts):
            moved = np.add.reduceat(taken, kinds.starts, dtype=np.int64)
            np.subtract.at(counts, (kinds.first, kinds.value), moved)
            np.add.at(counts, (kinds.second, kinds.value), moved)
        return counts + pairs(others, values=self.truth, shape=counts.shape)

    def _nsd(self, volume: Volume, *, taken: NDArray[np.bool_], others: NDArray[np.intp]) -> NDArray[np.float64]:
        found, kinds = np.array(volume.label), self.kinds
        sizes = np.diff(kinds.starts, append=len(taken))
        first, second = np.repeat(kinds.first, sizes), np.repeat(kinds.second, sizes)
        found.reshape(-1)[volume.places] = np.where(taken, second, first)
        found.reshape(-1)[volume.others] = others
        result = np.full(len(self.annotated), np.nan)
        for structure in np.flatnonzero(self.annotated):
            mine, drawn = (
                table[:, structure][label]
                for table, label in ((self.decision.membership, found), (self.membership, volume.reference))
            )
            nsd = surfaces(mine, reference=drawn, spacing=volume.spacing).normalised_dice(volume.tolerance)
            result[structure] = 1.0 if math.isnan(nsd) else nsd
        return result


def pairs(atoms: NDArray[np.intp], *, values: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """How many voxels have which atom and which reference value, (atoms, values)."""
    return np.bincount(atoms * shape[1] + values, minlength=shape[0] * shape[1]).reshape(shape)


def _weighted(values: NDArray, *, shares: NDArray[np.int64], total: int = 0) -> NDArray:
    """Sum of candidates' rows, in the smallest whole numbers that hold it when the weights sum to `total` (or to what they do)."""
    kind = np.min_scalar_type(-CERTAIN * max(total, int(shares.sum())))
    result = np.zeros(values.shape[1:], dtype=kind)
    for index in np.flatnonzero(shares):
        result += values[index] * kind.type(shares[index])
    return result
