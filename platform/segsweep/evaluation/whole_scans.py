"""Dice, and where asked NSD, of a model on whole scans of a store, each at its own grid."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsweep.data.fingerprint import are_ct
from segsweep.data.geometry import Spacing
from segsweep.data.store import Store
from segsweep.evaluation.overlays import WINDOW_HU, fullest_slice, overlay
from segsweep.evaluation.surface import surfaces
from segsweep.inference.predictor import Predictor

# Case -> structure -> Dice (or NSD).
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Scores of a case's annotated structures, and the seconds that segmenting it took: not reading it, not scoring it."""

    dice: dict[str, float]
    seconds: float
    nsd: dict[str, float] = field(default_factory=dict)


def score_case(
    predictor: Predictor, *, store: Store, case_id: str, nsd_tolerance: float = 0.0, picture: Path | None = None
) -> Case:
    """Scores of every annotated structure on a whole scan at its own grid, without ignored voxels.

    `nsd_tolerance` (mm) is that of the normalised surface Dice (Nikolov et al. 2018), which takes time: with 0 there is none. `picture`
    is a PNG to write: the slice with most structures, with the outlines of all (`overlay`).
    """
    grid, annotated = store.grid(case_id), store.cases[case_id].annotated
    truth, image = grid.read_label(), grid.read_image()
    begin = time.perf_counter()
    found = predictor.segment(image, geometry=grid.geometry, structures=annotated)
    seconds = time.perf_counter() - begin
    found[truth == store.table.ignored] = 0
    mask, own = store.table.mask, predictor.table_task.table.mask
    case = Case(dice={}, seconds=seconds)
    for name in annotated:  # one structure's masks at a time: a scan has many
        ours, theirs = own(found, structure=name), mask(truth, structure=name)
        case.dice[name] = dice_of(ours, truth=theirs)
        if nsd_tolerance:
            case.nsd[name] = _nsd(ours, truth=theirs, spacing=grid.geometry.spacing, tolerance=nsd_tolerance)
    if picture is not None:
        z = fullest_slice(np.where(truth == store.table.ignored, 0, truth))
        drawn = overlay(
            image[0, z],
            truth=[mask(truth[z], structure=name) for name in annotated],
            found=[own(found[z], structure=name) for name in annotated],
            spacing=grid.geometry.spacing,
            window=WINDOW_HU if are_ct(store.channels)[0] else _window(image[0, z]),
        )
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(drawn)
    return case


def _window(image: NDArray) -> tuple[float, float]:
    """Black and white of a slice whose values have no unit."""
    low, high = np.percentile(image, (1, 99)).tolist()
    return low, max(high, low + 1e-6)


def dice_of(found: NDArray[np.bool_], *, truth: NDArray[np.bool_]) -> float:
    """Of two masks; 1 where both are empty."""
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0


def _nsd(found: np.ndarray, *, truth: np.ndarray, spacing: Spacing, tolerance: float) -> float:
    """As by the profile `plain`: agreeing that a structure is absent counts as right."""
    nsd = surfaces(found, reference=truth, spacing=spacing).normalised_dice(tolerance)
    return 1.0 if math.isnan(nsd) else nsd
