"""A sweep: Optuna proposes, Ray Tune runs, MLflow remembers, the best are registered. Running it again goes on where it ended."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
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
from segsweep.errors import RecipeError, SegsweepError, StoreError, unknown
from segsweep.models.catalogue import Registered
from segsweep.models.outbox import Outbox
from segsweep.models.tracking import KIND_TAG, NOTE_TAG, SWEEP_TAG, Status, Tracker
from segsweep.run import Fold, Run
from segsweep.sweeps.cluster import connect, memory_per_worker, most_concurrent, share
from segsweep.sweeps.comparison import Comparison, comparison_of, config_of
from segsweep.sweeps.following import ERROR, Follow, Report, failure, silent
from segsweep.sweeps.initial import INITIAL, demand_fitting, pin
from segsweep.sweeps.lineage import lineage_of
from segsweep.sweeps.preparing import Prepared, demand_memory, needed_memory, prepare
from segsweep.sweeps.stopping import RULES, demand_pairs, make_scheduler
from segsweep.sweeps.training import as_trainable, changed
from segsweep.sweeps.tuning_comparison import FIGURES, PAGE, Rows
from segsweep.sweeps.tuning_comparison import report as compare
from segsweep.sweeps.tuning_models import register_best, sweep_note
from segsweep.sweeps.tuning_objectives import DICE, parse_objectives
from segsweep.sweeps.tuning_sampling import SAMPLERS, FixedTrial, queued
from segsweep.sweeps.tuning_start import Start, search_start
from segsweep.sweeps.tuning_study import (
    FAILED,
    OBJECTIVE,
    OUT_OF_MEMORY,
    StudySearch,
    SweptTrial,
    ended_trials,
    has_unfinished,
    learning_curves,
    open_study,
    trials_left,
)  # fmt: skip
from segsweep.workspace import Workspace, current_workspace


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How a sweep runs. `concurrent` 0 means as many trials at once as fit; `register` is how many of the best trials become versions
    of the registered model.

    `sampler` proposes (tpe, gp, random, grid, nsga2) for what `objective` names, and knows the finished trials of the sweeps in `warm`;
    both may be several names with commas. `stop` is the rule by which bad trials end early (asha, hyperband, paired, none), `grace`
    the epochs before one may: with 0 only `paired` ever stops any.

    A published comparison has one trial a row, whatever `trials` is. `scale` below 1 shrinks its epochs and patches, `pretrained` is the
    model that its pre-trained rows start from.
    """

    name: str = ""
    trials: int = 20
    concurrent: int = 0
    workers: int = 1
    fold: Fold = 0
    seed: int = 0
    grace: int = 0
    register: int = 3
    sampler: str = "tpe"
    objective: str = DICE
    warm: str = ""
    stop: str = "asha"
    scale: float = 1.0
    pretrained: str = ""

    def __post_init__(self) -> None:
        for key, least in (("trials", 1), ("concurrent", 0), ("workers", 1), ("grace", 0), ("register", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)} cannot be used: expected at least {least}")
        if not 0.0 < self.scale <= 1.0:
            raise ValueError(f"scale={self.scale} cannot be used: expected a share above 0, at most 1")
        for key, known in (("sampler", SAMPLERS), ("stop", RULES)):
            if getattr(self, key) not in known:
                raise ValueError(unknown(getattr(self, key), kind=f"values of {key}", known=known))
        parse_objectives(self.objective)
        if self.stop == "hyperband" and not self.grace:
            raise ValueError(
                "stop=hyperband cannot be used with grace=0: expected at least one epoch before the first verdict"
            )

    @property
    def earlier(self) -> tuple[str, ...]:
        """Names of the sweeps in `warm`."""
        return tuple(self.warm.split(",")) if self.warm else ()


