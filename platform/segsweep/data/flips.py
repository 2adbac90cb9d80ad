"""Puts label maps with wrong headers on the scan's grid, index by index, where the result is plausible on the CT."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsweep.data.layouts import entry, read_json
from segsweep.data.readers import Scan
from segsweep.errors import InputError

AXES = "zyx"
STATEMENT = "label_flip.json"
FLIPS = tuple("".join(axes) for number in range(4) for axes in itertools.combinations(AXES, number))

# Voxels of one organ are alike in HU, and those around it are not: that many more of the inside than of the margin lie this close to
# the organ's median. On abdominal CT, 0.24 to 0.71 where labels belong; under any other flip at most 0.15, 0.31 in a thin slab.
ALIKE_HU = 60
MARGIN_VOXELS = 2
LEAST_CONTRAST, LEAST_AHEAD = 0.15, 0.1
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
    for another shape than the scan's, and when what is labelled then is no soft tissue, or does not stand out from its surroundings
    clearly more than under each other flip.
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
    found = _contrasts(labels.voxels, scan=scan.voxels)
    voxels = _flipped(labels.voxels, flip=flip)
    _demand_plausible(found, flip=flip, median=float(np.median(scan.voxels[voxels > 0])), name=name)
    return Scan(voxels=voxels, geometry=scan.geometry, digest=labels.digest)


def _flipped(voxels: NDArray, *, flip: str) -> NDArray:
    return np.flip(voxels, axis=tuple(AXES.index(axis) for axis in flip))


def _contrasts(labels: NDArray, *, scan: NDArray) -> dict[str, float]:
    """For each flip, by how much more of the organs than of their margins is alike: shares, weighted by the organs' voxels."""
    found = dict.fromkeys(FLIPS, 0.0)
    turned = {flip: _flipped(scan, flip=flip) for flip in FLIPS}
    boxes = enumerate(ndimage.find_objects(labels), start=1)
    for value, box in ((value, box) for value, box in boxes if box):
        around = tuple(slice(max(0, part.start - MARGIN_VOXELS), part.stop + MARGIN_VOXELS) for part in box)
        organ = labels[around] == value
        margin = ndimage.binary_dilation(organ, iterations=MARGIN_VOXELS) & ~organ
        for flip, voxels in turned.items():
            inside, outside = voxels[around][organ].astype(np.float32), voxels[around][margin].astype(np.float32)
            middle = float(np.median(inside))
            found[flip] += len(inside) * (_share(inside, near=middle) - _share(outside, near=middle))
    return {flip: total / np.count_nonzero(labels) for flip, total in found.items()}


def _share(values: NDArray, *, near: float) -> float:
    return float(np.mean(np.abs(values - near) <= ALIKE_HU)) if len(values) else 1.0


def _demand_plausible(found: Mapping[str, float], *, flip: str, median: float, name: str) -> None:
    best = max(found, key=lambda other: found[other])
    ahead = min(found[flip] - contrast for other, contrast in found.items() if other != flip)
    low, high = SOFT_TISSUE_HU
    if low <= median <= high and found[flip] >= LEAST_CONTRAST and ahead >= LEAST_AHEAD:
        return
    raise InputError(
        f"{name}: with flip {flip!r} its labels lie on tissue of {median:.0f} HU in the median and stand out by {found[flip]:.2f}, with "
        f"{best!r} by {found[best]:.2f}; expected {low} to {high} HU and {flip!r} clearly ahead; look at both and state the right one in "
        f"{STATEMENT}"
    )
