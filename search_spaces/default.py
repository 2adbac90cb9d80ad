"""The plain sweep: patch size, foreground oversampling, epochs and loss of nnU-Net's U-Net, around the store's plan."""

from typing import Any

import optuna

from segsweep.data.planning import Plan

TRAINABLE = "unet"

OVERSAMPLING = ("deterministic", "probabilistic")
EPOCHS = (250, 500, 1000)
LOSSES = ("dice_ce", "dice_focal")
SCALES = ("plan", "smaller", "flatter")


def space(trial: optuna.Trial, plan: Plan) -> dict[str, Any]:
    """Parameter overrides of one trial."""
    return {
        "patch_size": patch_size(plan, trial.suggest_categorical("patch_size", SCALES)),
        "oversampling": trial.suggest_categorical("oversampling", OVERSAMPLING),
        "foreground": trial.suggest_float("foreground", 0.2, 0.8, step=0.1),
        "epochs": trial.suggest_categorical("epochs", EPOCHS),
        "loss": trial.suggest_categorical("loss", LOSSES),
    }


def first(plan: Plan) -> list[dict[str, Any]]:  # noqa: ARG001
    """Trial 0 is the plan's own run."""
    return [
        {"patch_size": "plan", "oversampling": "deterministic", "foreground": 0.4, "epochs": 1000, "loss": "dice_ce"}
    ]


def patch_size(plan: Plan, scale: str) -> list[int]:
    """The plan's patch, one that is smaller along every axis, or one with fewer slices; multiples of 16 voxels, at least 16."""
    factors = {"plan": (1, 1, 1), "smaller": (0.75, 0.75, 0.75), "flatter": (0.5, 1, 1)}[scale]
    return [max(16, round(size * factor / 16) * 16) for size, factor in zip(plan.patch_size, factors, strict=True)]
