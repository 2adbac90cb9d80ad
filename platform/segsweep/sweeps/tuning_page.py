"""What a sweep leaves for people to look at: sweep.html, a page on its own, and sweep.json with all that it shows."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from segsweep.data import storage
from segsweep.data.manifest import write_json
from segsweep.evaluation.sweep_page import render
from segsweep.sweeps.folds import fold_folders
from segsweep.sweeps.following import failure
from segsweep.sweeps.record import epochs_of
from segsweep.sweeps.tuning_objectives import DIRECTIONS, front
from segsweep.sweeps.tuning_study import (
    FAILED,
    OUT_OF_MEMORY,
    SweptTrial,
    ended_trials,
    failed,
    objectives_of,
    own_trials,
)

PAGE, FIGURES = "sweep.html", "sweep.json"
# Fewer trials say nothing of what matters.
LEAST_FOR_IMPORTANCE = 8
# Of a curve: more would only make the page larger.
MOST_POINTS = 200
CURVE = "patch_dice_smoothed"


def write(
    study: Any, *, sweep: Path, title: str, folds: Sequence[int], comparison: Mapping[str, Any] | None = None
) -> Path:
    """Write sweep.json and sweep.html into the sweep's folder; returns the page. `comparison` is what its comparison.json holds."""
    document = {**document_of(study, sweep=sweep, folds=folds), "title": title, "comparison": comparison}
    write_json(sweep / FIGURES, document)
    page = sweep / PAGE
    storage.write_bytes(page, render(document).encode())
    return page


def document_of(study: Any, *, sweep: Path, folds: Sequence[int]) -> dict[str, Any]:
    """All that the page shows, as JSON-able values; trials best first."""
    objectives = objectives_of(study)
    trials = ended_trials(study, sweep=sweep)
    known = {frozen.number: frozen for frozen in own_trials(study)}
    drawn = [known[int(trial.name.rpartition("-")[2])] for trial in trials]
    return {
        "objectives": list(objectives),
        "trials": [_trial(trial, drawn=frozen, folds=folds) for trial, frozen in zip(trials, drawn, strict=True)],
        "axes": _axes(drawn),
        "importance": importance(study),
        "costs": _costs(trials, score=objectives[0]),
    }


def importance(study: Any) -> dict[str, Any]:
    """Share of each parameter in the variance of the first objective (fANOVA: Hutter et al., ICML 2014), and a note on what it is of.

    No shares where too few trials have a score, where none differs, and for parameters that only some of the trials draw.
    """
    objective = objectives_of(study)[0]
    scored = [trial for trial in own_trials(study) if trial.state == TrialState.COMPLETE and not failed(trial)]
    if len(scored) < LEAST_FOR_IMPORTANCE:
        return {
            "shares": {},
            "note": f"Of {len(scored)} trials with a score nothing can be said; expected {LEAST_FOR_IMPORTANCE} or more.",
        }
    if len({trial.values[0] for trial in scored}) == 1:
        return {"shares": {}, "note": f"All trials have one {objective}: no parameter matters."}
    # Without trials that ran out of memory: the worst value that the study knows of them is not theirs.
    measured = optuna.create_study(direction=DIRECTIONS[objective])
    measured.add_trials(
        optuna.trial.create_trial(value=trial.values[0], params=trial.params, distributions=trial.distributions)
        for trial in scored
    )
    # Optuna's `get_param_importances` makes their sum 1.
    shares = FanovaImportanceEvaluator(seed=0).evaluate(measured)
    note = (
        f"Share of the variance of {objective} that a parameter explains alone (fANOVA), over {len(scored)} trials with a score; the rest "
        "is what parameters do together, and chance. Only parameters that all of them draw. "
        "A search that has found good values tries few others there, so shares are of its own trials."
    )
    return {"shares": shares, "note": note if shares else "No parameter was drawn by all trials."}


def _trial(trial: SweptTrial, *, drawn: FrozenTrial, folds: Sequence[int]) -> dict[str, Any]:
    place = fold_folders(trial.folder, folds=folds)[folds[0]]
    return {
        "name": trial.name,
        "state": trial.state.replace("_", " "),
        "reason": failure(trial.folder) if trial.state in (FAILED, OUT_OF_MEMORY) else "",
        "epochs": trial.epochs,
        "values": dict(trial.values),
        "params": dict(drawn.params),
        "config": dict(trial.config),
        "curve": _thinned(
            [[epoch["epoch"], epoch[CURVE]] for epoch in epochs_of(place) if math.isfinite(epoch.get(CURVE, math.nan))]
        ),
    }


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """Evenly chosen ones, the last among them."""
    step = -(-len(points) // MOST_POINTS) or 1
    return points[::-1][::step][::-1]


def _axes(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """A parameter a line, in the order in which trials drew them, with the ends of what was drawn."""
    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        distributions = {**trial.distributions, **distributions}
    axes = []
    for name, distribution in distributions.items():
        values = [trial.params[name] for trial in trials if name in trial.params]
        choices, low, high = [], 0.0, 0.0
        if isinstance(distribution, CategoricalDistribution):
            choices = [str(choice) for choice in distribution.choices if choice in values]
        else:
            low, high = float(min(values)), float(max(values))
        axes.append(
            {"name": name, "choices": choices, "low": low, "high": high, "log": getattr(distribution, "log", False)}
        )
    return axes


def _costs(trials: Sequence[SweptTrial], *, score: str) -> list[dict[str, Any]]:
    """What scores cost, by seconds and by memory: the trials that none other beats in both."""
    costs = []
    for name in (name for name, direction in DIRECTIONS.items() if direction == "minimize"):
        known = [trial for trial in trials if name in trial.values and score in trial.values]
        if len(known) > 1:
            best = front([trial.values for trial in known], objectives=(score, name))
            costs.append({"name": name, "front": [known[index].name for index in best]})
    return costs
