"""How mean probabilities become a label, and which two atoms the candidates for a mean leave to a voxel."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from segsweep.inference.export import CERTAIN, NEAREST_TO_CERTAIN


@dataclass(frozen=True, kw_only=True)
class Duels:
    """Voxels (n,) between two atoms, `first` < `second`: any mean takes the second where its weighted sum of `lead` is above 0.

    `lead` is (candidates, n). Voxels of `open` may take more than two atoms; their other entries mean nothing.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    lead: NDArray[np.int16]
    open: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How mean probabilities become a label, as the Predictor does it; `membership` is (atoms, structures).

    Channels of "atoms" are a softmax's: the likeliest is taken. Those of "structures" are one a structure: the atom with the largest
    sum of logits is taken, which is thresholding at 0.5 wherever the thresholded set is an atom.
    """

    membership: NDArray[np.bool_]
    channels: Literal["atoms", "structures"]

    def atoms(self, sums: NDArray, *, total: float) -> NDArray[np.intp]:
        """Atom values (n,) of sums (k, n) of quantised probabilities, whose weights sum to `total`."""
        if self.channels == "atoms":
            return _largest(sums)
        mean = np.clip(sums / (CERTAIN * total), NEAREST_TO_CERTAIN, 1 - NEAREST_TO_CERTAIN)
        return _largest(self.membership.astype(np.float64) @ logit(mean))

    def votes(self, values: NDArray[np.uint8]) -> NDArray:
        """What a candidate's probabilities (k, n) say, (rows, n): its atom, or which structures are there.

        Where the votes of all candidates are alike, so is that of any mean, unless it is a set of structures that is no atom.
        """
        if self.channels == "atoms":
            return _largest(values)[None]
        return values[self._asked] > CERTAIN // 2

    def elected(self, votes: NDArray) -> NDArray[np.intp]:
        """Atom values (n,) of votes (rows, n); -1 for a set of structures that is no atom."""
        if self.channels == "atoms":
            return votes[0]
        return _atoms_of(votes, membership=self.membership[:, self._asked])

    def duels(self, values: NDArray[np.uint8]) -> Duels:
        """Between which atoms the candidates' probabilities (candidates, k, n) leave each voxel."""
        votes = np.stack([self.votes(candidate) for candidate in values])
        if self.channels == "atoms":
            return _between_atoms(values, found=votes[:, 0])
        asked = self._asked
        return _between_sets(values[:, asked], votes=votes, membership=self.membership[:, asked])

    @property
    def _asked(self) -> NDArray[np.bool_]:
        """A structure that no atom holds has no say."""
        return np.asarray(self.membership.any(axis=0))


def _between_atoms(values: NDArray[np.uint8], *, found: NDArray[np.intp]) -> Duels:
    """Where candidates take two atoms, and no third one ever has half of their sum, every mean takes one of the two."""
    first, second = found.min(axis=0), found.max(axis=0)
    low, high = (np.take_along_axis(values, one[None, None], axis=1)[:, 0].astype(np.int16) for one in (first, second))
    two = ((found == first) | (found == second)).all(axis=0)
    for channel in range(values.shape[1]):
        less = (2 * values[:, channel].astype(np.int16) < low + high).all(axis=0)
        two &= less | (first == channel) | (second == channel)
    return Duels(first=first, second=second, lead=high - low, open=~two)


def _between_sets(values: NDArray[np.uint8], *, votes: NDArray[np.bool_], membership: NDArray[np.bool_]) -> Duels:
    """Where candidates disagree on one structure, every mean takes the set with it or the set without it, if both are atoms."""
    differs = (votes != votes[0]).any(axis=0)
    structure = differs.argmax(axis=0)[None]
    without, among = votes[0].copy(), votes[0].copy()
    np.put_along_axis(without, structure, False, axis=0)
    np.put_along_axis(among, structure, True, axis=0)
    absent, present = (_atoms_of(one, membership=membership) for one in (without, among))
    # Twice the distance from one half, so that it is a whole number. A mean of one half takes the lower atom, as argmax does.
    lead = 2 * np.take_along_axis(values, structure[None], axis=1)[:, 0].astype(np.int16) - CERTAIN
    return Duels(
        first=np.minimum(absent, present),
        second=np.maximum(absent, present),
        lead=np.where(absent < present, lead, -lead),
        open=(differs.sum(axis=0) != 1) | (absent < 0) | (present < 0),
    )


def _largest(values: NDArray) -> NDArray[np.intp]:
    """argmax over the first axis (ties go to the lower index): row by row, many times as fast as numpy's on a few long rows."""
    best, found = values[0].copy(), np.zeros(values.shape[1:], dtype=np.int16)
    for index, row in enumerate(values[1:], start=1):
        np.maximum(found, (row > best) * np.int16(index), out=found)
        np.maximum(best, row, out=best)
    return found.astype(np.intp)


def _atoms_of(present: NDArray[np.bool_], *, membership: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The atom (n,) of every set of structures (structures, n); -1 where it is none. One structure after the other."""
    nowhere = len(membership)
    codes, found = np.zeros(nowhere, dtype=np.intp), np.zeros(present.shape[1], dtype=np.intp)
    for column, row in zip(membership.T, present, strict=True):
        steps = 2 * codes + column
        following = np.full(2 * nowhere + 2, nowhere)
        known = np.unique(steps)
        following[known] = np.arange(len(known))
        codes, found = following[steps], following[2 * found + row]
    atoms = np.full(nowhere + 1, -1)
    atoms[codes[::-1]] = np.arange(nowhere)[::-1]
    return atoms[found]
