"""A sweep: Optuna proposes, Ray Tune runs, MLflow remembers, the best are registered. Running it again goes on where it ended."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from segsweep import recipes
from segsweep.data.mirror import Mirror, shared
from segsweep.data.store import Store
from segsweep.errors import RecipeError
from segsweep.models.outbox import Outbox
from segsweep.models.tracking import KIND_TAG, SWEEP_TAG, Status, Tracker
from segsweep.run import Run
from segsweep.sweeps.alone import alone
from segsweep.sweeps.cluster import connect, memory_per_worker, most_concurrent, share
from segsweep.sweeps.comparison import Comparison, comparison_of
from segsweep.sweeps.following import Follow, Report, silent
from segsweep.sweeps.initial import INITIAL, demand_fitting, pin
from segsweep.sweeps.lineage import lineage_of
from segsweep.sweeps.preparing import Prepared, demand_memory, needed_memory, prepare
from segsweep.sweeps.stopping import demand_pairs
from segsweep.sweeps.trial import changed
from segsweep.sweeps.tuning_comparison import Rows
from segsweep.sweeps.tuning_database import WORKSPACE, demand_own, studied
from segsweep.sweeps.tuning_driving import HeldSweep, Swept, seen
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.sweeps.tuning_record import FILE, StudyRecord, restore
from segsweep.sweeps.tuning_sampling import FixedTrial
from segsweep.sweeps.tuning_shared import base_run, first_config, folds_of, settings_of
from segsweep.sweeps.tuning_start import Start, search_start
from segsweep.sweeps.tuning_study import open_database, open_study, trials_left
from segsweep.workspace import Workspace, current_workspace


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
    folder, home = place.sweeps / name, shared(place)
    with alone(home.at(folder), what="sweep", advice="wait until it ends, end it, or choose another name=…"):
        kept = _kept(name, workspace=place)
        study = open_study(
            place.studies_uri, name=name, settings=settings, seed=chosen.seed, sampler=chosen.sampler, record=kept
        )
        study.set_user_attr(WORKSPACE, home.uri)
        record = StudyRecord(study, uri=kept)
        home.at(folder).fetch(seen)
        rows = _rows(comparison_of(recipe), options=chosen, study=study, sweep=folder, home=home)
        # Rows differ in the memory that they need, and without GPUs they would share it.
        left = 1 if rows and not least.gpus else trials_left(study, trials=chosen.trials)
        gpu = least.gpus > 0
        concurrent = chosen.concurrent or _most_at_once(prepared, left=left, gpus=chosen.gpus, gpu=gpu)
        resources = share(workers=chosen.workers, concurrent=concurrent, gpus=chosen.gpus)
        memory = memory_per_worker(workers=chosen.workers * concurrent, gpus=chosen.gpus)
        suggest = partial(
            _suggest,
            recipe=rows or recipe,
            base=base,
            fixed=fixed,
            store=opened,
            memory=memory,
            gpu=gpu,
            workspace=place,
        )
        tracker = Tracker(place, experiment=opened.dataset)
        outbox = Outbox(tracker, name=name, say=partial(report, "MLflow", 0, 0))
        parent = {SWEEP_TAG: name, KIND_TAG: "sweep"}
        folds = folds_of(opened, options=chosen)
        outbox.begin(parent, name=name, params=_described(base, store=opened, folds=folds))
        lineage = lineage_of(opened, folds=folds, command=f"segsweep tune {space}")
        lineage.tell(outbox, run=parent)
        follow = Follow(outbox, parent=parent, sweep=name, report=report, lineage=lineage)
        held = HeldSweep(
            space=space, base=base, fixed=fixed, store=opened, folds=folds, options=chosen, folder=folder,
            home=home, study=study, record=record, rows=rows, start=start, suggest=suggest, resources=resources,
            concurrent=concurrent, outbox=outbox, parent=parent, follow=follow, report=report,
        )  # fmt: skip
        status: Status = "KILLED"
        try:
            if not held.run():
                return Swept(name=name, trials=held.ended(), registered=(), interrupted=True)
            status = "FAILED"
            swept = held.publish()
            status = "FINISHED"
            return swept
        finally:
            outbox.finish(parent, status=status)
            outbox.close()
            record.save(now=True)


def _described(base: Run, *, store: Store, folds: tuple[int, ...]) -> dict[str, Any]:
    """What MLflow shows as a sweep's parameters."""
    held_out = ",".join(map(str, folds))
    return {**base.to_json(), "fold": held_out, "data": store.digest, "cases": len(store.cases)}


def _kept(sweep: str, *, workspace: Workspace) -> str:
    """Where the record of a sweep's study lies; nowhere on a shared disk."""
    return f"{shared(workspace).at(workspace.sweeps / sweep).uri}/{FILE}" if workspace.uri else ""


def _most_at_once(prepared: Prepared, *, left: int, gpus: float = 1.0, gpu: bool = False) -> int:
    """As many runs as fit at once by cores or GPUs and by memory, and no more than are left to run."""
    workers, needed = prepared.run.workers, needed_memory(prepared, gpu=gpu)
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
    gpu: bool = False,
) -> dict[str, Any]:
    """Trainable and parameters of a trial; what the user fixed goes before what the space draws.

    Raises SegsweepError when they cannot be trained.
    """
    own = {key: value for key, value in fixed.items() if key != "preset"}
    config = pin({**recipe.space(FixedTrial(trial, fixed=own), store.plan), **own}, workspace=workspace)
    prepared = prepare(changed(base, config=config), opened=store)
    demand_memory(prepared, available=memory, gpu=gpu)
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


def _rows(
    comparison: Comparison | None, *, options: SweepOptions, study: Any, home: Mirror, sweep: Path
) -> Rows | None:
    if comparison is None:
        return None
    return Rows(
        comparison=comparison, scale=options.scale, pretrained=options.pretrained, study=study, sweep=sweep, home=home
    )
