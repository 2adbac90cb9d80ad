"""Dice of a model on whole scans of a store, each at its own grid."""

import numpy as np

from segsweep.data.store import Store
from segsweep.inference.prediction import Predictor

# Case -> structure -> Dice.
Scores = dict[str, dict[str, float]]


def scan_dice(predictor: Predictor, *, store: Store, case_id: str) -> dict[str, float]:
    """Dice of every annotated structure on a whole scan at its own grid, without ignored voxels."""
    grid, annotated = store.grid(case_id), store.cases[case_id].annotated
    truth = grid.read_label()
    found = predictor.segment(grid.read_image(), geometry=grid.geometry, structures=annotated)
    found[truth == store.table.ignored] = 0
    mask, own = store.table.mask, predictor.table_task.table.mask
    return {name: _dice(own(found, structure=name), truth=mask(truth, structure=name)) for name in annotated}


def _dice(found: np.ndarray, *, truth: np.ndarray) -> float:
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0
