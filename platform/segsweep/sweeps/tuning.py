"""A sweep: Optuna proposes, Ray Tune runs, MLflow remembers, the best are registered. Running it again goes on where it ended."""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import ray.tune

from segsweep import recipes
from segsweep.data.mirror import Mirror, shared
from segsweep.data.store import Store
from segsweep.errors import RecipeError, SegsweepError
from segsweep.models.catalogue import Registered
from segsweep.models.outbox import Outbox
from segsweep.models.tracking import KIND_TAG, NOTE_TAG, SWEEP_TAG, Status, Tracker
from segsweep.run import Run
from segsweep.sweeps import tuning_page
from segsweep.sweeps.alone import alone
from segsweep.sweeps.cluster import connect, memory_per_worker, most_concurrent, share
from segsweep.sweeps.comparison import Comparison, comparison_of
from segsweep.sweeps.following import ERROR, Follow, Report, failure, silent
from segsweep.sweeps.initial import INITIAL, demand_fitting, pin
from segsweep.sweeps.lineage import lineage_of
from segsweep.sweeps.orphans import free_orphans
from segsweep.sweeps.preparing import Prepared, demand_memory, needed_memory, prepare
from segsweep.sweeps.recovery import BEGIN_AGAIN, Recovery, own_sentences
from segsweep.sweeps.run_folder import light, tidy
from segsweep.sweeps.stopping import demand_pairs, make_scheduler
from segsweep.sweeps.trial import as_trainable, changed
from segsweep.sweeps.tuning_comparison import FIGURES, PAGE, Rows
from segsweep.sweeps.tuning_comparison import report as compare
from segsweep.sweeps.tuning_database import WORKSPACE, demand_own, studied
from segsweep.sweeps.tuning_models import register_best, sweep_note
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.sweeps.tuning_record import FILE, StudyRecord, restore
from segsweep.sweeps.tuning_sampling import FixedTrial, queued
from segsweep.sweeps.tuning_shared import base_run, first_config, folds_of, settings_of
from segsweep.sweeps.tuning_start import Start, search_start
from segsweep.sweeps.tuning_study import (
    FAILED,
    OUT_OF_MEMORY,
    StudySearch,
    SweptTrial,
    ended_trials,
    has_unfinished,
    learning_curves,
    open_database,
    open_study,
    trials_left,
)  # fmt: skip
from segsweep.workspace import Workspace, current_workspace

# Ray Tune's own records, in a sweep's folder while its trials run; the driver alone reads them.
TUNE = "tune"


@dataclass(frozen=True, kw_only=True)
class Swept:
    """A sweep's trials, best first, and the registered versions of the best (none when the user interrupted it).

    `report` shows all trials, `page` a published comparison; both are HTML files in the sweep's folder.
    """

    name: str
    trials: tuple[SweptTrial, ...]
    registered: tuple[Registered, ...]
    interrupted: bool
    page: Path | None = None
    report: Path | None = None


