"""From a model's outputs on its own grid to a label map on the scan's grid, slice by slice: neither grid is ever held for all classes.

The common currency is atom scores: argmax over them is the label. A softmax head's logits are scores; a sigmoid head's structure
logits s become `membership @ s`, whose argmax equals thresholding at 0.5 wherever the thresholded set is an atom.

Interpolated scores are means of up to eight neighbours (linear interpolation is a convex combination). Where these neighbours agree
on the best atom it stays best, so only the cells between different labels are interpolated at all; the result is the same.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

from segsweep.data.geometry import Geometry
from segsweep.data.resampling import Pair, Taps, linear_taps, pairs, require_same_extent
from segsweep.errors import ModelError
from segsweep.learning.task import Task

# Slices (k, y, x) of a grid, from the lowest to the highest.
Planes = Iterable[NDArray[np.float32]]


# Numbers interpolated at once, in float64: bounds the memory, whatever the scan's size.
MOST_NUMBERS = 2**22
# Means of probabilities are kept this far from 0 and 1, so that their logits are finite.
NEAREST_TO_CERTAIN = 1e-7
# A probability p that is kept in 8 bits is round(CERTAIN * p); odd, so that none of them is 0.5.
CERTAIN = 255


class Kept(Protocol):
    """Where slices (k, y, x) wait under their index: a dictionary, or something smaller in memory."""

    def __getitem__(self, index: int, /) -> NDArray[np.float32]: ...
    def __setitem__(self, index: int, plane: NDArray[np.float32], /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an argmax needs: `planes` of k scores, and for structure logits the (atoms, structures) table (None: scores are atoms').

    `probabilities` gives those of structures (s, y, x) for a slice of scores.
    """

    planes: Planes
    membership: NDArray[np.bool_] | None
    probabilities: Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Output:
    """The task that a member's logits mean, its weight in the mean (any positive unit), and how to get them.

    `planes` is called once, in the member's turn, so that an ensemble runs one member at a time.
    """

    planes: Callable[[], Planes]
    task: Task
    weight: float = 1.0


def label_on_grid(
    planes: Planes, *, geometry_from: Geometry, geometry_to: Geometry, membership: NDArray | None = None
) -> NDArray:
    """Atom values (z, y, x) on `geometry_to`, uint8 (uint16 beyond 256 atoms): scores interpolated linearly, then argmax.

    Equals interpolation of the whole volume in float64 and argmax (ties go to the lower value, up to rounding). `planes` are the
    slices of `geometry_from`, all of which are taken, one by one. With `membership` (atoms, structures) the scores are structure
    logits. Both grids cover the same extent; values beyond voxel centres are the edge's.
    """
    require_same_extent(geometry_from, target=geometry_to)
    table = None if membership is None else torch.tensor(np.asarray(membership, dtype=np.float64).T)
    z, y, x = (linear_taps(n, m=m) for n, m in zip(geometry_from.shape, geometry_to.shape, strict=True))
    slices = (
        _slice(pair, y=y, x=x, table=table) for pair in pairs((_plane(one, table=table) for one in planes), taps=z)
    )
    first = next(slices)
    result = np.empty(geometry_to.shape, dtype=first.dtype)
    for index, label in enumerate(itertools.chain([first], slices)):
        result[index] = label
    return result


def structure_probabilities(logits: NDArray, *, task: Task) -> NDArray[np.float32]:
    """Probability (structures, z, y, x) that each structure is present: a softmax head's atoms that hold it, summed."""
    if task.head == "sigmoid":
        return expit(logits).astype(np.float32)
    return _summed(_softmax(logits), task=task)


def combine(outputs: Sequence[Output], *, keep: Callable[[], Kept] = dict) -> Scores:
    """The scores of an ensemble whose outputs lie on one grid, in the first member's atoms.

    One member: its logits. Members of one head and table: the mean of their probabilities. Others: the mean of their structure
    probabilities, by structure name. What all members but the last add up to lies in `keep()`. Raises ModelError when members
    know different structures.
    """
    first = outputs[0].task
    if len(outputs) == 1:
        shares = partial(structure_probabilities, task=first)
        return Scores(planes=outputs[0].planes(), membership=_table(first), probabilities=shares)
    _demand_same_structures(outputs)
    alike = all(output.task.head == first.head and output.task.table == first.table for output in outputs)
    if alike and first.head == "softmax":
        means = _means(outputs, value=lambda plane, _: _softmax(plane), kept=keep())
        return Scores(planes=means, membership=None, probabilities=partial(_summed, task=first))
    names = first.table.labels.structures
    means = _means(outputs, value=partial(_by_name, names=names), kept=keep())
    certain = NEAREST_TO_CERTAIN
    logits = (logit(np.clip(mean, certain, 1 - certain, out=mean)) for mean in means)
    return Scores(planes=logits, membership=first.table.membership, probabilities=expit)


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """One source slice: its scores (k, y, x), and the best atom (y, x) of each of its voxels."""

    values: NDArray[np.float32]
    best: NDArray[np.uint8 | np.uint16]


def _plane(values: NDArray[np.float32], *, table: torch.Tensor | None) -> _Plane:
    atoms = values if table is None else torch.tensordot(table.T, torch.from_numpy(values).double(), dims=1).numpy()
    return _Plane(values=values, best=_best(atoms))


