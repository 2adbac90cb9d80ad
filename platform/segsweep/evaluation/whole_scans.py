"""Dice of a model on whole scans of a store, each at its own grid."""

import time
from dataclasses import dataclass

import numpy as np

from segsweep.data.store import Store
from segsweep.inference.prediction import Predictor

# Case -> structure -> Dice.
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Dice of a case's annotated structures, and the seconds that segmenting it took: not reading it, not scoring it."""

    dice: dict[str, float]
    seconds: float


def score_case(predictor: Predictor, *, store: Store, case_id: str) -> Case:
    """Dice of every annotated structure on a whole scan at its own grid, without ignored voxels."""
    grid, annotated = store.grid(case_id), store.cases[case_id].annotated
    truth, image = grid.read_label(), grid.read_image()
    begin = time.perf_counter()
    found = predictor.segment(image, geometry=grid.geometry, structures=annotated)
    seconds = time.perf_counter() - begin
    found[truth == store.table.ignored] = 0
    mask, own = store.table.mask, predictor.table_task.table.mask
    dice = {name: _dice(own(found, structure=name), truth=mask(truth, structure=name)) for name in annotated}
    return Case(dice=dice, seconds=seconds)


def _dice(found: np.ndarray, *, truth: np.ndarray) -> float:
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0
