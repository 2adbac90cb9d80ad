"""From a model's outputs on its own grid to a label map on the scan's grid, never holding classes x native grid.

The common currency is atom scores: argmax over them is the label. A softmax head's logits are scores; a sigmoid head's structure
logits s become `membership @ s`, whose argmax equals thresholding at 0.5 wherever the thresholded set is an atom.

Interpolated scores are means of up to eight neighbours (linear interpolation is a convex combination). Where these neighbours agree
on the best atom it stays best, so only the cells between different labels are interpolated at all; the result is the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

from segsweep.data.geometry import Geometry
from segsweep.data.resampling import Taps, linear_taps, require_same_extent
from segsweep.errors import ModelError
from segsweep.learning.task import Task

# Cells interpolated at once: bounds the memory to this many numbers in float64, whatever the scan's size.
MOST_NUMBERS = 2**23
# Means of probabilities are kept this far from 0 and 1, so that their logits are finite.
NEAREST_TO_CERTAIN = 1e-7
# A probability p that is kept in 8 bits is round(CERTAIN * p); odd, so that none of them is 0.5.
CERTAIN = 255


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an argmax needs: `values` (k, z, y, x), and for structure logits the (atoms, structures) table (None: values are atoms)."""

    values: NDArray[np.float32]
    membership: NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True)
class Output:
    """The task that a member's logits mean, its weight in the mean (any positive unit), and how to get them: (k, z, y, x).

    `logits` is called once, in the member's turn, so that an ensemble holds one member's logits at a time.
    """

    logits: Callable[[], NDArray[np.float32]]
    task: Task
    weight: float = 1.0


def label_on_grid(
    scores_KZYX: NDArray, *, geometry_from: Geometry, geometry_to: Geometry, membership: NDArray | None = None
) -> NDArray:
    """Atom values (z, y, x) on `geometry_to`, uint8 (uint16 beyond 256 atoms): scores interpolated linearly, then argmax.

    Equals interpolation of the whole volume in float64 and argmax (ties go to the lower value, up to rounding). With `membership`
    (atoms, structures) the scores are structure logits. Both grids cover the same extent; values beyond voxel centres are the edge's.
    """
    require_same_extent(geometry_from, target=geometry_to)
    table = None if membership is None else np.asarray(membership, dtype=np.float64).T
    num_atoms = len(scores_KZYX) if table is None else table.shape[1]
    result = np.empty(geometry_to.shape, dtype=np.uint8 if num_atoms <= 256 else np.uint16)
    z, y, x = (linear_taps(n, m=m) for n, m in zip(geometry_from.shape, geometry_to.shape, strict=True))
    planes: dict[int, _Plane] = {}
    for index in range(len(result)):
        low, high = int(z.low[index]), int(z.high[index])
        planes = {at: planes.get(at) or _plane(scores_KZYX[:, at], table=table) for at in (low, high)}
        pair = _Pair(low=planes[low], high=planes[high], share=float(z.share[index]))
        result[index] = _slice(pair, y=y, x=x, table=table)
    return result


def structure_probabilities(logits: NDArray, *, task: Task) -> NDArray[np.float32]:
    """Probability (structures, z, y, x) that each structure is present: a softmax head's atoms that hold it, summed."""
    if task.head == "sigmoid":
        return expit(logits).astype(np.float32)
    return np.tensordot(task.table.membership.T.astype(np.float32), _softmax(logits), axes=1)


def combine(outputs: Sequence[Output]) -> Scores:
    """The scores of an ensemble whose outputs lie on one grid, in the first member's atoms.

    One member: its logits. Members of one head and table: the mean of their probabilities. Others: the mean of their structure
    probabilities, by structure name. Raises ModelError when members know different structures.
    """
    first = outputs[0].task
    if len(outputs) == 1:
        return Scores(values=outputs[0].logits(), membership=_table(first))
    _demand_same_structures(outputs)
    alike = all(output.task.head == first.head and output.task.table == first.table for output in outputs)
    if alike and first.head == "softmax":
        return Scores(values=_mean(outputs, (_softmax(output.logits()) for output in outputs)), membership=None)
    names = first.table.labels.structures
    mean = _mean(outputs, (_by_name(output, names=names) for output in outputs))
    np.clip(mean, NEAREST_TO_CERTAIN, 1 - NEAREST_TO_CERTAIN, out=mean)
    return Scores(values=logit(mean), membership=first.table.membership)


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """One source slice with channels last, (y, x, k), and the best atom of each of its voxels."""

    values: NDArray
    best: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The source slices on either side of a target slice, and the upper one's share."""

    low: _Plane
    high: _Plane
    share: float


