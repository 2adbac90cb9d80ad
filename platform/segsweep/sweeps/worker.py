"""What each worker of a run does: train together, save after every epoch, stop when told, validate whole scans at the end.

Where the run's folder lies in a bucket, every worker has a copy of its own: it fetches what is there when it begins, the first one sends
checkpoint and record before it reports an epoch, and whoever wrote pictures sends them.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device

from segsweep import recipes
from segsweep.data import storage
from segsweep.data.manifest import write_json
from segsweep.data.mirror import Mirror, working
from segsweep.data.remote import RemoteGrid
from segsweep.data.store import Store
from segsweep.errors import StorageAwayError
from segsweep.inference.cascade import keep_finder
from segsweep.learning import checkpoint
from segsweep.learning.loop import Setting, train
from segsweep.learning.patches import TrainingCase
from segsweep.learning.setting import rank
from segsweep.learning.task import Task
from segsweep.learning.transfer import transfer_from
from segsweep.run import Run
from segsweep.sweeps.kept import DAMAGED, chosen, keep, passed_over
from segsweep.sweeps.meter import Meter
from segsweep.sweeps.preparing import Prepared, prepare
from segsweep.sweeps.record import OVERLAYS, RECORD, add_epoch, begin_record
from segsweep.sweeps.run_folder import CHECKPOINTS, MODEL, RESULT, STOP, TRANSFER, demand_attempt, write_scores
from segsweep.sweeps.shortage import full_disks
from segsweep.sweeps.validation import Validated, summarise, validate


def train_run(config: Mapping[str, Any]) -> None:
    """Body of a Ray Train worker. `config`: run (JSON), folder, attempt. Reports each epoch and, last, the result."""
    with working(config["folder"]) as place, full_disks(place.folder):
        place.fetch()
        _train(Run(**config["run"]), place=place, attempt=config["attempt"])


def _train(run: Run, *, place: Mirror, attempt: str) -> None:
    folder = place.folder
    prepared = storage.patiently(partial(prepare, run))
    setting = _setting(prepared)
    checkpoints = folder / CHECKPOINTS
    begin = checkpoint.latest(checkpoints)
    damaged = passed_over(checkpoints, begin=begin)
    if damaged:
        ray.train.report({DAMAGED: damaged})
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
    score = partial(
        validate, task=prepared.task, store=prepared.store, inference=inference, finder=finder,
        precision=prepared.params.precision,
    )  # fmt: skip
    every, meter = prepared.params.scan_validation_every, Meter()
    for epoch in train(setting, resume=resume):
        if rank() == 0:
            demand_attempt(place.uri, attempt=attempt)
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
        demand_attempt(place.uri, attempt=attempt)
        summary = {name: value for name, value in result.items() if isinstance(value, int | float)}
        summary |= {**final.metrics, "epoch": final.epoch + 1}
        result["digest"] = checkpoint.save(
            folder / MODEL, snapshot=dataclasses.replace(final.final(), metrics=summary), run=document, finder=finder
        )
        write_scores(folder, dice=measured.scores, nsd=measured.nsd)
        write_json(folder / RESULT, result)
        place.send()
    ray.train.report(result)


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
