"""Runs as trials of Tune: a run, or one fold of it after another, told to Tune as it goes; and the function that Tune calls."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.execution import class_cache

from segsweep.data import storage
from segsweep.data.conversion import derive
from segsweep.data.manifest import write_json
from segsweep.data.mirror import Mirror, working
from segsweep.run import Run
from segsweep.sweeps.cluster import Resources, demand_resources, plain_resources
from segsweep.sweeps.folds import fold_folders, merge, report_of
from segsweep.sweeps.preparing import prepare
from segsweep.sweeps.recovery import own_errors
from segsweep.sweeps.relay import Waiting, relayed
from segsweep.sweeps.run_folder import (
    NSD_VALIDATION,
    RESULT,
    VALIDATION,
    joined_scores,
    light,
    read_result,
    write_scores,
)
from segsweep.sweeps.training import fit

# A trial only waits for its workers, so it needs no core. But it does so in some processes, which hold about so many bytes.
TRIAL_BYTES = 2**30
# Keys that Tune would send to trials in the command line of each of their processes, which all users of a node can read.
KEYS = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}


def as_trainable(
    run: Run, *, resources: Resources | None = None, folds: Sequence[int] = ()
) -> Callable[[dict[str, Any]], None]:
    """A function trainable for `ray.tune.run` or `ray.tune.Tuner`: its config overrides the run's params, and its `trainable`.

    Each trial is a Ray Train job; it reports `loss`, `patch_dice`, `epoch` after every epoch and `dice` at the end. With several `folds` it
    is one job after another, the run's own fold aside: epochs are reported of the first, and `dice` at the end is that of all. The trial
    itself holds no CPU: give `ray.tune.Tuner` a `max_concurrent_trials`, so that trials do not starve each other's workers.
    Keys of an object storage (AWS_…) in this process's environment are not sent to other nodes, which need their own. Raises ResourceError
    when the cluster can never hold a trial's workers; where Ray was not started yet, the trials do.
    """
    demanded = resources is not None and ray.is_initialized()
    if resources and demanded:
        demand_resources(resources, workers=run.workers)
    # Tune runs every trial in a folder of its own, where a relative address means something else.
    prepared = prepare(run)
    derive(prepared.store, spacing=prepared.task.spacing)
    run = dataclasses.replace(run, store=prepared.store.uri)

    def trial(config: dict[str, Any]) -> None:
        with working(config.get("folder") or Path(ray.tune.get_context().get_trial_dir() or ".") / "run") as place:
            place.fetch(light)
            _try(config, place=place)

    def _try(config: dict[str, Any], *, place: Mirror) -> None:
        if (place.folder / RESULT).is_file():
            ray.tune.report(dict(read_result(place.folder)))
            return
        chosen = changed(run, config=params_of(config))
        with own_errors():
            # What cannot be trained fails here, before any worker starts.
            prepared = storage.patiently(partial(prepare, chosen))
            storage.patiently(partial(derive, prepared.store, spacing=prepared.task.spacing))
            each = resources or plain_resources()
            if not demanded:  # else there was room at the start: for nodes that died since, it waits
                demand_resources(each, workers=run.workers)
            if len(folds) > 1:
                fit_folds(chosen, folds=folds, place=place, resources=each)
            else:
                fit_told(chosen, folder=place.uri, resources=each)

    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(KEYS)
    # Else Tune ends every trial whose first epoch does not have a `dice` yet, when that is the metric asked for.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    return ray.tune.with_resources(trial, trial_resources())  # type: ignore[return-value]


def trial_resources() -> dict[str, float]:
    """What a trial itself asks for, beside its workers. Ray puts it where most memory is free, so by this trials are spread over nodes:
    those that ask for nothing all go to one.

    On small nodes that is less than a trial takes, so that what it converts finds room beside it.
    """
    nodes = ray.nodes() if ray.is_initialized() else []
    largest = max((node["Resources"].get("memory", 0) for node in nodes if node["Alive"]), default=0)
    return {"CPU": 0, "memory": max(1, min(TRIAL_BYTES, int(largest // 64)))}


def params_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a trial's config is trained with: all but where its folder lies."""
    return {key: value for key, value in config.items() if key != "folder"}


def changed(run: Run, *, config: Mapping[str, Any]) -> Run:
    """The run of a trial: with the config's `trainable`, if it names one, and its parameters over the run's own."""
    params = {**run.params, **config}
    return dataclasses.replace(run, trainable=params.pop("trainable", run.trainable), params=params)


def fit_told(
    run: Run, *, folder: str | Path, resources: Resources, as_told: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
) -> Mapping[str, Any]:
    """`fit` within a trial: Tune is told of every report, in the words of `as_told`."""
    return relayed(
        lambda relay: fit(run, folder=folder, resources=resources, callbacks=[relay, Waiting(relay)]),
        tell=lambda report: ray.tune.report(as_told(report)),
    )


def fit_folds(run: Run, *, folds: Sequence[int], place: Mirror, resources: Resources) -> None:
    """Train a trial's folds one after another, each as `fit` does in a folder of its own within the trial's, and tell Tune of them.

    The trial's folder then holds their validations together and, last of all, what they came to as its result. A trial whose first fold
    was stopped early trains no other.
    """
    results: list[Mapping[str, Any]] = []
    folder = place.folder
    parts = fold_folders(folder, folds=folds)
    for fold, part in parts.items():
        as_told = partial(report_of, fold=fold, first=fold == folds[0])
        if (part / RESULT).is_file():  # the driver that saw it end may not have lived to write that down
            ray.tune.report(as_told(read_result(part)))
        own, uri = dataclasses.replace(run, fold=fold), place.at(part).uri
        results.append(fit_told(own, folder=uri, resources=resources, as_told=as_told))
        if results[-1]["status"] != "finished":
            break
    place.fetch(light)
    trained = list(parts.values())[: len(results)]
    dice, nsd = (joined_scores(trained, name=name) for name in (VALIDATION, NSD_VALIDATION))
    merged = merge(results, dice=dice, nsd=nsd)
    write_scores(folder, dice=dice, nsd=nsd)
    write_json(folder / RESULT, merged)
    place.send()
    ray.tune.report(merged)
