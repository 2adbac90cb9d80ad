"""FLARE22's coarse-to-fine: the paper's numbers, its two parts by the loop alone, and both as runs with what they segment."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segsweep import recipes
from segsweep.data.planning import Normalisation
from segsweep.data.readers import read_labels
from segsweep.data.store import open_store
from segsweep.data.structures import LabelTable
from segsweep.errors import RecipeError
from segsweep.inference.prediction import predict
from segsweep.inference.scans import find_scans
from segsweep.learning import checkpoint
from segsweep.learning.checkpoint import Snapshot
from segsweep.learning.consistency import consistency
from segsweep.learning.crop import Cropped
from segsweep.learning.inference import CleanUp, Inference
from segsweep.learning.loop import train
from segsweep.learning.losses import build_loss
from segsweep.learning.patches import TrainingCase
from segsweep.learning.setting import Setting
from segsweep.learning.supervision import Supervision
from segsweep.learning.task import Task
from segsweep.learning.transfer import transfer
from segsweep.models.ensemble import load_predictor
from segsweep.run import Run
from segsweep.sweeps import single
from segsweep.sweeps.preparing import prepare
from segsweep.workspace import Workspace

coarse_to_fine = recipes.load("trainables", name="coarse_to_fine")
ORGANS = recipes.load("datasets", name="flare22").LABELS
PLANNED = Normalisation(scheme="ct", low=-150.0, high=290.0, mean=80.0, deviation=60.0)
FLARE = Task(
    channels=("CT",),
    table=LabelTable(labels=ORGANS, atoms=((), *((index,) for index in range(13)))),
    head="softmax",
    patch_size=(96, 128, 160),
    spacing=(2.5, 0.8, 0.8),
    normalisation=(PLANNED,),
)
SMALL = {"features": 4, "most_features": 8, "levels": 3}


def params(**values: Any) -> Any:
    return recipes.build_params(coarse_to_fine, values=values)


def fine(**values: Any) -> Any:
    return params(preset="fine", initial="models:/flare22-coarse_to_fine/1", **values)


def test_both_parts_are_the_papers_network_of_30_79_million() -> None:
    tasks = [coarse_to_fine.task(part, FLARE) for part in (params(), fine())]
    with torch.device("meta"):
        coarse, finer = (coarse_to_fine.build(part, task) for part, task in zip((params(), fine()), tasks, strict=True))
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (coarse, finer)]
    assert shapes[0] == shapes[1], "all of the coarse model's weights fit the fine one"
    count = sum(value.numel() for value in coarse.parameters())
    # Transposed convolutions and heads have biases in nnU-Net v2, and none in v1, with which the paper was made.
    biases = sum(
        value.numel()
        for name, value in coarse.named_parameters()
        if name.endswith("bias") and ("transpconvs" in name or "seg_layers" in name)
    )
    assert (count, biases) == (30_795_654, 870)
    assert round((count - biases) / 1e6, 2) == 30.79


def test_the_defaults_are_the_papers_runs() -> None:
    coarse, finer = params(), fine()
    assert (coarse.patch_size, coarse.batch_size, coarse.optimizer) == ((96, 128, 160), 2, "sgd")
    assert (coarse.epochs, coarse.learning_rate, finer.epochs, finer.learning_rate) == (500, 0.01, 150, 0.001)
    assert coarse.augmentation == finer.augmentation == "flare22"
    assert dataclasses.replace(coarse, part="fine", epochs=150, learning_rate=1e-3, initial=finer.initial) == finer


def test_each_part_has_its_spacing_and_normalisation() -> None:
    other = Normalisation(scheme="z-score")
    both = dataclasses.replace(FLARE, channels=("CT", "PET"), normalisation=(PLANNED, other))
    coarse = coarse_to_fine.task(params(), both)
    assert coarse.spacing == (3.0, 2.0, 2.0)
    assert coarse.normalisation == (Normalisation(scheme="z-score", low=-325, high=325), other)
    finer = coarse_to_fine.task(fine(), both)
    assert finer.spacing == (2.0, 1.5, 1.5)
    assert finer.normalisation == (Normalisation(scheme="ct", low=-325, high=325, mean=80, deviation=60), other)
    code = coarse_to_fine.task(fine(window=[-325, 267], spacing=[4, 4, 4]), FLARE)
    assert (code.normalisation[0].high, code.spacing) == (267, (4.0, 4.0, 4.0))


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(RecipeError, match="part=fine needs the coarse model"):
        coarse_to_fine.task(params(preset="fine"), FLARE)
    sigmoid = dataclasses.replace(FLARE, head="sigmoid")
    with pytest.raises(RecipeError, match="head=sigmoid cannot be used with unlabelled scans"):
        coarse_to_fine.task(params(head="sigmoid"), sigmoid)
    assert coarse_to_fine.task(params(head="sigmoid", consistency_weight=0), sigmoid)
    assert coarse_to_fine.task(fine(head="sigmoid"), sigmoid)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window", [325, -325]), ("spacing", [0, 1, 1]), ("margin_mm", -1), ("consistency_weight", -0.1),
        ("consistency_divisor", 0), ("plain_epochs", -1), ("farthest_mm", -5),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"{name}=.*cannot be used"):
        params(**{name: value})


def test_the_last_epochs_of_the_fine_part_are_plain_and_go_on_with_the_decay() -> None:
    (coarse,) = coarse_to_fine.stages(params())
    assert (coarse.epochs, coarse.rate(0), coarse.augment, coarse.unlabelled) == (500, 0.01, True, True)
    first, last = coarse_to_fine.stages(fine())
    assert (first.epochs, last.epochs, first.augment, last.augment) == (140, 10, True, False)
    assert not first.unlabelled and not last.unlabelled
    rates = [stage.rate(epoch) for stage in (first, last) for epoch in range(stage.epochs)]
    assert rates == pytest.approx([1e-3 * (1 - epoch / 150) ** 0.9 for epoch in range(150)])
    assert [stage.epochs for stage in coarse_to_fine.stages(fine(epochs=4))] == [4]
    assert [stage.unlabelled for stage in coarse_to_fine.stages(params(consistency_weight=0))] == [False]


def test_the_tables_schedule_halves_after_200_epochs() -> None:
    (coarse,) = coarse_to_fine.stages(params(schedule="step"))
    assert [coarse.rate(epoch) for epoch in (199, 200, 400)] == [0.01, 0.005, 0.0025]
    assert {stage.rate(epoch) for stage in coarse_to_fine.stages(fine(schedule="step")) for epoch in range(9)} == {1e-3}


@pytest.mark.parametrize("variant", ["paper", "urpc"])
@pytest.mark.parametrize("divisor", [None, 3])
def test_unlabelled_samples_add_the_chosen_consistency_of_four_heads(variant: Any, divisor: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 14, *[32 >> level] * 3, generator=generator) for level in range(5)]
    atoms = torch.randint(0, 14, (2, 32, 32, 32), generator=generator)
    annotated = torch.tensor([[True] * 13, [False] * 13])
    chosen = params(consistency=variant, consistency_divisor=divisor)
    value = coarse_to_fine.loss(chosen, FLARE)(levels, atoms, annotated, progress=1.0)
    labelled = [level[:1] for level in levels]
    supervised = build_loss("dice_ce", task=FLARE, batch_dice=False, supervision=Supervision(heads=4))
    base = supervised(labelled, atoms[:1], annotated[:1])
    term = consistency([level[1:] for level in levels[:4]], variant=variant, divisor=divisor)
    assert float(value) == pytest.approx(float(base + 0.1 * term), rel=1e-5)
    assert float(0.1 * term) > 1e-3
    assert float(coarse_to_fine.loss(fine(), FLARE)(levels, atoms, annotated, progress=1.0)) == pytest.approx(
        float(base), rel=1e-5
    )


def test_whole_scans_are_segmented_as_the_paper_does() -> None:
    rules = CleanUp(largest=ORGANS.structures, anchors=("aorta", "inferior_vena_cava"), farthest_mm=170.0)
    assert coarse_to_fine.inference(params(), FLARE) == Inference(overlap=0.0, clean_up=rules)
    assert coarse_to_fine.inference(fine(), FLARE) == Inference(overlap=0.5, margin_mm=40.0, clean_up=rules)
    code = fine(keep_largest=["liver"], anchors=["liver"], farthest_axes="z", margin_mm=20)
    found = coarse_to_fine.inference(code, FLARE)
    assert found.clean_up == CleanUp(largest=("liver",), anchors=("liver",), farthest_mm=170.0, axes="z")
    assert found.margin_mm == 20.0
    assert coarse_to_fine.inference(params(keep_largest="none"), FLARE).clean_up.largest == ()


def test_the_fine_part_sees_the_surroundings_of_the_organs(make_case: Callable[..., TrainingCase]) -> None:
    case = make_case(0, shape=(40, 40, 40))
    z, y, x = (int(value) for value in case.grid.foreground[1].min(axis=0))
    task = dataclasses.replace(FLARE, spacing=(2.0, 1.5, 1.5))
    grid = coarse_to_fine.trained_part(case, fine(margin_mm=3.1), task).grid
    assert isinstance(grid, Cropped)
    expected = [slice(max(0, at - more), min(40, at + 10 + more)) for at, more in ((z, 2), (y, 3), (x, 3))]
    assert list(grid.region) == expected
    assert coarse_to_fine.trained_part(case, params(), task) is case


def test_both_parts_learn_by_the_loop_alone(
    make_setting: Callable[..., Setting], make_case: Callable[..., TrainingCase]
) -> None:
    quick = {**SMALL, "optimizer": "adamw", "learning_rate": 5e-3, "foreground": 1.0, "patch_size": (16, 16, 16)}
    setting = make_setting("coarse_to_fine", epochs=4, spacing=[1, 1, 1], consistency_weight=1.0, **quick)
    unlabelled = tuple(
        dataclasses.replace(make_case(seed, shape=(20, 20, 20)), annotated=(False,)) for seed in (11, 12)
    )
    coarse = list(train(dataclasses.replace(setting, unlabelled=unlabelled)))
    assert coarse[-1].metrics["loss"] < coarse[0].metrics["loss"]
    finer = make_setting(
        "coarse_to_fine", part="fine", initial="x", epochs=4, plain_epochs=2, spacing=[1, 1, 1], margin_mm=4, **quick
    )
    assert all(isinstance(case.grid, Cropped) for case in finer.training)
    assert not transfer(finer.model, weights=setting.model.state_dict()).new
    epochs = list(train(finer))
    assert len(epochs) == 4
    assert epochs[-1].metrics["loss"] < coarse[0].metrics["loss"]
    assert epochs[-1].metrics["patch_dice"] > 0.5


@pytest.mark.usefixtures("cluster")
def test_the_papers_patch_and_batch_come_before_the_plans(phantom_store: Path) -> None:
    run = Run(trainable="coarse_to_fine", store=str(phantom_store), params={"head": "softmax"})
    own = prepare(run)
    assert (own.params.patch_size, own.params.batch_size) == ((96, 128, 160), 2)
    assert own.task.patch_size != own.store.plan.patch_size
    given = prepare(dataclasses.replace(run, params={"head": "softmax", "patch_size": [32, 48, 64], "batch_size": 3}))
    assert (given.task.patch_size, given.params.batch_size) == ((32, 48, 64), 3)
    with pytest.raises(RecipeError, match="head=sigmoid cannot be used with unlabelled scans"):
        prepare(dataclasses.replace(run, params={}))


def write_untrained(run: Run, *, folder: Path) -> Path:
    """The checkpoint of a run's network before any training."""
    prepared = prepare(run)
    weights = prepared.method.build(prepared.params, task=prepared.task).state_dict()
    document = {
        "run": run.to_json(),
        "task": prepared.task.to_json(),
        "params": recipes.params_json(prepared.params),
    }
    checkpoint.save(folder, snapshot=Snapshot(weights=weights, metrics={}, epoch=0), run=document)
    return folder


