"""Dice, and where asked NSD, of a model on whole scans of a store, each at its own grid."""

import math
import time
from dataclasses import dataclass, field

import numpy as np

from segsweep.data.geometry import Spacing
from segsweep.data.store import Store
from segsweep.evaluation.surface import surfaces
from segsweep.inference.prediction import Predictor

# Case -> structure -> Dice (or NSD).
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Scores of a case's annotated structures, and the seconds that segmenting it took: not reading it, not scoring it."""

    dice: dict[str, float]
    seconds: float
    nsd: dict[str, float] = field(default_factory=dict)


def score_case(predictor: Predictor, *, store: Store, case_id: str, nsd_tolerance: float = 0.0) -> Case:
    """Scores of every annotated structure on a whole scan at its own grid, without ignored voxels.

    `nsd_tolerance` (mm) is that of the normalised surface Dice (Nikolov et al. 2018), which takes time: with 0 there is none.
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
        case.dice[name] = _dice(ours, truth=theirs)
        if nsd_tolerance:
            case.nsd[name] = _nsd(ours, truth=theirs, spacing=grid.geometry.spacing, tolerance=nsd_tolerance)
    return case


def _dice(found: np.ndarray, *, truth: np.ndarray) -> float:
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0


def _nsd(found: np.ndarray, *, truth: np.ndarray, spacing: Spacing, tolerance: float) -> float:
    """As by the profile `plain`: agreeing that a structure is absent counts as right."""
    nsd = surfaces(found, reference=truth, spacing=spacing).normalised_dice(tolerance)
    return 1.0 if math.isnan(nsd) else nsd
