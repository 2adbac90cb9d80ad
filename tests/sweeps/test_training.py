"""A run's folder: what is filled in, what is refused, what training leaves there, and that nothing is trained twice."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import train
from ray.exceptions import ActorDiedError, RayActorError
from ray.train import UserCallback, WorkerGroupError
from ray.train.torch import TorchTrainer

from segsweep.data.fingerprint import patch_and_batch
from segsweep.data.mirror import Mirror
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError, RecipeError, ResourceError, StoreError, SupersededError
from segsweep.learning import checkpoint
from segsweep.run import Run
from segsweep.sweeps import preparing, training, worker
from segsweep.sweeps.cluster import Resources, most_concurrent, plain_resources, share
from segsweep.sweeps.preparing import demand_memory, prepare
from segsweep.sweeps.record import RECORD, add_epoch, epochs_of
from segsweep.sweeps.run_folder import begin_attempt
from segsweep.sweeps.shortage import noted
from segsweep.sweeps.training import fit
from segsweep.sweeps.trial import as_trainable
from segsweep.sweeps.validation import summarise


class Written(UserCallback):
    """Writes down what the workers report."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        with self.path.open("a") as stream:
            stream.write(json.dumps(metrics) + "\n")

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        with self.path.open("a") as stream:
            stream.write(json.dumps([repr(error)[:80] for error in worker_exceptions.values()]) + "\n")

    def read(self) -> list[list[dict[str, Any]]]:
        """One list a report, one entry a rank."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]


class Listening(UserCallback):
    """Writes down on which addresses worker processes listen, as the kernel spells them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
        sockets = {f"socket:[{line.split()[9]}]": line.split() for table in tables for line in table}
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended, or closed what it had
                if b"RayTrainWorker" in (process / "cmdline").read_bytes():
                    opened = [str(link.readlink()) for link in (process / "fd").iterdir()]
                    lines = [sockets[name] for name in opened if name in sockets]
                    found |= {line[1].partition(":")[0] for line in lines if line[3] == "0A"}
        self.path.write_text(" ".join(sorted(found)))


@pytest.fixture
def run(phantom_store: Path, tiny: dict[str, Any]) -> Run:
    return Run(trainable="unet", store=str(phantom_store), workers=2, params={**tiny, "epochs": 2, "iterations": 2})


def prepared(run: Run, **params: Any) -> Any:
    return prepare(dataclasses.replace(run, params=params))


