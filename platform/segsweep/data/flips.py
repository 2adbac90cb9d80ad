"""Puts label maps with wrong headers on the scan's grid, index by index, where the result is plausible on the CT."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data.layouts import entry, read_json
from segsweep.data.readers import Scan
from segsweep.errors import InputError

AXES = "zyx"
STATEMENT = "label_flip.json"
FLIPS = tuple("".join(axes) for number in range(4) for axes in itertools.combinations(AXES, number))

# Voxels of one organ differ little in HU from each other, those of a misplaced organ's shape much: measured on abdominal CT, 0.98 of
# the pancreas and 0.99 of the liver lie this close to their medians, and at most 0.85 and 0.77 under any other flip.
ALIKE_HU = 60
LEAST_ALIKE, LEAST_AHEAD = 0.75, 0.05
# Medians of all labelled voxels: parenchyma, with and without contrast agent.
SOFT_TISSUE_HU = (-20, 220)


def stated_flip(raw: Path, *, otherwise: str) -> str:
    """The flip in `raw/label_flip.json` ({"flip": "y"}), else the one that the dataset states. Raises InputError for none of FLIPS."""
    if not (raw / STATEMENT).exists():
        return otherwise
    flip = entry(read_json(raw / STATEMENT, what="how label maps are flipped"), key="flip", kind=str, file=STATEMENT)
    if flip not in FLIPS:
        raise InputError(
            f"{STATEMENT}: flip is {flip[:16]!r}; expected one of {', '.join(map(repr, FLIPS))}; correct it"
        )
    return flip


def placed(labels: Scan, *, scan: Scan, flip: str, name: str) -> Scan:
    """The label map of a CT, on the scan's own grid: its header's where that fits, else that of its indices.

    Indices are the scan's once the axes in `flip`, one of FLIPS, are reversed; `name` is the file that errors name. Raises InputError
    for another shape than the scan's, and when what is labelled then is no soft tissue, or not clearly more uniform (in HU, organ by
    organ) than under each other flip.
    """
    if labels.geometry.canonical().same_grid(scan.geometry.canonical()):
        return labels
    if not labels.voxels.any():
        raise InputError(f"{name} holds no labels and its header does not fit the image; expected some; copy it again")
    if labels.geometry.shape != scan.geometry.shape:
        raise InputError(
            f"{name} has {labels.geometry.shape} voxels (z, y, x), the image {scan.geometry.shape}; expected the same number; "
            "is it this scan's?"
        )
    found = {other: _alike(labels.voxels, scan=scan.voxels, flip=other) for other in FLIPS}
    voxels = _flipped(labels.voxels, flip=flip)
    _demand_plausible(found, flip=flip, median=float(np.median(scan.voxels[voxels > 0])), name=name)
    return Scan(voxels=voxels, geometry=scan.geometry, digest=labels.digest)


def _flipped(voxels: NDArray, *, flip: str) -> NDArray:
    return np.flip(voxels, axis=tuple(AXES.index(axis) for axis in flip))


def _alike(labels: NDArray, *, scan: NDArray, flip: str) -> float:
    """Share of the labelled voxels that lie within ALIKE_HU of the median of their label."""
    values, hu = (part[labels > 0] for part in (labels, _flipped(scan, flip=flip)))
    close = sum(
        int(np.count_nonzero(np.abs(organ - np.median(organ)) <= ALIKE_HU))
        for organ in (hu[values == value].astype(np.float32) for value in np.unique(values))
    )
    return close / len(values)


def _demand_plausible(found: Mapping[str, float], *, flip: str, median: float, name: str) -> None:
    best = max(found, key=lambda other: found[other])
    ahead = min(found[flip] - share for other, share in found.items() if other != flip)
    low, high = SOFT_TISSUE_HU
    if low <= median <= high and found[flip] >= LEAST_ALIKE and ahead >= LEAST_AHEAD:
        return
    raise InputError(
        f"{name}: with flip {flip!r} its labels lie on tissue of {median:.0f} HU in the median, {found[flip]:.0%} of it uniform, with "
        f"{best!r} {found[best]:.0%}; expected {low} to {high} HU and {flip!r} clearly ahead; look at both and state the right one in "
        f"{STATEMENT}"
    )
