"""A sweep: Optuna proposes, Ray Tune runs, MLflow remembers, the best are registered. Running it again goes on where it ended."""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import ray.tune

from segsweep import recipes
from segsweep.data.joint import open_stores
from segsweep.data.planning import Plan
from segsweep.data.store import Store
from segsweep.errors import ModelError, RecipeError, SegsweepError, StoreError
from segsweep.models.catalogue import Registered, set_alias, versions
from segsweep.models.registry import register
from segsweep.models.tracking import DATA_TAG, DICE_TAG, KIND_TAG, SWEEP_TAG, TRIAL_TAG, Status, Tracker
from segsweep.run import Fold, Run
from segsweep.sweeps.cluster import connect, memory_per_worker, most_concurrent, share
from segsweep.sweeps.following import ERROR, Follow, Report, failure, silent
from segsweep.sweeps.initial import demand_fitting, pin
from segsweep.sweeps.stopping import CooperativeASHA
from segsweep.sweeps.training import (
    RESULT,
    Prepared,
    as_trainable,
    demand_memory,
    needed_memory,
    prepare,
    read_result,
)  # fmt: skip
from segsweep.sweeps.tuning_study import (
    CONFIG,
    FixedTrial,
    StudySearch,
    ended_trials,
    has_unfinished,
    open_study,
    trial_folder,
    trials_left,
)  # fmt: skip
from segsweep.workspace import Workspace, current_workspace

# ASHA's upper rung: trials end by their own number of epochs.
MOST_EPOCHS = 10**6
# Alias of the best model of a name.
CANDIDATE = "candidate"


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How a sweep runs. `concurrent` 0 means as many trials at once as fit; `grace` is the epochs before a trial may be stopped
    early (0 = never); `register` is how many of the best trials become versions of the registered model."""

    name: str = ""
    trials: int = 20
    concurrent: int = 0
    workers: int = 1
    fold: Fold = 0
    seed: int = 0
    grace: int = 0
    register: int = 3

    def __post_init__(self) -> None:
        for key, least in (("trials", 1), ("concurrent", 0), ("workers", 1), ("grace", 0), ("register", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)} cannot be used: expected at least {least}")


@dataclass(frozen=True, kw_only=True)
class SweptTrial:
    """One trial as a sweep ends: `dice` is None when it was stopped early or failed."""

    name: str
    state: str
    dice: float | None
    epochs: int
    config: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Swept:
    """A sweep's trials, best first, and the registered versions of the best (none when the user interrupted it)."""

    name: str
    trials: tuple[SweptTrial, ...]
    registered: tuple[Registered, ...]
    interrupted: bool


def tune(
    space: str,
    *,
    store: str,
    options: SweepOptions | None = None,
    params: Mapping[str, Any] | None = None,
    workspace: Workspace | None = None,
    report: Report = silent,
) -> Swept:
    """Run or resume a sweep of a search-space recipe on a store.

    `params` hold for every trial, also where the space would choose another value. Raises RecipeError, StoreError, ResourceError or
    ModelError before anything starts.
    """
    chosen, place = options or SweepOptions(), workspace or current_workspace()
    recipe = recipes.load("search_spaces", name=space)
    fixed = pin(params or {}, workspace=place)
    base = base_run(space, store=store, options=chosen, params=fixed)
    base = dataclasses.replace(base, params=pin(base.params, workspace=place))
    prepared = prepare(base)
    opened = prepared.store
    connect()
    share(workers=chosen.workers, concurrent=chosen.concurrent or 1)
    name = chosen.name or f"{space}-{opened.dataset}"
    settings = {**_settings(space, base=base, store=opened), "fixed": fixed}
    study = open_study(place.studies_uri, name=name, settings=settings, seed=chosen.seed)
    _enqueue_first(study, recipe=recipe, plan=opened.plan)
    concurrent = chosen.concurrent or _most_at_once(prepared, left=trials_left(study, trials=chosen.trials))
    resources = share(workers=chosen.workers, concurrent=concurrent)
    memory = memory_per_worker(workers=chosen.workers * concurrent)
    suggest = partial(_suggest, recipe=recipe, base=base, fixed=fixed, plan=opened.plan, memory=memory, workspace=place)
    sweep = place.sweeps / name
    search = StudySearch(study, suggest_config=suggest, sweep=sweep, trials=chosen.trials, report=report)
    tracker = Tracker(place, experiment=opened.dataset)
    parent = _parent_run(tracker, name=name, base=base, store=opened)
    follow = Follow(tracker, parent=parent, sweep=name, report=report)
    status: Status = "KILLED"
    try:
        if search.remaining:
            trainable = as_trainable(base, resources=resources)
            _run_trials(trainable, search=search, follow=follow, grace=chosen.grace, concurrent=concurrent, sweep=sweep)
        trials = tuple(_swept(trial, sweep=sweep) for trial in ended_trials(study))
        if search.remaining > 0 or has_unfinished(study):
            return Swept(name=name, trials=trials, registered=(), interrupted=True)
        status = "FAILED"
        _demand_any(trials, name=name)
        registered = _register_best(trials, count=chosen.register, base=base, follow=follow, store=opened)
        status = "FINISHED"
        return Swept(name=name, trials=trials, registered=registered, interrupted=False)
    finally:
        tracker.finish(parent, status=status)


