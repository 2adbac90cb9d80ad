"""The plan of a dataset: spacing, patch, batch, normalisation and head, derived from its scans by nnU-Net's rules."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from segsweep.data.geometry import Size, Spacing


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """One channel: clip to [low, high], subtract mean, divide by deviation (nnU-Net's CT rule, v2, preprocessing).

    `scheme` "z-score" ignores the numbers and uses each scan's own mean and deviation.
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