@dataclass(frozen=True, kw_only=True)
class Swept:
    """A sweep's trials, best first, and the registered versions of the best (none when the user interrupted it).

    `page` is the report of a published comparison.
    """

    name: str
    trials: tuple[SweptTrial, ...]
    registered: tuple[Registered, ...]
    interrupted: bool
    page: Path | None = None


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
    chosen = dataclasses.replace(chosen, pretrained=pin({INITIAL: chosen.pretrained}, workspace=place)[INITIAL])
    base = base_run(space, store=store, options=chosen, params=fixed)
    base = dataclasses.replace(base, params=pin(base.params, workspace=place))
    prepared = prepare(changed(base, config={**first_config(space, store=store, options=chosen), **base.params}))
    opened = prepared.store
    name = chosen.name or f"{space}-{opened.dataset}"
    if name in chosen.earlier:
        raise RecipeError(f"warm={chosen.warm}: {name!r} is this sweep itself; expected earlier ones")
    start = _start(recipe, options=chosen, prepared=prepared, fixed=fixed, workspace=place, report=report)
    connect()
    least = share(workers=chosen.workers, concurrent=chosen.concurrent or 1)
    settings = {**_settings(space, base=base, store=opened, options=chosen), "fixed": fixed}
    study = open_study(place.studies_uri, name=name, settings=settings, seed=chosen.seed, sampler=chosen.sampler)
    sweep = place.sweeps / name
    rows = _rows(comparison_of(recipe), options=chosen, study=study, sweep=sweep)
    # Rows differ in the memory that they need, and without GPUs they would share it.
    left = 1 if rows and not least.gpus else trials_left(study, trials=chosen.trials)
    concurrent = chosen.concurrent or _most_at_once(prepared, left=left)
    resources = share(workers=chosen.workers, concurrent=concurrent)
    memory = memory_per_worker(workers=chosen.workers * concurrent)
    suggest = partial(
        _suggest, recipe=rows or recipe, base=base, fixed=fixed, plan=opened.plan, memory=memory, workspace=place
    )
    tracker = Tracker(place, experiment=opened.dataset)
    outbox = Outbox(tracker, name=name, say=partial(report, "MLflow", 0, 0))
    parent = {SWEEP_TAG: name, KIND_TAG: "sweep"}
    outbox.begin(parent, name=name, params={**base.to_json(), "data": opened.digest, "cases": len(opened.cases)})
    lineage = lineage_of(opened, fold=base.fold, command=f"segsweep tune {space}")
    lineage.tell(outbox, run=parent)
    follow = Follow(outbox, parent=parent, sweep=name, report=report, lineage=lineage)
    status: Status = "KILLED"
    ended: tuple[SweptTrial, ...] = ()
    try:
        for trials in _queue(rows=rows, start=start, study=study, trials=chosen.trials, report=report):
            ask = start.ask if start else queued
            search = StudySearch(study, suggest_config=suggest, sweep=sweep, trials=trials, report=report, ask=ask)
            if search.remaining:
                trainable = as_trainable(base, resources=resources)
                rule = make_scheduler(chosen.stop, grace=chosen.grace, curves=learning_curves(study))
                _run_trials(trainable, search=search, follow=follow, scheduler=rule, concurrent=concurrent, sweep=sweep)
            ended = ended_trials(study, sweep=sweep)
            if search.remaining > 0 or has_unfinished(study):
                return Swept(name=name, trials=ended, registered=(), interrupted=True)
        outbox.flush()
        status = "FAILED"
        _demand_any(ended, name=name)
        registered = register_best(ended, count=chosen.register, trainable=base.trainable, follow=follow, store=opened)
        outbox.tag(parent, {NOTE_TAG: sweep_note(ended, space=space, registered=registered)})
        page = None
        if rows:
            title = f"{space} on {opened.dataset}"
            page = compare(rows, title=title, base=base, store=opened, shared=fixed, resources=resources)
            for file in (PAGE, FIGURES):
                outbox.file(parent, (sweep / file).read_text(), path=file)
        status = "FINISHED"
        return Swept(name=name, trials=ended, registered=registered, interrupted=False, page=page)
    finally:
        outbox.finish(parent, status=status)
        outbox.close()


def first_run(space: str, *, store: str, options: SweepOptions, params: Mapping[str, Any]) -> Run:
    """What a sweep is checked by before it starts: what its trials share, with the first row of a published comparison.

    Raises RecipeError or StoreError like `base_run`, and when no row can be trained without a pre-trained model.
    """
    base = base_run(space, store=store, options=options, params=params)
    return changed(base, config={**first_config(space, store=store, options=options), **base.params})


