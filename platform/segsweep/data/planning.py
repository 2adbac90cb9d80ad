"""The plan of a dataset: spacing, patch, batch, normalisation and head, derived from its scans by nnU-Net's rules."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from segsweep.data.geometry import Size, Spacing
from segsweep.data.intake import MAX_VOXELS_AN_AXIS, SPACING_MM

# Values below are padding outside the scanner's field of view, not tissue (HU); they count as air before anything is resampled, and
# wherever a scan is trained on or predicted from.
AIR_HU = -1024


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """One channel: clip to [low, high], subtract mean, divide by deviation (nnU-Net's CT rule, v2, preprocessing).

    `scheme` "z-score" uses each scan's own mean and deviation instead, within [low, high] where low is below high.
    """

    scheme: Literal["ct", "z-score"]
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a dataset suggests for training; a run may choose otherwise.

    `spacing` is in mm and `patch_size` in voxels at that spacing, both (z, y, x); `median_shape` is the median scan at
    that spacing; `batch_size` is in patches; `normalisation` has one entry a channel.
    """

    spacing: Spacing
    patch_size: Size
    batch_size: int
    median_shape: Size
    normalisation: tuple[Normalisation, ...]
    head: Literal["softmax", "sigmoid"]

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary; `plan_from_json` takes it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def plan_from_json(values: Mapping[str, Any]) -> Plan:
    """The Plan that `to_json` wrote."""
    spacing, patch, median = values["spacing"], values["patch_size"], values["median_shape"]
    return Plan(
        spacing=(spacing[0], spacing[1], spacing[2]),
        patch_size=(patch[0], patch[1], patch[2]),
        batch_size=values["batch_size"],
        median_shape=(median[0], median[1], median[2]),
        normalisation=tuple(Normalisation(**channel) for channel in values["normalisation"]),
        head=values["head"],
    )


def demand_usable(plan: Plan, *, num_channels: int) -> None:
    """Raise ValueError for numbers that no training could use; people edit plans."""
    low, high = SPACING_MM
    if not all(low <= mm <= high for mm in plan.spacing):
        raise ValueError(f"spacing is {plan.spacing}, expected {low} to {high} mm")
    if not all(type(size) is int and 1 <= size <= MAX_VOXELS_AN_AXIS for size in (*plan.patch_size, plan.batch_size)):
        raise ValueError(
            f"patch_size is {plan.patch_size}, batch_size {plan.batch_size}; expected whole numbers from 1 to {MAX_VOXELS_AN_AXIS}"
        )
    if len(plan.normalisation) != num_channels:
        raise ValueError(f"normalisation has {len(plan.normalisation)} entries, expected {num_channels}, one a channel")
    for rule in plan.normalisation:
        numbers = (rule.low, rule.high, rule.mean, rule.deviation)
        if rule.scheme not in ("ct", "z-score") or not all(map(math.isfinite, numbers)) or rule.deviation <= 0:
            raise ValueError(f"normalisation is {rule}, expected 'ct' or 'z-score', finite numbers, deviation above 0")
    if plan.head not in ("softmax", "sigmoid"):
        raise ValueError(f"head is {plan.head!r}, expected 'softmax' or 'sigmoid'")