@studied()
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
    demand_own(place, name=name)
    start = _start(recipe, options=chosen, prepared=prepared, fixed=fixed, workspace=place, report=report)
    connect()
    least = share(workers=chosen.workers, concurrent=chosen.concurrent or 1, gpus=chosen.gpus)
    settings = {**settings_of(space, base=base, store=opened, options=chosen), "fixed": fixed}
    sweep, home = place.sweeps / name, shared(place)
    with alone(home.at(sweep), what="sweep", advice="wait until it ends, end it, or choose another name=…"):
        kept = _kept(name, workspace=place)
        study = open_study(
            place.studies_uri, name=name, settings=settings, seed=chosen.seed, sampler=chosen.sampler, record=kept
        )
        study.set_user_attr(WORKSPACE, home.uri)
        record = StudyRecord(study, uri=kept)
        home.at(sweep).fetch(_seen)
        rows = _rows(comparison_of(recipe), options=chosen, study=study, sweep=sweep, home=home)
        # Rows differ in the memory that they need, and without GPUs they would share it.
        left = 1 if rows and not least.gpus else trials_left(study, trials=chosen.trials)
        concurrent = chosen.concurrent or _most_at_once(prepared, left=left, gpus=chosen.gpus)
        resources = share(workers=chosen.workers, concurrent=concurrent, gpus=chosen.gpus)
        memory = memory_per_worker(workers=chosen.workers * concurrent, gpus=chosen.gpus)
        suggest = partial(
            _suggest, recipe=rows or recipe, base=base, fixed=fixed, store=opened, memory=memory, workspace=place
        )
        tracker = Tracker(place, experiment=opened.dataset)
        outbox = Outbox(tracker, name=name, say=partial(report, "MLflow", 0, 0))
        parent = {SWEEP_TAG: name, KIND_TAG: "sweep"}
        folds = folds_of(opened, options=chosen)
        described = {
            **base.to_json(),
            "fold": ",".join(map(str, folds)),
            "data": opened.digest,
            "cases": len(opened.cases),
        }
        outbox.begin(parent, name=name, params=described)
        lineage = lineage_of(opened, folds=folds, command=f"segsweep tune {space}")
        lineage.tell(outbox, run=parent)
        follow = Follow(outbox, parent=parent, sweep=name, report=report, lineage=lineage)
        status: Status = "KILLED"
        ended: tuple[SweptTrial, ...] = ()
        try:
            for trials in _queue(rows=rows, start=start, study=study, trials=chosen.trials, report=report):
                ask = start.ask if start else queued
                search = StudySearch(
                    study, suggest_config=suggest, sweep=sweep, trials=trials, report=report, ask=ask, home=home,
                    record=record,
                )  # fmt: skip
                _settle(ended_trials(study, sweep=sweep), follow=follow)
                if search.remaining:
                    trainable = as_trainable(base, resources=resources, folds=folds)
                    curves = learning_curves(study, sweep=sweep)
                    rule = make_scheduler(chosen.stop, grace=chosen.grace, curves=curves, home=home)
                    _run_trials(
                        trainable, search=search, follow=follow, scheduler=rule, concurrent=concurrent, sweep=sweep,
                        report=report,
                    )  # fmt: skip
                ended = ended_trials(study, sweep=sweep)
                if search.remaining > 0 or has_unfinished(study):
                    return Swept(name=name, trials=ended, registered=(), interrupted=True)
            shutil.rmtree(sweep / TUNE, ignore_errors=True)
            outbox.flush()
            status = "FAILED"
            _demand_any(ended, name=name)
            registered = register_best(
                ended, count=chosen.register, trainable=base.trainable, follow=follow, store=opened, folds=folds
            )
            outbox.tag(parent, {NOTE_TAG: sweep_note(ended, space=space, registered=registered)})
            page = None
            if rows:
                title = f"{space} on {opened.dataset}"
                page = compare(rows, title=title, base=base, store=opened, shared=fixed, resources=resources)
                for file in (PAGE, FIGURES):
                    outbox.file(parent, (sweep / file).read_text(), path=file)
            published = json.loads((sweep / FIGURES).read_text()) if rows else None
            told = f"{name}: {space} on {opened.dataset}"
            summary = tuning_page.write(study, sweep=sweep, title=told, folds=folds, comparison=published)
            for file in (tuning_page.PAGE, tuning_page.FIGURES):
                outbox.file(parent, (sweep / file).read_text(), path=file)
            home.at(sweep).send(_page)
            status = "FINISHED"
            return Swept(name=name, trials=ended, registered=registered, interrupted=False, page=page, report=summary)
        finally:
            outbox.finish(parent, status=status)
            outbox.close()
            record.save(now=True)


def _kept(sweep: str, *, workspace: Workspace) -> str:
    """Where the record of a sweep's study lies; nowhere on a shared disk."""
    return f"{shared(workspace).at(workspace.sweeps / sweep).uri}/{FILE}" if workspace.uri else ""


def _seen(name: str) -> bool:
    """Whether a driver looks at a file of the sweep's folder; the study's record is read in the bucket and nowhere else."""
    return light(name) and name != FILE


def _page(name: str) -> bool:
    """Whether a file of the sweep's folder is its own, and no trial's."""
    return _seen(name) and "/" not in name