def test_plan_presets_and_params_in_that_order(run: Run) -> None:
    plain = prepared(run)
    plan = plain.store.plan
    assert (plain.params.patch_size, plain.params.batch_size, plain.params.head) == (
        plan.patch_size,
        plan.batch_size,
        plan.head,
    )
    assert (plain.task.patch_size, plain.task.spacing) == (plan.patch_size, plan.spacing)
    small = prepared(run, preset="small")
    assert (small.params.batch_size, small.params.features, small.params.epochs) == (2, 16, 40)
    covering = tuple(min(96, -(-n // 16) * 16) for n in plan.median_shape)
    assert small.params.patch_size == covering
    mine = prepared(run, preset="small", batch_size=5, epochs=3, patch_size=[16, 32, 48])
    assert (mine.params.batch_size, mine.params.features, mine.params.epochs) == (5, 16, 3)
    assert mine.task.patch_size == (16, 32, 48)


def test_a_preset_may_plan_patch_and_batch_for_its_network(run: Run) -> None:
    found = prepared(dataclasses.replace(run, trainable="resenc_unet"), preset="M")
    expected = patch_and_batch(found.store, planner="resenc_m")
    assert (found.params.patch_size, found.params.batch_size) == expected
    assert expected != (found.store.plan.patch_size, found.store.plan.batch_size)
    assert prepared(run, planner="resenc_m", batch_size=3).params.batch_size == 3
    with pytest.raises(InputError, match="no 'resenc' among planners"):
        prepared(run, planner="resenc")


def test_cases_without_labels_alone_train_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepare(run).store
    cases = {case_id: dataclasses.replace(record, annotated=()) for case_id, record in store.cases.items()}
    bare = dataclasses.replace(store, cases=cases)
    monkeypatch.setattr(preparing, "open_stores", lambda _: bare)
    with pytest.raises(StoreError, match="fold 0 has no annotated training cases"):
        prepare(run)


def test_what_cannot_be_trained_is_refused_before_anything_starts(run: Run) -> None:
    with pytest.raises(RecipeError, match=r"no 'epoch' among parameters of unet .*did you mean 'epochs'"):
        prepared(run, epoch=3)
    with pytest.raises(RecipeError, match=r"patch_size=\(40, 50, 50\) cannot be halved"):
        demand_memory(prepared(run, patch_size=[40, 50, 50]), available=1 << 40)
    with pytest.raises(RecipeError, match="no 'huge' among presets of unet"):
        prepared(run, preset="huge")
    with pytest.raises(StoreError):
        prepare(dataclasses.replace(run, store=run.store + "-absent"))
    with pytest.raises(ResourceError, match=r"patch_size=\(256, 512, 512\) with batch_size=4 needs about .* TB .*4 GB"):
        demand_memory(prepared(run, patch_size=[256, 512, 512], batch_size=4, features=64), available=4 << 30)
    demand_memory(prepare(run), available=4 << 30)


@pytest.mark.usefixtures("cluster")
def test_request_beyond_the_cluster_names_what_there_is() -> None:
    cores = int(ray.cluster_resources()["CPU"])
    with pytest.raises(ResourceError, match=f"{cores + 1} workers were asked for.*has {cores}; .*workers={cores}"):
        share(workers=cores + 1)
    with pytest.raises(
        ResourceError, match=f"{cores + 1} runs of 1 workers at once .*has {cores}; .*concurrent={cores}"
    ):
        share(workers=1, concurrent=cores + 1)
    assert share(workers=1, concurrent=cores).cpus == plain_resources().cpus == 1
    assert share(workers=1).cpus == cores
    beyond = Run(trainable="unet", store="nowhere", workers=cores + 1)
    with pytest.raises(
        ResourceError, match=rf"{cores + 1} workers with 1 CPU each .*hold {cores} \(1 node of {cores} CPU"
    ):
        as_trainable(beyond, resources=plain_resources())
    assert (most_concurrent(workers=1), most_concurrent(workers=cores)) == (cores, 1)


@pytest.mark.usefixtures("in_process")
def test_scans_are_validated_between_and_the_best_epoch_becomes_the_model(run: Run, tmp_path: Path) -> None:
    params = {**run.params, "epochs": 3, "ema": 0.5, "scan_validation_every": 2, "select": "best", "nsd_tolerance": 2.0}
    folder, chosen = tmp_path / "run", dataclasses.replace(run, workers=1, params=params)
    result = fit(chosen, folder=folder, resources=Resources(cpus=1))
    epochs = epochs_of(folder)
    assert ["dice_scan" in epoch for epoch in epochs] == [False, True, False] and "dice_scan" not in result
    between = json.loads((folder / "validation-00002.json").read_text())
    assert summarise(between, prefix="dice_scan")["dice_scan"] == epochs[1]["dice_scan"]
    assert result["seconds_per_case"] > 0 and result["memory_gb"] > 0
    surfaces = json.loads((folder / "validation_nsd.json").read_text())
    assert surfaces.keys() == between.keys()
    assert summarise(surfaces, prefix="nsd").items() <= result.items()
    structures = {name for name in epochs[1] if name.startswith("dice_scan/")}
    assert structures == {name.replace("dice/", "dice_scan/") for name in result if name.startswith("dice/")}
    smoothed = [epoch["patch_dice_smoothed"] for epoch in epochs]
    best = smoothed.index(max(smoothed))
    model = checkpoint.load(folder / "model")
    assert (model.epoch, model.metrics["patch_dice_smoothed"]) == (best + 1, smoothed[best])
    (kept,) = (folder / "checkpoints" / "best").iterdir()
    assert kept.name == f"epoch-{best:05d}"
    assert torch.equal(next(iter(model.weights.values())), next(iter(checkpoint.load(kept).weights.values())))


@pytest.mark.usefixtures("cluster")
def test_two_workers_train_once_and_a_longer_run_goes_on_from_the_checkpoint(
    run: Run, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    first, listening = Written(tmp_path / "first.jsonl"), Listening(tmp_path / "listening.txt")
    result = fit(run, folder=folder, resources=Resources(cpus=1), callbacks=[first, listening])
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert listening.path.read_text() and set(listening.path.read_text().split()) <= loopback
    assert {path.name for path in folder.iterdir()} == {
        ".attempt", "checkpoints", "model", "record", "validation.json", "result.json",
    }  # fmt: skip
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best", "epoch-00001"}
    record = folder / "record"
    assert json.loads((record / "run.json").read_text()) == json.loads((folder / "model" / "run.json").read_text())
    assert json.loads((record / "plan.json").read_text()) == prepare(run).store.plan.to_json()
    held_out = prepare(run).store.validation(run.fold)
    assert {path.stem for path in (record / "overlays").iterdir()} == set(held_out[:3]), "either worker draws its own"
    assert (result["status"], result["epoch"], result["epochs"]) == ("finished", 2, 2)
    assert json.loads((folder / "result.json").read_text()) == result
    assert checkpoint.verify(folder / "model") == result["digest"]
    assert not checkpoint.load(folder / "model").optimizer
    scores = json.loads((folder / "validation.json").read_text())
    assert set(scores) == set(prepare(run).store.validation(run.fold))
    assert result["dice"] == summarise(scores)["dice"]
    reports = first.read()
    assert [[entry["epoch"] for entry in ranks] for ranks in reports] == [[1, 1], [2, 2], [2, 2]]
    assert all(ranks[0]["loss"] == ranks[1]["loss"] for ranks in reports)
    assert [(epoch["epoch"], epoch["loss"]) for epoch in epochs_of(folder)] == [
        (ranks[0]["epoch"], ranks[0]["loss"]) for ranks in reports[:2]
    ]
    assert ["system/cpu_percent" in ranks[0] for ranks in reports] == [True, True, False]

    kept = folder / "checkpoints" / "epoch-00001" / "manifest.json"
    before = kept.stat().st_mtime_ns
    assert fit(run, folder=folder, resources=Resources(cpus=1)) == result
    assert kept.stat().st_mtime_ns == before

    request.getfixturevalue("in_process")
    scored_again = tmp_path / "scored-again"  # its workers died after the last epoch, before the result was written
    shutil.copytree(folder / "checkpoints", scored_again / "checkpoints")
    alone = dataclasses.replace(run, workers=1)
    again = fit(alone, folder=scored_again, resources=Resources(cpus=1))["dice"]
    assert again == pytest.approx(result["dice"], rel=1e-4)  # sums depend on the number of threads
    assert epochs_of(scored_again) == [], "an epoch was trained again"

    longer = tmp_path / "longer"
    shutil.copytree(folder / "checkpoints", longer / "checkpoints")
    (longer / "checkpoints" / ".epoch-00002.partial-1").mkdir()
    (longer / "checkpoints" / "epoch-00002").mkdir()
    reported: list[dict[str, Any]] = []
    report = train.report
    monkeypatch.setattr(train, "report", lambda metrics: (reported.append(metrics), report(metrics)))
    more = dataclasses.replace(run, workers=1, params={**run.params, "epochs": 3})
    final = fit(more, folder=longer, resources=Resources(cpus=1))
    assert [epoch["epoch"] for epoch in epochs_of(longer)] == [3]
    assert (final["status"], final["epoch"]) == ("finished", 3)
    assert {path.name for path in (longer / "checkpoints").iterdir()} == {"best", "epoch-00002"}
    assert len(list((longer / "checkpoints" / "best").iterdir())) == 1
    assert reported[0] == {"damaged": "starting from checkpoint epoch-00001: found epoch-00002 damaged"}


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_runs_out_of_memory_is_not_started_again(run: Run, tmp_path: Path) -> None:
    """Its patch has 2^48 voxels: no machine has addresses for so many."""
    huge = {**run.params, "patch_size": [1 << 16] * 3, "augmentation": "none", "mirror": "none"}
    told, folder = Written(tmp_path / "failures.jsonl"), tmp_path / "run"
    with pytest.raises(WorkerGroupError):
        fit(
            dataclasses.replace(run, workers=1, params=huge),
            folder=folder,
            resources=Resources(cpus=1),
            callbacks=[told],
        )
    assert noted(folder) == {"patch_size": [1 << 16] * 3, "batch_size": 2}
    assert len(told.read()) == 1, "it was started again"


def test_what_ray_train_runs_beside_a_training_for_others_is_left_out(tmp_path: Path) -> None:
    trainer = training._trainer(
        Run(trainable="unet", store="nowhere"),
        place=Mirror(uri=str(tmp_path), folder=tmp_path),
        attempt="",
        resources=Resources(cpus=1),
        callbacks=[],
    )
    usual, ours = (
        {type(callback).__name__ for callback in kind._create_default_callbacks(trainer)}
        for kind in (TorchTrainer, type(trainer))
    )
    assert usual - ours == training.LEFT_OUT


class Failing:
    """A training whose workers fail as often as there are errors, and then finish. `None` is the end of an epoch."""

    def __init__(self, *errors: Exception | None, folder: Path) -> None:
        self.errors, self.folder, self.epochs = list(errors), folder, 0

    def fit(self) -> None:
        while self.errors:
            error = self.errors.pop(0)
            if error is not None:
                raise error if isinstance(error, RayActorError) else WorkerGroupError("closed by peer", {0: error})
            self.epochs += 1
            (self.folder / RECORD).mkdir(exist_ok=True)
            add_epoch(self.folder, {"epoch": self.epochs})
        (self.folder / "result.json").write_text('{"status": "finished"}')


def test_dead_workers_are_replaced_unless_memory_was_short(
    tiny_store: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = np.zeros((16, 32, 32), dtype=np.uint8)
    label[:8] = 1
    liver = LabelSet(structures=("liver",))
    pair = ",".join(str(tiny_store(name, labels=liver, cases={"c": label})) for name in "ab")
    params = {"patch_size": [16, 32, 32], "batch_size": 3}
    chosen, folder = Run(trainable="unet", store=pair, fold="all", params=params), tmp_path / "run"
    monkeypatch.setattr(training, "free_orphans", lambda: None)

    def fitted(*errors: Exception | None) -> Any:
        failing = Failing(*errors, folder=folder)
        monkeypatch.setattr(training, "_trainer", lambda *_, **__: failing)
        try:
            return fit(chosen, folder=folder, resources=Resources(cpus=1))
        except (WorkerGroupError, RayActorError):
            return f"{len(failing.errors)} not met"

    lost = RuntimeError("a worker died")
    assert fitted(*[lost] * 5) == "2 not met"
    assert noted(folder) is None
    assert fitted(lost, torch.OutOfMemoryError("CUDA out of memory."), lost) == "1 not met"
    assert noted(folder) == {"patch_size": [16, 32, 32], "batch_size": 3}
    shutil.rmtree(folder)
    assert fitted(None, lost, None, None, *[lost] * 5) == "1 not met", "the first of the five followed an epoch"
    shutil.rmtree(folder)
    died = ActorDiedError()
    assert fitted(*[lost, None] * 9, died, lost) == {"status": "finished"}
    assert noted(folder) is None, "it had memory enough in the end"


@pytest.mark.usefixtures("in_process")
def test_a_training_that_another_process_took_over_writes_no_further_epoch(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was cut off trains on while Tune has begun the trial again elsewhere."""
    folder, alone = tmp_path / "run", dataclasses.replace(run, workers=1)

    def taken_over(*values: Any) -> None:
        add_epoch(*values)
        begin_attempt(str(folder))

    monkeypatch.setattr(worker, "add_epoch", taken_over)
    with pytest.raises(SupersededError, match=r"run: another process trains this run now"):
        fit(alone, folder=folder, resources=Resources(cpus=1))
    assert [entry["epoch"] for entry in epochs_of(folder)] == [1]
    assert [path.name for path in (folder / "checkpoints").glob("epoch-*")] == ["epoch-00000"]


def test_who_was_superseded_does_not_try_again(
    tiny_store: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = np.ones((16, 32, 32), dtype=np.uint8)
    store = str(tiny_store("a", labels=LabelSet(structures=("liver",)), cases={"c": label}))
    tries = []

    class Cut:
        def fit(self) -> None:
            tries.append(begin_attempt(str(tmp_path)))
            raise WorkerGroupError("the node went", {0: RuntimeError("gone")})

    monkeypatch.setattr(training, "free_orphans", lambda: None)
    monkeypatch.setattr(training, "_trainer", lambda *_, **__: Cut())
    with pytest.raises(SupersededError):
        fit(Run(trainable="unet", store=store), folder=tmp_path, resources=Resources(cpus=1))
    assert len(tries) == 1
