"""The plain sweep around the store's plan: network, patch size, foreground oversampling, epochs and loss.

What does not fit is refused before it is trained: every patch is one that the network can halve, and needs no more memory than there is.
"""

from typing import Any

import optuna

from segsweep.data.geometry import Size
from segsweep.data.planning import Plan
from segsweep.data.topology import divisible, topology

TRAINABLE = "unet"

TRAINABLES = ("unet", "resenc_unet")
OVERSAMPLING = ("deterministic", "probabilistic")
EPOCHS = (500, 1000, 2000)
LOSSES = ("dice_ce", "dice_focal")
# By how much each axis (z, y, x) of the plan's patch is scaled.
SCALES = {
    "plan": (1.0, 1.0, 1.0),
    "smaller": (0.75, 0.75, 0.75),
    "larger": (1.25, 1.25, 1.25),
    "flatter": (0.5, 1.0, 1.0),
}


def space(trial: optuna.Trial, plan: Plan) -> dict[str, Any]:
    """Trainable and parameter overrides of one trial."""
    chosen = {
        "trainable": trial.suggest_categorical("trainable", TRAINABLES),
        "patch_size": patch_size(plan, trial.suggest_categorical("patch_size", tuple(SCALES))),
        "oversampling": trial.suggest_categorical("oversampling", OVERSAMPLING),
        "epochs": trial.suggest_categorical("epochs", EPOCHS),
        "loss": trial.suggest_categorical("loss", LOSSES),
    }
    # The deterministic rule rounds its share to whole patches of a batch: of two patches, 0.3 and 0.7 are one and the same training.
    if chosen["oversampling"] == "probabilistic":
        chosen["foreground"] = trial.suggest_float("foreground", 0.2, 0.8)
    return chosen


def first(plan: Plan) -> list[dict[str, Any]]:  # noqa: ARG001
    """Trial 0 is the plan's own run, trial 1 the same with a residual encoder."""
    own = {
        "trainable": "unet",
        "patch_size": "plan",
        "oversampling": "deterministic",
        "epochs": 1000,
        "loss": "dice_ce",
    }
    return [own, {**own, "trainable": "resenc_unet"}]


def patch_size(plan: Plan, scale: str) -> Size:
    """The plan's patch as it is, one that is smaller or larger along every axis, or one with fewer slices, as the network can halve it."""
    if scale == "plan":
        return plan.patch_size
    z, y, x = (max(8, round(size * factor)) for size, factor in zip(plan.patch_size, SCALES[scale], strict=True))
    return divisible((z, y, x), topology=topology((z, y, x), spacing=plan.spacing))
