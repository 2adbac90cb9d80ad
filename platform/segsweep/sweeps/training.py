"""One Run as a Ray Train job: workers train together, save after every epoch, stop when told, validate whole scans at the end.

A run's folder holds checkpoints/ (the last and the best one), model/ (weights without optimizer), finder/ (the model that shows a
cascade's where to look), record/ (what people look at), validation.json (validation_nsd.json beside it, if asked for) and, last of all,
result.json; validations between epochs are validation-EPOCH.json. A folder with a result is never trained again; one without goes on
from its last checkpoint. `fit_folds` says what the folder of a trial of several folds holds.

The folder may lie in a bucket. Then every worker has a copy of its own: it fetches what is there when it begins, the first one sends
checkpoint and record before it reports an epoch, and whoever wrote pictures sends them.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import ray
import ray.train
import ray.tune
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer, get_device

from segsweep import recipes
from segsweep.data import storage
from segsweep.data.conversion import derive
from segsweep.data.manifest import write_json
from segsweep.data.mirror import Mirror, working
from segsweep.data.remote import RemoteGrid
from segsweep.data.store import Store
from segsweep.errors import StorageAwayError
from segsweep.evaluation.whole_scans import Scores
from segsweep.inference.cascade import keep_finder
from segsweep.learning import checkpoint
from segsweep.learning.loop import Setting, train
from segsweep.learning.patches import TrainingCase
from segsweep.learning.setting import rank
from segsweep.learning.task import Task
from segsweep.learning.transfer import transfer_from
from segsweep.run import Run
from segsweep.sweeps.cluster import OURS, Resources, demand_resources, plain_resources
from segsweep.sweeps.folds import fold_folders, merge, report_of
from segsweep.sweeps.kept import chosen, keep
from segsweep.sweeps.meter import Meter
from segsweep.sweeps.orphans import free_orphans
from segsweep.sweeps.preparing import Prepared, prepare
from segsweep.sweeps.record import OVERLAYS, RECORD, add_epoch, begin_record, epochs_of
from segsweep.sweeps.recovery import own_errors
from segsweep.sweeps.relay import Waiting, relayed
from segsweep.sweeps.shortage import SHORTAGE, full_disks, note, ran_out
from segsweep.sweeps.validation import Validated, summarise, validate

RESULT, STOP, TRANSFER = "result.json", "stop", "transfer.json"
VALIDATION, NSD_VALIDATION = "validation.json", "validation_nsd.json"
# A driver's mark in a trial's folder once MLflow was told how it ended: that machine's own, for MLflow may be too.
LOGGED = "logged"
CHECKPOINTS, MODEL = "checkpoints", "model"
# So often in a row are worker processes replaced that died before they finished an epoch, unless memory was short; the new ones go on
# from the last checkpoint. Days on machines that are taken away may see any number of deaths with epochs in between.
MOST_RESTARTS = 2
# Ray Train's own name.
DATASETS = "DatasetsCallback"
CLEANER = "PlacementGroupCleanerCallback"
# A trial only waits for its workers, so it needs no core. But it does so in some processes, which hold about so many bytes.
TRIAL_BYTES = 2**30


def train_run(config: Mapping[str, Any]) -> None:
    """Body of a Ray Train worker. `config`: run (JSON), folder. Reports each epoch and, last, the result."""
    with working(config["folder"]) as place, full_disks(place.folder):
        place.fetch()
        _train(Run(**config["run"]), place=place)


def _train(run: Run, *, place: Mirror) -> None:
    folder = place.folder
    prepared = prepare(run)
    setting = _setting(prepared)
    checkpoints = folder / CHECKPOINTS
    begin = checkpoint.latest(checkpoints)
    resume = None if begin is None else checkpoint.load(begin)
    if resume is None and prepared.params.initial:
        transferred = transfer_from(setting.model, initial=prepared.params.initial, task=prepared.task)
        if rank() == 0:
            write_json(folder / TRANSFER, transferred.to_json())
    document = {"run": run.to_json(), "task": prepared.task.to_json(), "params": recipes.params_json(prepared.params)}
    if rank() == 0:
        begin_record(folder, run=document, plan=prepared.store.plan.to_json())
    status, epochs, metrics = (
        "finished",
        0 if resume is None else resume.epoch + 1,
        dict(resume.metrics) if resume else {},
    )
    held_out = prepared.store.validation(run.fold)
    inference = prepared.method.inference(prepared.params, task=prepared.task)
    finder = None if inference.margin_mm is None else folder / checkpoint.FINDER
    if finder and (rank() == 0 or storage.is_remote(place.uri)):
        keep_finder(prepared.params.initial, task=prepared.task, folder=finder)
    score = partial(validate, task=prepared.task, store=prepared.store, inference=inference, finder=finder)
    every, meter = prepared.params.scan_validation_every, Meter()
    for epoch in train(setting, resume=resume):
        if rank() == 0:
            keep(epoch, checkpoints=checkpoints, document=document)
        epochs, metrics = epoch.number + 1, epoch.metrics
        due = every and epochs % every == 0 and epochs < epoch.total
        between = score(epoch.model, case_ids=held_out).scores if due else {}
        if between and rank() == 0:
            write_json(folder / f"validation-{epochs:05d}.json", between)
        seen = summarise(between, prefix="dice_scan")
        if rank() == 0:
            add_epoch(folder, {"epoch": epochs, **metrics, **seen})
            place.send()
        told = {**metrics, **seen, **meter.read(), "epoch": epochs, "epochs": epoch.total}
        ray.train.report({**told, "status": "training"})
        if epochs < epoch.total and _told_to_stop(place):
            status = "stopped_early"
            break
        if ray.train.get_preemption_info():  # all workers ask, and are told the same
            return  # a node is about to be taken away: what comes next is trained elsewhere
    _meet()  # rank 0 has written the checkpoint that all read now
    if rank() != 0:
        place.fetch(lambda name: name.startswith(f"{CHECKPOINTS}/"))
    final = chosen(checkpoints, select=prepared.params.select)
    setting.model.load_state_dict(dict(final.weights))
    measured = Validated(cases={}, memory=0)
    if status == "finished":
        measured = score(
            setting.model,
            case_ids=held_out,
            nsd_tolerance=prepared.params.nsd_tolerance,
            pictures=folder / RECORD / OVERLAYS,
        )
    if rank() != 0:
        place.send()  # its pictures
    _meet()  # a result says that all is there
    total = sum(stage.epochs for stage in setting.stages)
    result = {
        **metrics,
        **summarise(measured.scores),
        **summarise(measured.nsd, prefix="nsd"),
        **measured.costs(),
        "epoch": epochs,
        "epochs": total,
        "status": status,
    }
    if rank() == 0:
        summary = {name: value for name, value in result.items() if isinstance(value, int | float)}
        summary |= {**final.metrics, "epoch": final.epoch + 1}
        result["digest"] = checkpoint.save(
            folder / MODEL, snapshot=dataclasses.replace(final.final(), metrics=summary), run=document, finder=finder
        )
        write_scores(folder, dice=measured.scores, nsd=measured.nsd)
        write_json(folder / RESULT, result)
        place.send()
    ray.train.report(result)


def fit(run: Run, *, folder: str | Path, resources: Resources, callbacks: list[Any] | None = None) -> Mapping[str, Any]:
    """Train a run with Ray Train into `folder`, a path or an address, and return its result; an existing one is returned at once.

    Workers that die are started again where there is room, which is waited for. Their epochs are those of the last checkpoint on.
    """
    with working(folder) as place:
        place.fetch(light)
        try:
            return _fit(run, place=place, resources=resources, callbacks=callbacks or [])
        finally:
            place.send()  # what it ran out of


def _fit(run: Run, *, place: Mirror, resources: Resources, callbacks: list[Any]) -> Mapping[str, Any]:
    folder = place.folder
    if (folder / RESULT).is_file():
        return read_result(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SHORTAGE).unlink(missing_ok=True)
    deaths = 0
    while not (folder / RESULT).is_file():  # workers that left a node in time left none
        tidy(folder)
        free_orphans()
        reached = len(epochs_of(folder))
        try:
            _trainer(run, place=place, resources=resources, callbacks=callbacks).fit()
        except (ray.train.TrainingFailedError, RayActorError) as error:
            place.fetch(light)
            lacked = ran_out(error)
            if lacked:
                prepared = prepare(run)
                note(folder, patch_size=prepared.task.patch_size, batch_size=prepared.params.batch_size or 1)
            deaths = 0 if len(epochs_of(folder)) > reached else deaths + 1
            if lacked or deaths > MOST_RESTARTS:
                raise
        place.fetch(light)
    tidy(folder)
    return read_result(folder)


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
    dice, nsd = (_joined_scores(trained, name=name) for name in (VALIDATION, NSD_VALIDATION))
    merged = merge(results, dice=dice, nsd=nsd)
    write_scores(folder, dice=dice, nsd=nsd)
    write_json(folder / RESULT, merged)
    place.send()
    ray.tune.report(merged)


def write_scores(folder: Path, *, dice: Scores, nsd: Scores) -> None:
    """Keep what a run's held-out cases scored: case -> structure -> score. NSD has a file only where it was asked for."""
    write_json(folder / VALIDATION, dice)
    if nsd:
        write_json(folder / NSD_VALIDATION, nsd)