def first_config(space: str, *, store: str, options: SweepOptions) -> dict[str, Any]:
    """Trainable and parameters of the first row that can be trained; nothing for a space to search. Raises RecipeError."""
    comparison = comparison_of(recipes.load("search_spaces", name=space))
    if comparison is None:
        if options.scale != 1.0 or options.pretrained:
            raise RecipeError(f"{space} is no published comparison; expected scale=… and pretrained=… only with those")
        return {}
    if options.sampler != "tpe" or options.objective != DICE or options.warm:
        raise RecipeError(
            f"{space} is a published comparison, whose rows are the trials; expected no sampler=…, objective=… or warm=…"
        )
    waves = comparison.waves(pretrained=bool(options.pretrained))
    if not waves:
        raise RecipeError(f"every row of {space} starts from a pre-trained model; give pretrained=models:/NAME/1")
    row = waves[0][0]
    config = config_of(row, plan=open_stores(store).plan, scale=options.scale)
    return {**config, **({INITIAL: options.pretrained} if row.pretrained else {})}


def base_run(space: str, *, store: str, options: SweepOptions, params: Mapping[str, Any]) -> Run:
    """What all trials share. Raises RecipeError or StoreError when there is no such space or store, or nothing to compare trials by."""
    recipe, opened = recipes.load("search_spaces", name=space), open_stores(store)
    comparison = comparison_of(recipe)
    own = dict(params)
    first = next(row.trainable for row in comparison.rows if not row.members) if comparison else recipe.TRAINABLE
    run = Run(
        trainable=own.pop("trainable", first),
        store=opened.uri,
        fold=options.fold,
        seed=options.seed,
        workers=options.workers,
        params={**getattr(recipe, "PARAMS", {}), **own},
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
    recipe: Any,
    base: Run,
    fixed: Mapping[str, Any],
    plan: Plan,
    memory: int,
    workspace: Workspace,
) -> dict[str, Any]:
    """Trainable and parameters of a trial; what the user fixed goes before what the space draws.

    Raises SegsweepError when they cannot be trained.
    """
    own = {key: value for key, value in fixed.items() if key != "preset"}
    config = pin({**recipe.space(FixedTrial(trial, fixed=own), plan), **own}, workspace=workspace)
    prepared = prepare(changed(base, config=config))
    demand_memory(prepared, available=memory)
    demand_fitting(prepared)
    return config


def _start(
    recipe: ModuleType, *, options: SweepOptions, prepared: Prepared, fixed: Mapping[str, Any], workspace: Workspace,
    report: Report,
) -> Start | None:  # fmt: skip
    """What is asked of the search, checked; None for a published comparison, which searches nothing."""
    if options.stop == "paired":
        cases = len(prepared.store.validation(options.fold))
        params = prepared.params
        words = demand_pairs(every=params.scan_validation_every, epochs=params.epochs, cases=cases)
        if words:
            report("stop=paired", 0, 0, words)
    if comparison_of(recipe):
        return None
    return search_start(
        recipe, sampler=options.sampler, objective=options.objective, warm=options.earlier, storage=workspace.studies_uri,
        prepared=prepared, fixed=fixed,
    )  # fmt: skip


def _run_trials(
    trainable: Any, *, search: StudySearch, follow: Follow, scheduler: Any, concurrent: int, sweep: Path
) -> None:
    """Run all that the search hands out. Afterwards only the trials' own folders are left: Tune's records are not needed."""
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
    if all(trial.state in (FAILED, OUT_OF_MEMORY) for trial in trials):
        last = max(trials, key=lambda trial: trial.name)
        raise SegsweepError(
            f"sweep {name!r}: all {len(trials)} trials failed; the last: {failure(last.folder)}; "
            f"see {last.folder / ERROR}, then give the same command again"
        )


def _settings(space: str, *, base: Run, store: Store, options: SweepOptions) -> dict[str, Any]:
    """What must stay the same for trials to be comparable."""
    shared = {key: value for key, value in base.to_json().items() if key != "store"}
    # Sweeps of Dice alone are the rule, and older ones name no objective.
    objective = {} if options.objective == DICE else {OBJECTIVE: options.objective}
    return {"space": space, "data": store.digest, "scale": options.scale, **objective, **shared}


def _rows(comparison: Comparison | None, *, options: SweepOptions, study: Any, sweep: Path) -> Rows | None:
    if comparison is None:
        return None
    return Rows(comparison=comparison, scale=options.scale, pretrained=options.pretrained, study=study, sweep=sweep)


def _queue(*, rows: Rows | None, start: Start | None, study: Any, trials: int, report: Report) -> Iterator[int]:
    """How many trials there shall be, each time that some were put before all others: the space's first ones, or a wave of rows."""
    if rows:
        yield from map(rows.enqueue, rows.waves())
    elif start:
        start.fill(study, report=report)
        yield start.most(study, trials=trials)