def base_run(space: str, *, store: str, options: SweepOptions, params: Mapping[str, Any]) -> Run:
    """What all trials share. Raises RecipeError or StoreError when there is no such space or store, or nothing to compare trials by."""
    recipe, opened = recipes.load("search_spaces", name=space), open_stores(store)
    run = Run(
        trainable=recipe.TRAINABLE,
        store=opened.uri,
        fold=options.fold,
        seed=options.seed,
        workers=options.workers,
        params={**getattr(recipe, "PARAMS", {}), **params},
    )
    if run.fold == "all":
        raise RecipeError("fold='all' leaves a sweep no cases to compare its trials by; expected a fold's number")
    if not opened.validation(run.fold):
        raise StoreError(
            f"{opened.uri}: fold {run.fold} holds out no annotated case to compare trials by; "
            "choose another fold, or convert more annotated cases"
        )
    return run


def _most_at_once(prepared: Prepared, *, left: int) -> int:
    """As many runs as fit at once by cores or GPUs and by memory, and no more than are left to run."""
    workers, needed = prepared.run.workers, needed_memory(prepared)
    counts = range(min(most_concurrent(workers=workers), left), 1, -1)
    return next((count for count in counts if needed <= memory_per_worker(workers=workers * count)), 1)


def _suggest(
    trial: Any,
    *,
    recipe: ModuleType,
    base: Run,
    fixed: Mapping[str, Any],
    plan: Plan,
    memory: int,
    workspace: Workspace,
) -> dict[str, Any]:
    """The parameters of a trial; what the user fixed goes before what the space draws. Raises SegsweepError when they cannot be trained."""
    own = {key: value for key, value in fixed.items() if key != "preset"}
    config = pin({**recipe.space(FixedTrial(trial, fixed=own), plan), **own}, workspace=workspace)
    prepared = prepare(dataclasses.replace(base, params={**base.params, **config}))
    demand_memory(prepared, available=memory)
    demand_fitting(prepared)
    return config


def _run_trials(
    trainable: Any, *, search: StudySearch, follow: Follow, grace: int, concurrent: int, sweep: Path
) -> None:
    """Run all that the search hands out. Afterwards only the trials' own folders are left: Tune's records are not needed."""
    scheduler = CooperativeASHA(grace_epochs=grace, most_epochs=MOST_EPOCHS) if grace else None
    tuner = ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=search.remaining,
            max_concurrent_trials=concurrent,
        ),
        run_config=ray.tune.RunConfig(name="tune", storage_path=str(sweep), callbacks=[follow], verbose=0),
    )
    try:
        tuner.fit()
    finally:
        follow.close()
        shutil.rmtree(sweep / "tune", ignore_errors=True)


def _demand_any(trials: tuple[SweptTrial, ...], *, name: str) -> None:
    """Raise SegsweepError when no trial ended well."""
    if all(trial.state == "failed" for trial in trials):
        last = max(trials, key=lambda trial: trial.name)
        raise SegsweepError(
            f"sweep {name!r}: all {len(trials)} trials failed; the last: {failure(last.folder)}; "
            f"see {last.folder / ERROR}, then give the same command again"
        )


def _settings(space: str, *, base: Run, store: Store) -> dict[str, Any]:
    """What must stay the same for trials to be comparable."""
    return {"space": space, "data": store.digest, **{k: v for k, v in base.to_json().items() if k != "store"}}


def _enqueue_first(study: Any, *, recipe: ModuleType, plan: Plan) -> None:
    """Put the recipe's own first trials before all others, once."""
    if not study.trials and hasattr(recipe, "first"):
        for params in recipe.first(plan):
            study.enqueue_trial(params)


def _parent_run(tracker: Tracker, *, name: str, base: Run, store: Store) -> str:
    tags = {SWEEP_TAG: name, KIND_TAG: "sweep"}
    found = tracker.find(tags=tags)
    if found is not None:
        tracker.resume(found)
        return found
    params = {**base.to_json(), "data": store.digest, "cases": len(store.cases)}
    return tracker.start(name, params=params, tags=tags)


def _swept(trial: Any, *, sweep: Path) -> SweptTrial:
    folder = trial_folder(sweep, number=trial.number)
    result = read_result(folder) if (folder / RESULT).is_file() else {}
    return SweptTrial(
        name=folder.name,
        state=str(result.get("status", "failed")),
        dice=trial.value,
        epochs=int(result.get("epoch", 0)),
        config=trial.user_attrs.get(CONFIG, {}),
        folder=folder,
    )


def _register_best(
    trials: tuple[SweptTrial, ...], *, count: int, base: Run, follow: Follow, store: Store
) -> tuple[Registered, ...]:
    """Register the best finished trials; the very best gets the alias `candidate`, unless that one is better."""
    registered = []
    for trial in [trial for trial in trials if trial.dice is not None][:count]:
        run_id = follow.run_of(trial.name)
        if run_id is None:
            raise ModelError(
                f"{trial.name}: its MLflow run is gone; expected it under the sweep's; restore the tracking database"
            )
        tags = {
            SWEEP_TAG: follow.sweep,
            TRIAL_TAG: trial.name,
            DICE_TAG: f"{trial.dice:.4f}",
            DATA_TAG: store.digest,
        }
        name = f"{store.dataset}-{base.trainable}"
        registered.append(register(trial.folder / "model", name=name, tracker=follow.tracker, run_id=run_id, tags=tags))
    if registered:
        _promote(registered[0], data=store.digest, workspace=follow.tracker.workspace)
    return tuple(registered)


def _promote(best: Registered, *, data: str, workspace: Workspace) -> None:
    """Move the alias `candidate` to a version, unless the present one did better on the same data (its Dice on other data says nothing)."""
    known = {version.version: version for version in versions(best.name, workspace=workspace)}
    rivals = (
        version for version in known.values() if CANDIDATE in version.aliases and version.tags.get(DATA_TAG) == data
    )
    if all((rival.dice or 0.0) <= (known[best.version].dice or 0.0) for rival in rivals):
        set_alias(best.name, alias=CANDIDATE, version=best.version, workspace=workspace)
