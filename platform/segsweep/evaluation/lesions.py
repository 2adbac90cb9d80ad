"""How many separate lesions of a structure were found, missed and invented, and how well the found ones are outlined."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsweep.inference.postprocess import NEIGHBOURS_26


@dataclass(frozen=True, kw_only=True)
class LesionScore:
    """One row of lesions.csv.

    A lesion of the reference is `found` when it shares a voxel with the prediction, else `missed`; a predicted one that shares none with
    the reference is `invented`. `f1` is that of ISLES 2022 (Hernandez Petzsche et al. 2022): 2 found / (2 found + missed + invented).
    `dice` is that of BraTS 2023 (Saluja et al., "Lesion-wise performance metrics"): every lesion of the reference against all predicted
    ones that touch it, 0 for each missed and invented one, and their mean. BraTS joins lesions that lie close together and leaves
    small ones out, by numbers of voxels chosen for its scans; neither is done here.
    """

    case: str
    structure: str
    lesions_reference: int
    lesions_prediction: int
    found: int
    missed: int
    invented: int
    f1: float
    dice: float


LESION_COLUMNS = tuple(field.name for field in dataclasses.fields(LesionScore))


def lesion_score(
    prediction: NDArray[np.bool_], *, reference: NDArray[np.bool_], case: str, structure: str, both_empty: float = 1.0
) -> LesionScore:
    """Lesion-wise scores of a predicted mask on the reference's grid, any axis order; without any lesion `both_empty`."""
    drawn, num_drawn = _lesions(reference)
    predicted, num_predicted = _lesions(prediction)
    shared = np.zeros((num_drawn + 1, num_predicted + 1), dtype=np.int64)
    both = (drawn > 0) & (predicted > 0)
    np.add.at(shared, (drawn[both], predicted[both]), 1)
    sizes = np.bincount(drawn.reshape(-1), minlength=num_drawn + 1)[1:]
    predicted_sizes = np.bincount(predicted.reshape(-1), minlength=num_predicted + 1)[1:]
    shared = shared[1:, 1:]
    touching = shared > 0
    found, invented = int(touching.any(axis=1).sum()), int((~touching.any(axis=0)).sum())
    each = 2 * shared.sum(axis=1) / (sizes + touching @ predicted_sizes)
    counted = num_drawn + invented
    return LesionScore(
        case=case,
        structure=structure,
        lesions_reference=num_drawn,
        lesions_prediction=num_predicted,
        found=found,
        missed=num_drawn - found,
        invented=invented,
        f1=2 * found / (found + counted) if counted else both_empty,
        dice=float(each.sum()) / counted if counted else both_empty,
    )


def _lesions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """The number of its lesion at every voxel (0: none), and how many there are."""
    numbers = np.zeros(mask.shape, dtype=np.int32)
    count = ndimage.label(mask, structure=NEIGHBOURS_26, output=numbers)
    return numbers, int(count)  # type: ignore[arg-type]
