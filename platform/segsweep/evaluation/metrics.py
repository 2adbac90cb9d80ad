"""Scores of one structure in one case, by a rule of whoever defines the metric."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Spacing
from segsweep.evaluation.borders import symmetric_mm
from segsweep.evaluation.surface import bounding_box, joint_box, surfaces, with_margin


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one structure is scored.

    `tolerance` (mm) is that of the normalised surface Dice; `both_empty` the value of Dice, IoU and NSD when neither mask has a
    voxel (NaN leaves the case out of means). `slices` "reference" keeps the slices from the reference's first up to, not including,
    its last. A Dice below `dice_floor` makes the NSD 0. `digits` rounds Dice and NSD.
    """

    tolerance: float
    both_empty: float = 1.0
    slices: Literal["all", "reference"] = "all"
    dice_floor: float = 0.0
    digits: int | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of scores.csv, and `assd_mm`, which is in the summary only (see `borders`; the other distances are between surface elements).

    Distances are NaN where a mask is empty; volumes are those of the whole masks.
    """

    case: str
    structure: str
    dice: float
    iou: float
    nsd: float
    tolerance_mm: float
    hd95_mm: float = math.nan
    hd100_mm: float = math.nan
    asd_reference_to_prediction_mm: float = math.nan
    asd_prediction_to_reference_mm: float = math.nan
    volume_reference_ml: float
    volume_prediction_ml: float
    assd_mm: float = math.nan

    @property
    def volume_error_percent(self) -> float:
        """Absolute difference of volumes in % of the reference's (CHAOS's RAVD); NaN where the reference is empty."""
        if not self.volume_reference_ml:
            return math.nan
        return abs(self.volume_prediction_ml - self.volume_reference_ml) / self.volume_reference_ml * 100


COLUMNS = tuple(field.name for field in dataclasses.fields(Score) if field.name != "assd_mm")


def score(
    prediction: NDArray[np.bool_],
    *,
    reference: NDArray[np.bool_],
    spacing: Spacing,
    case: str,
    structure: str,
    rule: Rule,
) -> Score:
    """Scores of a predicted mask (z, y, x) against the reference on the same grid, spacing in mm.

    Axes are in the order of the reference's file where the rule counts slices, which are those of axis 0.
    """
    box = joint_box(prediction, other=reference)
    if box is not None:
        box = with_margin(box, shape=reference.shape)
        prediction, reference = prediction[box], reference[box]
    result = empty_score(prediction, reference=reference, spacing=spacing, case=case, structure=structure, rule=rule)
    if not (result.volume_reference_ml and result.volume_prediction_ml):
        return result
    if rule.slices == "reference":
        kept = _reference_slices(reference)
        prediction, reference = prediction[kept], reference[kept]
    shared = overlap(prediction, reference=reference)
    found = surfaces(prediction, reference=reference, spacing=spacing)
    nsd = found.normalised_dice(rule.tolerance) if shared.dice >= rule.dice_floor else 0.0
    return dataclasses.replace(
        result,
        dice=_rounded(shared.dice, rule=rule),
        iou=shared.iou,
        nsd=_rounded(nsd, rule=rule),
        hd95_mm=_finite(found.hausdorff(95)),
        hd100_mm=_finite(found.hausdorff(100)),
        asd_reference_to_prediction_mm=_finite(found.reference.mean),
        asd_prediction_to_reference_mm=_finite(found.prediction.mean),
        assd_mm=symmetric_mm(prediction, reference=reference, spacing=spacing),
    )


def empty_score(
    prediction: NDArray[np.bool_],
    *,
    reference: NDArray[np.bool_],
    spacing: Spacing,
    case: str,
    structure: str,
    rule: Rule,
) -> Score:
    """The score where nothing can be compared: `rule.both_empty` when both masks are empty, otherwise 0."""
    voxel_ml = math.prod(spacing) / 1000
    voxels = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    value = 0.0 if any(voxels) else rule.both_empty
    return Score(
        case=case,
        structure=structure,
        dice=value,
        iou=value,
        nsd=value,
        tolerance_mm=rule.tolerance,
        volume_reference_ml=voxels[0] * voxel_ml,
        volume_prediction_ml=voxels[1] * voxel_ml,
    )


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Shares of voxels that two masks have in common; NaN when both are empty."""

    dice: float
    iou: float


def overlap(prediction: NDArray[np.bool_], *, reference: NDArray[np.bool_]) -> Overlap:
    """Dice and IoU of two masks on one grid."""
    both = int(np.count_nonzero(prediction & reference))
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    if not total:
        return Overlap(dice=math.nan, iou=math.nan)
    return Overlap(dice=2 * both / total, iou=both / (total - both))


def _reference_slices(reference: NDArray[np.bool_]) -> slice:
    """The reference's slices without its last one; a structure of one slice keeps it (the printed rule leaves nothing)."""
    box = bounding_box(reference)
    if box is None:
        return slice(None)
    return slice(box[0].start, max(box[0].stop - 1, box[0].start + 1))


def _rounded(value: float, *, rule: Rule) -> float:
    return value if rule.digits is None else round(value, rule.digits)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan
