"""The voxels of a case on which candidates for an ensemble disagree: nothing else can change when some of them are averaged.

Where all candidates take the same atom (softmax heads), or put every structure on the same side of 0.5 (others), every weighted mean
does so too. What is left is a small part of a scan, and most of that lies between two atoms (`Duels`), where a mean is a sum of one
number a candidate. So thousands of ensembles can be scored without reading a scan again.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Spacing
from segsweep.evaluation.contest import Contest, Kinds, Volume, pairs
from segsweep.evaluation.decision import Decision
from segsweep.evaluation.measure import NSD, Measure
from segsweep.evaluation.surface import Box, bounding_box

# A candidate's quantised probabilities (k, z, y, x) of some slices of one case.
Access = Callable[[slice], NDArray[np.uint8]]
# Slices read at once: those of one row of chunks in the cache.
SLAB = 16
# Bytes of these slices that are held for all candidates together; where they are more, each candidate's are read twice.
MOST_HELD = 2**28


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What was drawn: `label` (z, y, x) in values of which `membership` (values, structures) tells the meaning, `spacing` in mm.

    Voxels of value `ignored` are not scored, nor are structures that are not `annotated` (indices).
    """

    label: NDArray
    spacing: Spacing
    membership: NDArray[np.bool_]
    ignored: int
    annotated: Collection[int]