def _plane(scores_KYX: NDArray, *, table: NDArray | None) -> _Plane:
    values = np.ascontiguousarray(np.moveaxis(scores_KYX, 0, -1))
    return _Plane(values=values, best=np.argmax(_atoms(values, table=table), axis=-1))


def _atoms(values: NDArray, *, table: NDArray | None) -> NDArray:
    return values if table is None else values.astype(np.float64) @ table


def _slice(pair: _Pair, *, y: Taps, x: Taps, table: NDArray | None) -> NDArray[np.int64]:
    best = pair.low.best
    mixed = _mixed(np.stack([best, pair.high.best]))
    label = best[y.low][:, x.low]
    rows, columns = np.nonzero(mixed[y.low][:, x.low])
    piece = max(1, MOST_NUMBERS // max(pair.low.values.shape[-1], 1 if table is None else table.shape[1]))
    for start in range(0, len(rows), piece):
        at = rows[start : start + piece], columns[start : start + piece]
        scores = _interpolate(pair, y=y, x=x, at=at)
        label[at] = np.argmax(_atoms(scores, table=table), axis=-1)
    return label


def _mixed(best: NDArray) -> NDArray[np.bool_]:
    """(y, x): whether the cell from a voxel to its upper neighbours holds more than one best atom, in either slice."""
    padded = np.pad(best, ((0, 0), (0, 1), (0, 1)), mode="edge")
    corners = [padded[:, dy : dy + best.shape[1], dx : dx + best.shape[2]] for dy in (0, 1) for dx in (0, 1)]
    return np.any([(corner != best[0]).any(axis=0) for corner in corners], axis=0)


def _interpolate(pair: _Pair, *, y: Taps, x: Taps, at: tuple[NDArray, NDArray]) -> NDArray[np.float64]:
    """Scores (voxels, k) in float64: the weighted sum of eight neighbours."""
    rows, columns = at
    total = np.zeros((len(rows), pair.low.values.shape[-1]))
    for plane, in_z in ((pair.low, 1 - pair.share), (pair.high, pair.share)):
        for row, in_y in ((y.low[rows], 1 - y.share[rows]), (y.high[rows], y.share[rows])):
            for column, in_x in ((x.low[columns], 1 - x.share[columns]), (x.high[columns], x.share[columns])):
                total += (in_z * in_y * in_x)[:, None] * plane.values[row, column]
    return total


def _softmax(logits: NDArray) -> NDArray[np.float32]:
    return softmax(logits.astype(np.float32), axis=0)


def _table(task: Task) -> NDArray[np.bool_] | None:
    return task.table.membership if task.head == "sigmoid" else None


def _by_name(output: Output, *, names: Sequence[str]) -> NDArray[np.float32]:
    own = output.task.table.labels.structures
    return structure_probabilities(output.logits(), task=output.task)[[own.index(name) for name in names]]


def _mean(outputs: Sequence[Output], values: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Weighted mean, holding one member's values at a time."""
    share = sum(output.weight for output in outputs)
    total: NDArray[np.float32] | None = None
    for output, value in zip(outputs, values, strict=True):
        value *= np.float32(output.weight / share)
        total = value if total is None else np.add(total, value, out=total)
    assert total is not None  # an ensemble has members
    return total


def _demand_same_structures(outputs: Sequence[Output]) -> None:
    expected = set(outputs[0].task.table.labels.structures)
    for number, output in enumerate(outputs[1:], start=2):
        found = set(output.task.table.labels.structures)
        if found != expected:
            raise ModelError(
                f"member {number} of the ensemble knows {sorted(found)}, the first {sorted(expected)}; "
                "expected equal structures; ensemble models of one dataset"
            )
