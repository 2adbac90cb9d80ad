"""The sweep of `segsweep demo`: the same axes as `default`, small enough for two cores and a few minutes."""

from typing import Any

import optuna

from segsweep.data.planning import Plan

TRAINABLE = "unet"
PARAMS = {
    "preset": "small",
    "head": "sigmoid",
    "levels": 4,
    "batch_size": 2,
    "iterations": 25,
    "validation_iterations": 4,
    "learning_rate": 8e-3,
    "mirror": "x",
}

PATCHES = {"24x48x48": [24, 48, 48], "24x64x64": [24, 64, 64], "32x48x48": [32, 48, 48]}


def space(trial: optuna.Trial, plan: Plan) -> dict[str, Any]:  # noqa: ARG001
    """Parameter overrides of one trial."""
    return {
        "patch_size": PATCHES[trial.suggest_categorical("patch_size", tuple(PATCHES))],
        "foreground": trial.suggest_float("foreground", 0.33, 0.9),
        "epochs": trial.suggest_categorical("epochs", (7, 8, 9)),
        "loss": trial.suggest_categorical("loss", ("dice_ce", "dice_focal")),
    }


def first(plan: Plan) -> list[dict[str, Any]]:  # noqa: ARG001
    """Trial 0: a run that is known to learn."""
    return [{"patch_size": "32x48x48", "foreground": 0.67, "epochs": 9, "loss": "dice_ce"}]
