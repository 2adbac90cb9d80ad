"""The voxels of a case on which candidates for an ensemble disagree: nothing else can change when some of them are averaged.

Where all candidates take the same atom (softmax heads), or put every structure on the same side of 0.5 (others), every weighted mean
does so too. What is left is a small part of a scan, so that thousands of ensembles can be tried without reading a scan again.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from segsweep.inference.export import CERTAIN, NEAREST_TO_CERTAIN

# A candidate's quantised probabilities (k, z, y, x) of some slices of one case.
Access = Callable[[slice], NDArray[np.uint8]]
# Slices read at once: those of one row of chunks in the cache.
SLAB = 16


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
            return np.argmax(sums, axis=0)
        mean = np.clip(sums / (CERTAIN * total), NEAREST_TO_CERTAIN, 1 - NEAREST_TO_CERTAIN)
        return np.argmax(self.membership.astype(np.float64) @ logit(mean), axis=0)

    def settled(self, values: NDArray[np.uint8]) -> NDArray[np.intp]:
        """Atom values (n,) that any mean keeps with candidates of the same value here; -1 where a mean may take another one."""
        found = self.atoms(values, total=1)
        if self.channels == "atoms":
            return found
        # A structure that no atom holds has no say.
        asked = self.membership.any(axis=0)
        present = values[asked] > CERTAIN // 2
        return np.where((present == self.membership[found][:, asked].T).all(axis=0), found, -1)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What was drawn: `label` (z, y, x) in values of which `membership` (values, structures) tells the meaning.

    Voxels of value `ignored` are not scored, nor are structures that are not `annotated` (indices).
    """

    label: NDArray
    membership: NDArray[np.bool_]
    ignored: int
    annotated: Collection[int]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One case as far as a choice among candidates can change it.

    `values` (candidates, k, n) and `truth` (structures, n) are of the contested voxels. `agreed` (3, structures) counts the others: in
    prediction and reference, in the prediction, in the reference. `disagreement` (candidates, candidates) is the share of voxels with
    unlike labels among those that either calls foreground.
    """

    case: str
    decision: Decision
    values: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    agreed: NDArray[np.int64]
    annotated: NDArray[np.bool_]
    disagreement: NDArray[np.float64]

    def dice(self, sums: NDArray, *, total: float) -> NDArray[np.float64]:
        """Dice (structures,) of the mean `sums / total`, (k, n); 1 where both masks are empty, NaN where nothing was annotated."""
        found = self.decision.membership.T[:, self.decision.atoms(sums, total=total)]
        counts = np.stack([(found & self.truth).sum(axis=1), found.sum(axis=1), self.truth.sum(axis=1)]) + self.agreed
        both, sizes = counts[0], counts[1] + counts[2]
        dice = np.divide(2.0 * both, sizes, out=np.ones(len(sizes)), where=sizes > 0)
        return np.where(self.annotated, dice, np.nan)


def contest(
    case: str,
    *,
    candidates: Sequence[Access],
    decision: Decision,
    reference: Reference,
    scratch: Path | None = None,
) -> Contest:
    """Reduce a case to its contested voxels. Every candidate is read twice, some slices at a time.

    With `scratch`, a folder, the contested voxels are mapped from a file there instead of held in memory.
    """
    first, contested = _compare(candidates, decision=decision, shape=reference.label.shape)
    known = reference.label != reference.ignored
    contested &= known
    agreed = known & ~contested
    values = _gather(candidates, contested=contested, path=None if scratch is None else scratch / f"{case}.npy")
    annotated = np.zeros(decision.membership.shape[1], dtype=bool)
    annotated[list(reference.annotated)] = True
    return Contest(
        case=case,
        decision=decision,
        values=values,
        truth=reference.membership[reference.label[contested]].T,
        agreed=_counts(
            first[agreed], decision=decision, label=reference.label[agreed], membership=reference.membership
        ),
        annotated=annotated,
        disagreement=_disagreement(values, decision=decision, agreed=int((first[agreed] > 0).sum())),
    )


def _slabs(depth: int) -> list[slice]:
    return [slice(start, min(start + SLAB, depth)) for start in range(0, depth, SLAB)]


def _compare(
    candidates: Sequence[Access], *, decision: Decision, shape: tuple[int, ...]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The first candidate's atoms (z, y, x), and where a mean may take others."""
    first = np.empty(shape, dtype=np.int32)
    contested = np.empty(shape, dtype=bool)
    for part in _slabs(shape[0]):
        for number, access in enumerate(candidates):
            values = access(part)
            found = decision.settled(values.reshape(len(values), -1)).reshape(values.shape[1:])
            if number == 0:
                first[part], contested[part] = found, found < 0
            else:
                contested[part] |= found != first[part]
    return first, contested


def _gather(candidates: Sequence[Access], *, contested: NDArray[np.bool_], path: Path | None) -> NDArray[np.uint8]:
    """Probabilities (candidates, k, n) of the contested voxels."""
    num_channels = len(candidates[0](slice(0, 1)))
    shape = (len(candidates), num_channels, int(contested.sum()))
    if path is None or not math.prod(shape):
        values = np.empty(shape, dtype=np.uint8)
    else:
        values = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    done = 0
    for part in _slabs(len(contested)):
        wanted = contested[part]
        size = int(wanted.sum())
        if size:
            for number, access in enumerate(candidates):
                values[number, :, done : done + size] = access(part)[:, wanted]
        done += size
    return values


def _counts(found: NDArray, *, decision: Decision, label: NDArray, membership: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(3, structures): voxels of a structure in both, in what was found, in the reference."""
    num_found, num_label = len(decision.membership), len(membership)
    pairs = np.bincount(found.astype(np.int64) * num_label + label, minlength=num_found * num_label)
    pairs = pairs.reshape(num_found, num_label)
    mine, theirs = decision.membership.astype(np.int64), membership.astype(np.int64)
    both = np.einsum("as,at,ts->s", mine, pairs, theirs)
    return np.stack([both, pairs.sum(axis=1) @ mine, pairs.sum(axis=0) @ theirs])


def _disagreement(values: NDArray[np.uint8], *, decision: Decision, agreed: int) -> NDArray[np.float64]:
    labels = [decision.atoms(candidate, total=1) for candidate in values]
    table = np.zeros((len(labels), len(labels)))
    for row, one in enumerate(labels):
        for column, other in enumerate(labels[:row]):
            either = agreed + int(((one > 0) | (other > 0)).sum())
            table[row, column] = table[column, row] = int((one != other).sum()) / either if either else 0.0
    return table