def _best(atoms_AYX: NDArray) -> NDArray[np.uint8 | np.uint16]:
    """The argmax over the first axis, the lowest of equal ones; half the time of numpy's own, which goes from voxel to voxel."""
    highest = atoms_AYX[0].copy()
    best = np.zeros(highest.shape, dtype=np.uint8 if len(atoms_AYX) <= 256 else np.uint16)
    for value, scores in enumerate(atoms_AYX[1:], start=1):
        np.copyto(best, value, where=scores > highest, casting="unsafe")
        np.maximum(highest, scores, out=highest)
    return best


def _slice(pair: Pair[_Plane], *, y: Taps, x: Taps, table: torch.Tensor | None) -> NDArray[np.uint8 | np.uint16]:
    mixed = _mixed(pair.low.best, pair.high.best)
    label = pair.low.best[y.low][:, x.low]
    rows, columns = np.nonzero(mixed[y.low][:, x.low])
    if len(rows):
        corners = _corners(pair, mixed=mixed)
        piece = max(1, MOST_NUMBERS // max(corners.values.shape[1], 1 if table is None else table.shape[1]))
        for start in range(0, len(rows), piece):
            at = rows[start : start + piece], columns[start : start + piece]
            scores = _interpolate(corners, share=pair.share, y=y, x=x, at=at)
            label[at] = (scores if table is None else scores @ table).argmax(dim=1).numpy()
    return label


def _mixed(low: NDArray, high: NDArray) -> NDArray[np.bool_]:
    """(y, x): whether the cell from a voxel to its upper neighbours holds more than one best atom, in either slice."""
    mixed = low != high
    for best in (low, high):
        padded = np.pad(best, ((0, 1), (0, 1)), mode="edge")
        for dy, dx in ((0, 1), (1, 0), (1, 1)):
            mixed |= padded[dy : dy + low.shape[0], dx : dx + low.shape[1]] != low
    return mixed


@dataclass(frozen=True, kw_only=True)
class _Corners:
    """Scores (rows, k) in float64 of the voxels around mixed cells, the lower slice's before the upper's, and each one's row (2, y, x)."""

    values: torch.Tensor
    row: NDArray[np.int64]


def _corners(pair: Pair[_Plane], *, mixed: NDArray[np.bool_]) -> _Corners:
    around = mixed.copy()
    around[1:] |= mixed[:-1]
    around[:, 1:] |= around[:, :-1].copy()
    chosen = np.flatnonzero(around)
    # Numpy's `take` has them in half the time of torch's `index_select`.
    values = [plane.values.reshape(len(plane.values), -1).take(chosen, axis=1) for plane in (pair.low, pair.high)]
    row = np.zeros((2, *mixed.shape), dtype=np.int64)
    row[:, around] = np.arange(2 * len(chosen)).reshape(2, -1)
    return _Corners(values=torch.cat([torch.from_numpy(one).T.double() for one in values]), row=row)


def _interpolate(corners: _Corners, *, share: float, y: Taps, x: Taps, at: tuple[NDArray, NDArray]) -> torch.Tensor:
    """Scores (voxels, k) in float64: the weighted sum of eight neighbours."""
    rows, columns = at
    index, weights = np.empty((len(rows), 8), dtype=np.int64), np.empty((len(rows), 8))
    corner = 0
    for z, in_z in ((0, 1 - share), (1, share)):
        for row, in_y in ((y.low[rows], 1 - y.share[rows]), (y.high[rows], y.share[rows])):
            for column, in_x in ((x.low[columns], 1 - x.share[columns]), (x.high[columns], x.share[columns])):
                index[:, corner], weights[:, corner] = corners.row[z, row, column], in_z * in_y * in_x
                corner += 1
    # Gathers, weighs and adds in one pass: a tenth of the time of doing it neighbour by neighbour.
    return F.embedding_bag(
        torch.from_numpy(index), corners.values, per_sample_weights=torch.from_numpy(weights), mode="sum"
    )


def _softmax(logits: NDArray) -> NDArray[np.float32]:
    return softmax(logits.astype(np.float32), axis=0)


def _summed(atoms: NDArray[np.float32], *, task: Task) -> NDArray[np.float32]:
    """Probabilities of structures out of those of atoms."""
    return np.tensordot(task.table.membership.T.astype(np.float32), atoms, axes=1)


def _table(task: Task) -> NDArray[np.bool_] | None:
    return task.table.membership if task.head == "sigmoid" else None


def _by_name(logits: NDArray, task: Task, *, names: Sequence[str]) -> NDArray[np.float32]:
    own = task.table.labels.structures
    return structure_probabilities(logits, task=task)[[own.index(name) for name in names]]


def _means(
    outputs: Sequence[Output], *, value: Callable[[NDArray, Task], NDArray[np.float32]], kept: Kept
) -> Iterator[NDArray[np.float32]]:
    """Slices of the weighted mean of the members' values. The last member's are added while its slices come."""
    whole = sum(output.weight for output in outputs)
    for number, output in enumerate(outputs):
        for index, plane in enumerate(output.planes()):
            part = value(plane, output.task)
            part *= np.float32(output.weight / whole)
            total = np.add(kept[index], part, out=part) if number else part
            if number == len(outputs) - 1:
                yield total
            else:
                kept[index] = total


def _demand_same_structures(outputs: Sequence[Output]) -> None:
    expected = set(outputs[0].task.table.labels.structures)
    for number, output in enumerate(outputs[1:], start=2):
        found = set(output.task.table.labels.structures)
        if found != expected:
            raise ModelError(
                f"member {number} of the ensemble knows {sorted(found)}, the first {sorted(expected)}; "
                "expected equal structures; ensemble models of one dataset"
            )