def light(name: str) -> bool:
    """Whether a file of a run's folder, or of one above it, is what a driver looks at: all but weights, and its own marks."""
    parts = PurePosixPath(name).parts
    return parts[-1] != LOGGED and not {CHECKPOINTS, MODEL, checkpoint.FINDER} & set(parts)


def read_result(folder: Path) -> Mapping[str, Any]:
    """The result of a finished run's folder."""
    return json.loads((folder / RESULT).read_text())


def as_trainable(
    run: Run, *, resources: Resources | None = None, folds: Sequence[int] = ()
) -> Callable[[dict[str, Any]], None]:
    """A function trainable for `ray.tune.run` or `ray.tune.Tuner`: its config overrides the run's params, and its `trainable`.

    Each trial is a Ray Train job; it reports `loss`, `patch_dice`, `epoch` after every epoch and `dice` at the end. With several `folds` it
    is one job after another, the run's own fold aside: epochs are reported of the first, and `dice` at the end is that of all. The trial
    itself holds no CPU: give `ray.tune.Tuner` a `max_concurrent_trials`, so that trials do not starve each other's workers.
    Raises ResourceError when the cluster can never hold a trial's workers; where Ray was not started yet, the trials do.
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
        chosen = changed(run, config={key: value for key, value in config.items() if key != "folder"})
        with own_errors():
            prepared = prepare(chosen)  # what cannot be trained fails here, before any worker starts
            derive(prepared.store, spacing=prepared.task.spacing)
            each = resources or plain_resources()
            if not demanded:  # else there was room at the start: for nodes that died since, it waits
                demand_resources(each, workers=run.workers)
            if len(folds) > 1:
                fit_folds(chosen, folds=folds, place=place, resources=each)
            else:
                fit_told(chosen, folder=place.uri, resources=each)

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


def changed(run: Run, *, config: Mapping[str, Any]) -> Run:
    """The run of a trial: with the config's `trainable`, if it names one, and its parameters over the run's own."""
    params = {**run.params, **config}
    return dataclasses.replace(run, trainable=params.pop("trainable", run.trainable), params=params)


def tidy(folder: Path) -> None:
    """Remove Ray's own records of a training, and checkpoints that a killed worker left half written."""
    for leftover in (*folder.rglob("ray"), *folder.rglob(".*.partial-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def request_stop(folder: str | Path) -> None:
    """Ask the run in a folder to stop after its current epoch; it saves, reports `stopped_early` and ends by itself."""
    uri = storage.address(folder)
    if not storage.is_remote(uri):
        Path(folder).mkdir(parents=True, exist_ok=True)
    storage.write_bytes(f"{uri}/{STOP}", b"")


def training_cases(
    store: Store, *, case_ids: tuple[str, ...], task: Task, annotated: bool = True
) -> tuple[TrainingCase, ...]:
    """Cases with any annotation (without `annotated`: those with none) at the task's spacing, as the sampler wants them."""
    structures = store.table.labels.structures

    def case(case_id: str) -> TrainingCase:
        grid = store.grid(case_id, task.spacing)
        return TrainingCase(
            case_id=case_id,
            grid=grid,
            annotated=tuple(name in store.cases[case_id].annotated for name in structures),
            source=task.sources.index(case_id.partition(".")[0]) if len(task.sources) > 1 else 0,
            distant=grid if isinstance(grid, RemoteGrid) else None,
        )

    return tuple(case(case_id) for case_id in case_ids if bool(store.cases[case_id].annotated) == annotated)


class _LeanTrainer(TorchTrainer):
    """Starts one process less a run, that of Ray's own data sets, which none of ours uses, and two less on a cluster of our own: the
    one that frees what a dead trainer leaves asks the dashboard who is alive. There is none, and it would outlive its driver.
    """

    def _create_default_callbacks(self) -> list[Any]:
        left_out = {DATASETS, CLEANER} if OURS in os.environ else {DATASETS}
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in left_out]


def _trainer(run: Run, *, place: Mirror, resources: Resources, callbacks: list[Any]) -> TorchTrainer:
    per_worker = {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
    return _LeanTrainer(
        train_run,
        train_loop_config={"run": run.to_json(), "folder": place.uri},
        scaling_config=ray.train.ScalingConfig(
            num_workers=run.workers, use_gpu=bool(resources.gpus), resources_per_worker=per_worker
        ),
        # Of this machine alone: Ray wants a disk that nodes share for its own checkpoints, which nobody writes.
        run_config=ray.train.RunConfig(
            name=f"train-{os.getpid()}", storage_path=str(place.folder / "ray"), callbacks=callbacks
        ),
    )


def _setting(prepared: Prepared) -> Setting:
    run, store, params = prepared.run, prepared.store, prepared.params
    method, task = prepared.method, prepared.task
    device = get_device()
    torch.manual_seed(run.seed)
    annotated = partial(method.trained_part, params=params, task=task)
    return Setting(
        model=method.build(params, task=task).to(device),
        task=task,
        params=params,
        stages=method.stages(params),
        loss=method.loss(params, task=task),
        training=tuple(map(annotated, training_cases(store, case_ids=store.training(run.fold), task=task))),
        validation=tuple(map(annotated, training_cases(store, case_ids=store.validation(run.fold), task=task))),
        unlabelled=training_cases(store, case_ids=store.training(run.fold), task=task, annotated=False),
        seed=run.seed,
        device=device,
    )


def _joined_scores(folders: Sequence[Path], *, name: str) -> Scores:
    """What several runs' files of this name say; each run held out other cases."""
    files = [folder / name for folder in folders if (folder / name).is_file()]
    return {case_id: scores for file in files for case_id, scores in json.loads(file.read_text()).items()}


def _meet() -> None:
    """Wait for the other workers."""
    if dist.is_initialized():
        dist.barrier()


def _told_to_stop(place: Mirror) -> bool:
    """Rank 0 looks for the stop flag and tells the others, so that all leave after the same epoch."""
    asked = False
    if rank() == 0:
        with contextlib.suppress(StorageAwayError):  # then it is looked for after the next epoch
            asked = storage.exists(f"{place.uri}/{STOP}")
    flag = torch.tensor([int(asked)])
    if dist.is_initialized():
        flag = flag.to(get_device())
        dist.broadcast(flag, src=0)
    return bool(flag.item())