def contest(
    case: str,
    *,
    candidates: Sequence[Access],
    decision: Decision,
    reference: Reference,
    measure: Measure,
    scratch: Path | None = None,
) -> Contest:
    """Reduce a case to its contested voxels, some slices at a time; of one voxel between two atoms 2 bytes a candidate are left.

    With `scratch`, a folder, these are mapped from files there instead of held in memory, as is the label map that NSD needs.
    """
    part = _sorted(
        [
            _reduce(
                [functools.partial(access, part) for access in candidates],
                decision=decision,
                reference=reference,
                part=part,
            )
            for part in _slabs(len(reference.label))
        ]
    )
    begins = np.flatnonzero(np.diff(part.kinds, axis=1, prepend=-1).any(axis=0))
    first, second, value = part.kinds[:, begins]
    annotated = np.zeros(decision.membership.shape[1], dtype=bool)
    annotated[list(reference.annotated)] = True
    keep = functools.partial(_kept, case=case, scratch=scratch)
    return Contest(
        case=case,
        decision=decision,
        membership=reference.membership,
        annotated=annotated,
        least=part.agreed + pairs(part.kinds[0], values=part.kinds[2], shape=part.agreed.shape),
        kinds=Kinds(first=first, second=second, value=value, starts=begins),
        lead=keep(part.lead, name="lead"),
        values=keep(part.values, name="values"),
        truth=part.truth,
        disagreement=_disagreement(part, decision=decision),
        volume=_volume(part, reference=reference, tolerance=measure.nsd_tolerance, keep=keep)
        if measure.metric == NSD
        else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some slices of a case: counts (atoms, reference values) of what is agreed, voxels between two atoms, and the others.

    `kinds` (3, n) are first atom, second atom and reference value. `label` (z, y, x) has the atoms that are agreed, 0 elsewhere;
    `places` and `others` are positions in it.
    """

    agreed: NDArray[np.int64]
    kinds: NDArray[np.intp]
    lead: NDArray[np.int16]
    values: NDArray[np.uint8]
    truth: NDArray[np.intp]
    label: NDArray[np.uint16]
    places: NDArray[np.intp]
    others: NDArray[np.intp]


def _reduce(
    reads: Sequence[Callable[[], NDArray[np.uint8]]], *, decision: Decision, reference: Reference, part: slice
) -> _Part:
    first = reads[0]()
    if len(reads) * first.nbytes <= MOST_HELD:
        reads = [lambda: first, *(functools.cache(read) for read in reads[1:])]
    votes = decision.votes(first.reshape(len(first), -1))
    found = decision.elected(votes)
    contested = found < 0
    for read in reads[1:]:
        contested |= (decision.votes(read().reshape(len(first), -1)) != votes).any(axis=0)
    drawn = reference.label[part].reshape(-1).astype(np.intp)
    known = drawn != reference.ignored
    agreed, wanted = known & ~contested, np.flatnonzero(known & contested)
    values = np.stack([read().reshape(len(first), -1)[:, wanted] for read in reads])
    duels, truth = decision.duels(values), drawn[wanted]
    two = ~duels.open
    shape = (len(decision.membership), len(reference.membership))
    return _Part(
        agreed=pairs(found[agreed], values=drawn[agreed], shape=shape),
        kinds=np.stack([duels.first, duels.second, truth])[:, two],
        lead=duels.lead[:, two],
        values=values[:, :, duels.open],
        truth=truth[duels.open],
        label=np.where(agreed, found, 0).astype(np.uint16).reshape(first.shape[1:]),
        places=wanted[two],
        others=wanted[duels.open],
    )


def _sorted(parts: Sequence[_Part]) -> _Part:
    """All slices of a case, its voxels between two atoms sorted by kind."""
    kinds = np.concatenate([part.kinds for part in parts], axis=1)
    order = np.lexsort(kinds[::-1])
    starts = np.cumsum([0, *(part.label.size for part in parts[:-1])])
    return _Part(
        agreed=np.sum([part.agreed for part in parts], axis=0),
        kinds=kinds[:, order],
        lead=np.concatenate([part.lead for part in parts], axis=1)[:, order],
        values=np.concatenate([part.values for part in parts], axis=2),
        truth=np.concatenate([part.truth for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        places=np.concatenate([part.places + start for part, start in zip(parts, starts, strict=True)])[order],
        others=np.concatenate([part.others + start for part, start in zip(parts, starts, strict=True)]),
    )


def _volume(part: _Part, *, reference: Reference, tolerance: float, keep: Callable[..., NDArray]) -> Volume:
    """The case inside the box of all that is, or may become, foreground."""
    drawn = reference.label.astype(np.uint16)
    seen = (part.label > 0) | np.asarray(reference.membership.any(axis=1))[drawn]
    seen.reshape(-1)[part.places] = seen.reshape(-1)[part.others] = True
    box = bounding_box(seen) or (slice(0, 1), slice(0, 1), slice(0, 1))
    return Volume(
        label=keep(part.label[box], name="label"),
        reference=keep(drawn[box], name="reference"),
        places=_inside(box, places=part.places, shape=seen.shape),
        others=_inside(box, places=part.others, shape=seen.shape),
        spacing=reference.spacing,
        tolerance=tolerance,
    )


def _inside(box: Box, *, places: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Positions in a volume as positions in a box that holds them all."""
    axes = [axis - part.start for axis, part in zip(np.unravel_index(places, shape), box, strict=True)]
    return np.asarray(np.ravel_multi_index(axes, [part.stop - part.start for part in box]))


def _slabs(depth: int) -> list[slice]:
    return [slice(start, min(start + SLAB, depth)) for start in range(0, depth, SLAB)]


def _kept(values: NDArray, *, name: str, case: str, scratch: Path | None) -> NDArray:
    if scratch is None or not values.size:
        return values
    path = scratch / f"{case}-{name}.npy"
    np.save(path, values)
    return np.load(path, mmap_mode="r")


def _disagreement(part: _Part, *, decision: Decision) -> NDArray[np.float64]:
    labels = [
        np.concatenate([np.where(lead > 0, part.kinds[1], part.kinds[0]), decision.atoms(values, total=1)])
        for lead, values in zip(part.lead, part.values, strict=True)
    ]
    agreed = int(part.agreed[1:].sum())
    table = np.zeros((len(labels), len(labels)))
    for row, one in enumerate(labels):
        for column, other in enumerate(labels[:row]):
            either = agreed + int(((one > 0) | (other > 0)).sum())
            table[row, column] = table[column, row] = int((one != other).sum()) / either if either else 0.0
    return table