@pytest.mark.usefixtures("in_process")
def test_a_fine_run_segments_scans_by_itself(phantom_store: Path, tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path / "workspace")
    tiny = {
        **SMALL, "head": "softmax", "epochs": 1, "iterations": 1, "validation_iterations": 1, "plain_epochs": 0,
        "patch_size": [16, 32, 32], "spacing": [8.0, 8.0, 8.0],
    }  # fmt: skip
    run = Run(trainable="coarse_to_fine", store=str(phantom_store), params=tiny)
    coarse = write_untrained(run, folder=tmp_path / "coarse")
    values = {**tiny, "part": "fine", "initial": str(coarse), "margin_mm": 10.0}
    trained = single.train(dataclasses.replace(run, params=values), workspace=workspace)
    assert "dice" in trained.result, "held-out scans are segmented by both"
    kept = checkpoint.finder_of(trained.folder / "model")
    assert kept is not None
    assert (kept / checkpoint.WEIGHTS).read_bytes() == (coarse / checkpoint.WEIGHTS).read_bytes()
    shutil.rmtree(coarse)
    predictor = load_predictor(trained.registered.uri, workspace=workspace)
    assert predictor.members[0].finder is not None and predictor.members[0].inference.margin_mm == 10.0
    scans = find_scans(phantom_store, channels=predictor.table_task.channels, split="validation")[:1]
    done = predict(scans, predictor=predictor, out=tmp_path / "out")
    assert done.written == (scans[0].case_id,) and not done.failures
    found = read_labels(tmp_path / "out" / f"{scans[0].case_id}.nii.gz")
    assert found.geometry.same_grid(open_store(phantom_store).cases[scans[0].case_id].source_geometry)