def _most_at_once(prepared: Prepared, *, left: int, gpus: float = 1.0) -> int:
    """As many runs as fit at once by cores or GPUs and by memory, and no more than are left to run."""
    workers, needed = prepared.run.workers, needed_memory(prepared)
    counts = range(min(most_concurrent(workers=workers, gpus=gpus), left), 1, -1)
    return next((count for count in counts if needed <= memory_per_worker(workers=workers * count, gpus=gpus)), 1)


def _suggest(
    trial: Any,
    *,
    recipe: Any,
    base: Run,
    fixed: Mapping[str, Any],
    store: Store,
    memory: int,
    workspace: Workspace,
) -> dict[str, Any]:
    """Trainable and parameters of a trial; what the user fixed goes before what the space draws.

    Raises SegsweepError when they cannot be trained.
    """
    own = {key: value for key, value in fixed.items() if key != "preset"}
    config = pin({**recipe.space(FixedTrial(trial, fixed=own), store.plan), **own}, workspace=workspace)
    prepared = prepare(changed(base, config=config), opened=store)
    demand_memory(prepared, available=memory)
    demand_fitting(prepared)
    return config


def _start(
    recipe: ModuleType, *, options: SweepOptions, prepared: Prepared, fixed: Mapping[str, Any], workspace: Workspace,
    report: Report,
) -> Start | None:  # fmt: skip
    """What is asked of the search, checked; None for a published comparison, which searches nothing."""
    if options.stop == "paired":
        cases = len(prepared.store.validation(prepared.run.fold))
        params = prepared.params
        words = demand_pairs(every=params.scan_validation_every, epochs=params.epochs, cases=cases)
        if words:
            report("stop=paired", 0, 0, words)
    if comparison_of(recipe):
        return None
    for earlier in options.earlier if workspace.uri else ():
        restore(open_database(workspace.studies_uri), name=earlier, uri=_kept(earlier, workspace=workspace))
    return search_start(
        recipe, sampler=options.sampler, objective=options.objective, warm=options.earlier, storage=workspace.studies_uri,
        prepared=prepared, fixed=fixed,
    )  # fmt: skip


def _settle(ended: Iterable[SweptTrial], *, follow: Follow) -> None:
    """What a driver that died could no longer do: tell MLflow how trials ended, and remove what Ray left of them."""
    for trial in ended:
        tidy(trial.folder)
        follow.settle(trial.folder, params=trial.config)


@own_sentences()
def _run_trials(
    trainable: Any, *, search: StudySearch, follow: Follow, scheduler: Any, concurrent: int, sweep: Path, report: Report
) -> None:
    """Run all that the search hands out. Afterwards only the trials' own folders are left: Tune's records are not needed."""
    tuner = ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=search.remaining,
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # or every trial waits for a new process to import torch
        ),
        run_config=ray.tune.RunConfig(
            name=TUNE,
            storage_path=str(sweep),
            callbacks=[Recovery(report), follow],
            failure_config=BEGIN_AGAIN,
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        follow.close()
        free_orphans()
        shutil.rmtree(sweep / TUNE, ignore_errors=True)


def _demand_any(trials: tuple[SweptTrial, ...], *, name: str) -> None:
    """Raise SegsweepError when no trial ended well."""
    if all(trial.state in (FAILED, OUT_OF_MEMORY) for trial in trials):
        last = max(trials, key=lambda trial: trial.name)
        raise SegsweepError(
            f"sweep {name!r}: all {len(trials)} trials failed; the last: {failure(last.folder)}; "
            f"see {last.folder / ERROR}, then give the same command again"
        )


def _rows(
    comparison: Comparison | None, *, options: SweepOptions, study: Any, home: Mirror, sweep: Path
) -> Rows | None:
    if comparison is None:
        return None
    return Rows(
        comparison=comparison, scale=options.scale, pretrained=options.pretrained, study=study, sweep=sweep, home=home
    )


def _queue(*, rows: Rows | None, start: Start | None, study: Any, trials: int, report: Report) -> Iterator[int]:
    """How many trials there shall be, each time that some were put before all others: the space's first ones, or a wave of rows."""
    if rows:
        yield from map(rows.enqueue, rows.waves())
    elif start:
        start.fill(study, report=report)
        yield start.most(study, trials=trials)
