"""One Run as a Ray Train job, whose workers are started again where they die; `run_folder` says what it leaves, `worker` what they do."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer

from segsweep.data.mirror import Mirror, working
from segsweep.run import Run
from segsweep.sweeps.cluster import Resources
from segsweep.sweeps.orphans import free_orphans
from segsweep.sweeps.preparing import prepare
from segsweep.sweeps.record import epochs_of
from segsweep.sweeps.rendezvous import OwnAddresses
from segsweep.sweeps.run_folder import RESULT, begin_attempt, demand_attempt, light, read_result, tidy
from segsweep.sweeps.shortage import SHORTAGE, note, ran_out
from segsweep.sweeps.worker import train_run

# So often in a row are worker processes replaced that died before they finished an epoch, unless memory was short; the new ones go on
# from the last checkpoint. Days on machines that are taken away may see any number of deaths with epochs in between.
MOST_RESTARTS = 2
# Ray Train's own names: of what serves its data sets, which none of ours uses, and of what frees the places of dead controllers, as
# `orphans` does; that is one more process on the head for each training, which stays for good where no dashboard runs.
LEFT_OUT = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


def fit(run: Run, *, folder: str | Path, resources: Resources, callbacks: list[Any] | None = None) -> Mapping[str, Any]:
    """Train a run with Ray Train into `folder`, a path or an address, and return its result; an existing one is returned at once.

    Workers that die are started again where there is room, which is waited for. Their epochs are those of the last checkpoint on. Raises
    SupersededError once another process fits the same folder.
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
        reached, attempt = len(epochs_of(folder)), begin_attempt(place.uri)
        try:
            _trainer(run, place=place, attempt=attempt, resources=resources, callbacks=callbacks).fit()
        except (ray.train.TrainingFailedError, RayActorError) as error:
            demand_attempt(place.uri, attempt=attempt)
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


class _LeanTrainer(TorchTrainer):
    """Starts three processes less a run."""

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in LEFT_OUT]


def _trainer(run: Run, *, place: Mirror, attempt: str, resources: Resources, callbacks: list[Any]) -> TorchTrainer:
    per_worker = {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
    return _LeanTrainer(
        train_run,
        torch_config=OwnAddresses(),
        train_loop_config={"run": run.to_json(), "folder": place.uri, "attempt": attempt},
        scaling_config=ray.train.ScalingConfig(
            num_workers=run.workers, use_gpu=bool(resources.gpus), resources_per_worker=per_worker
        ),
        # Of this machine alone: Ray wants a disk that nodes share for its own checkpoints, which nobody writes.
        run_config=ray.train.RunConfig(
            name=f"train-{os.getpid()}", storage_path=str(place.folder / "ray"), callbacks=callbacks
        ),
    )
