"""One Run, trained, logged and registered: what `segsweep train` does. It is a sweep of one trial without a search."""

import dataclasses
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.tune

from segsweep.data import storage
from segsweep.data.mirror import Mirror, shared
from segsweep.errors import SegsweepError
from segsweep.models.catalogue import Registered
from segsweep.models.outbox import Outbox
from segsweep.models.registry import register
from segsweep.models.tracking import DATA_TAG, DICE_TAG, FOLD_TAG, Tracker
from segsweep.run import Run
from segsweep.sweeps.alone import alone
from segsweep.sweeps.cluster import connect, memory_per_worker, plain_resources, share
from segsweep.sweeps.following import ERROR, Follow, Report, failure, silent
from segsweep.sweeps.initial import INITIAL, demand_fitting, pin
from segsweep.sweeps.lineage import lineage_of, scores_of
from segsweep.sweeps.preparing import demand_memory, prepare
from segsweep.sweeps.recovery import BEGIN_AGAIN, Recovery, own_sentences
from segsweep.sweeps.run_folder import MODEL, RESULT, light, read_result
from segsweep.sweeps.trial import as_trainable
from segsweep.workspace import Workspace, current_workspace


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run: its folder, its result (metrics, epochs, status) and its registered version."""

    folder: Path
    result: Mapping[str, Any]
    registered: Registered


def train(run: Run, *, workspace: Workspace | None = None, report: Report = silent) -> Trained:
    """Train a run in the workspace, or go on where it was interrupted; a finished run is not trained again.

    Raises RecipeError, StoreError, ResourceError or ModelError before anything starts, SegsweepError when the training fails.
    """
    connect()
    place = workspace or current_workspace()
    prepared = prepare(dataclasses.replace(run, params=pin(run.params, workspace=place)))
    run = dataclasses.replace(prepared.run, store=prepared.store.uri)
    dataset = prepared.store.dataset
    # Other data under the same address is another run.
    name = f"{run.trainable}-{dataset}-{run.digest}-{prepared.store.digest[:6]}"
    folder = place.runs / name
    trained = shared(place).at(folder)
    storage.exists(f"{trained.uri}/{RESULT}")  # where there is no such bucket, that is said before anything is trained
    trained.fetch(light)
    if not (folder / RESULT).is_file():
        gpu = plain_resources().gpus > 0
        demand_memory(prepared, available=memory_per_worker(workers=run.workers), gpu=gpu)
        fitting = demand_fitting(prepared)
        if fitting is not None:
            report(name, 0, 0, f"starting from {run.params[INITIAL]}: {fitting}")
    tracker = Tracker(place, experiment=dataset)
    lineage = lineage_of(prepared.store, folds=(run.fold,), command=f"segsweep train {run.trainable}")
    with (
        alone(trained, what="run", advice="wait until it ends, or end it"),
        closing(Outbox(tracker, name=name, say=partial(report, "MLflow", 0, 0))) as outbox,
        closing(Follow(outbox, parent=None, sweep="", report=report, lineage=lineage)) as follow,
    ):
        if not (folder / RESULT).is_file():
            _run(run, place=trained, callbacks=[Recovery(report), follow])
        follow.settle(folder, params=run.params)
        outbox.flush()
    result = read_result(folder)
    run_id = follow.run_of(name)
    if run_id is None:
        run_id = tracker.start(name, params=run.to_json(), tags=follow.tags(name))
        tracker.finish(run_id)
    model = f"{dataset}-{run.trainable}"
    tags = {"segsweep.run": name, FOLD_TAG: str(run.fold), DATA_TAG: prepared.store.digest}
    if "dice" in result:
        tags[DICE_TAG] = f"{result['dice']:.4f}"
    trained.at(folder / MODEL).fetch()
    registered = register(
        folder / MODEL, name=model, tracker=tracker, run_id=run_id, tags=tags, scores=scores_of(folder)
    )
    return Trained(folder=folder, result=result, registered=registered)


@own_sentences()
def _run(run: Run, *, place: Mirror, callbacks: list[Any]) -> None:
    folder = place.folder
    scratch = folder / "tune"
    tuner = ray.tune.Tuner(
        as_trainable(run, resources=share(workers=run.workers)),
        param_space={"folder": place.uri},
        run_config=ray.tune.RunConfig(
            name="tune", storage_path=str(folder), callbacks=callbacks, failure_config=BEGIN_AGAIN, verbose=0
        ),
    )
    try:
        failed = tuner.fit().num_errors > 0
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if failed:
        raise SegsweepError(f"{folder.name}: training failed ({failure(folder)}); see {folder / ERROR}")
    if not (folder / RESULT).is_file():
        raise KeyboardInterrupt
