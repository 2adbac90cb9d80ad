import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segsweep.data.geometry import Size
from segsweep.data.joint import open_stores
from segsweep.data.store import Store
from segsweep.data.structures import LabelSet
from segsweep.errors import RecipeError
from segsweep.learning.batches import draw
from segsweep.learning.loop import Setting, train
from segsweep.learning.method import load_method
from segsweep.learning.patches import TrainingCase
from segsweep.learning.sampling import Turn
from segsweep.learning.stages import Stage
from segsweep.learning.task import Normalisation, Task
from segsweep.learning.transfer import transfer

METHOD = load_method("multitalent")
SPACING = (2.0, 1.0, 1.0)
TINY = {
    "features": 8, "most_features": 16, "levels": 3, "blocks": (1,), "patch_size": (8, 16, 16), "batch_size": 4, "iterations": 8,
    "augmentation": "none", "mirror": "none", "validation_iterations": 1,
}  # fmt: skip


def params(**values: Any) -> Any:
    return METHOD.params(values)


def task_of(store: Store, *, chosen: Any) -> Task:
    task = Task(
        channels=store.channels,
        table=store.table,
        head=chosen.head,
        patch_size=chosen.patch_size,
        spacing=SPACING,
        normalisation=(Normalisation(scheme="ct", low=-80, high=85, mean=0, deviation=40),),
    )
    return METHOD.task(chosen, task=task)


def cases_of(store: Store, *, task: Task) -> tuple[TrainingCase, ...]:
    names = store.table.labels.structures
    return tuple(
        TrainingCase(
            case_id=case_id,
            grid=store.grid(case_id, SPACING),
            annotated=tuple(name in record.annotated for name in names),
            source=task.sources.index(case_id.partition(".")[0]) if len(task.sources) > 1 else 0,
        )
        for case_id, record in store.cases.items()
    )


def setting(store: Store, *, chosen: Any, stages: Sequence[Stage] | None = None) -> Setting:
    task = task_of(store, chosen=chosen)
    torch.manual_seed(0)
    return Setting(
        model=METHOD.build(chosen, task=task), task=task, params=chosen, stages=tuple(stages or METHOD.stages(chosen)),
        loss=METHOD.loss(chosen, task=task), training=cases_of(store, task=task), validation=(),
    )  # fmt: skip


def box(shape: Size, *, values: Sequence[int] = (1,)) -> np.ndarray:
    """A block of half the height; within it, as many values as are given lie side by side."""
    label = np.zeros(shape, np.uint8)
    for value, part in zip(values, np.array_split(np.arange(4, shape[2] - 4), len(values)), strict=True):
        label[2:8, 4:-4, part[0] : part[-1] + 1] = value
    return label


@pytest.fixture
def joint(tiny_store: Callable[..., Path]) -> Store:
    """Dataset `a` knows liver and spleen, in 4 cases; `b` a liver, in one."""
    two = {f"c{number}": box((12, 20, 20 + number), values=(1, 2)) for number in range(4)}
    stores = [
        tiny_store("a", labels=LabelSet(structures=("liver", "spleen")), cases=two),
        tiny_store("b", labels=LabelSet(structures=("liver",)), cases={"d": box((12, 20, 22))}),
    ]
    return open_stores(",".join(map(str, stores)))


@pytest.fixture
def target(tiny_store: Callable[..., Path]) -> Store:
    """What is fine-tuned on: other structures."""
    labels = LabelSet(structures=("eye", "lens", "brain"))
    return open_stores(tiny_store("t", labels=labels, cases={"e": box((12, 20, 24), values=(1, 2, 3))}))


def rate_and_stage(epoch: int, *, stages: Sequence[Stage]) -> tuple[float, Stage]:
    for stage in stages:
        if epoch < stage.epochs:
            return stage.rate(epoch), stage
        epoch -= stage.epochs
    raise AssertionError("beyond the last stage")


@pytest.mark.parametrize(
    ("epoch", "rate", "name"),
    [
        (0, 1e-4, "heads"), (4, 5e-4, "heads"), (9, 1e-3, "heads"),
        (10, 2e-4, "warm-up"), (34, 5e-3, "warm-up"), (59, 1e-2, "warm-up"),
        (60, 1e-2, "train"), (1030, 0.01 * 0.5**0.9, "train"), (1999, 0.01 * (1 / 1940) ** 0.9, "train"),
    ],
)  # fmt: skip
def test_fine_tuning_rates_are_the_printed_ones(epoch: int, rate: float, name: str) -> None:
    stages = METHOD.stages(params(initial="m"))
    assert sum(stage.epochs for stage in stages) == 2000
    found, stage = rate_and_stage(epoch, stages=stages)
    assert stage.name == name
    assert found == pytest.approx(rate, rel=1e-9)


def test_what_each_stage_trains_and_how() -> None:
    heads, warm_up, training = METHOD.stages(params(initial="m"))
    assert (heads.parameters, heads.optimizer) == (("decoder.seg_layers.",), "amsgrad")
    assert {(stage.parameters, stage.optimizer) for stage in (warm_up, training)} == {((), None)}
    assert params().optimizer == "sgd"
    assert [stage.largest_gradient for stage in (heads, warm_up, training)] == [12.0, 12.0, 12.0]
    heads, warm_up, _ = METHOD.stages(params(initial="m", heads_rate=5e-4, heads_gradient=1.0))
    assert heads.rate(9) == pytest.approx(5e-4)
    assert (heads.largest_gradient, warm_up.largest_gradient) == (1.0, 12.0)


@pytest.mark.parametrize("values", [{}, {"part": "pretraining"}, {"part": "pretraining", "initial": "m"}])
def test_nothing_warms_up_without_a_model_to_fine_tune(values: dict[str, str]) -> None:
    (stage,) = METHOD.stages(params(**values))
    assert (stage.schedule, stage.epochs, stage.learning_rate, stage.parameters) == ("poly", 2000, 1e-2, ())


def test_the_part_brings_its_head_and_loss() -> None:
    assert [params(part="pretraining", head="softmax").head, params(head="sigmoid").head] == ["sigmoid", "softmax"]
    assert [params(part="pretraining").loss, params().loss, params(loss="dice_topk").loss] == [
        "multitalent", "dice_ce", "dice_topk",
    ]  # fmt: skip
    assert params(preset="pretraining").part == params(preset="released").part == "pretraining"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"initial": "m", "epochs": 60}, "more than the 60"),
        ({"heads_epochs": 0}, "heads_epochs=0"),
        ({"heads_rate": -1e-3}, r"heads_rate=-0\.001"),
        ({"heads_gradient": 0.0}, r"heads_gradient=0\.0"),
        ({"part": "pretraining", "loss": "ce"}, "loss=ce"),
        ({"spacing": (0.0, 1.0, 1.0)}, "spacing="),
        ({"intensities": (10.0, 10.0, 0.0, 1.0)}, "intensities="),
        ({"intensities": (0.0, 10.0, 0.0, 0.0)}, "intensities="),
    ],
)
def test_impossible_parameters_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        params(**values)


def test_the_released_plan_brings_spacing_and_window(joint: Store) -> None:
    task = task_of(joint, chosen=params(preset="released"))
    assert (task.patch_size, task.spacing) == ((96, 192, 192), (1.5, 1.0, 1.0))
    assert task.normalisation == (Normalisation(scheme="ct", low=-927, high=275, mean=63.44, deviation=175.48),)
    assert task_of(joint, chosen=params()).normalisation[0].low == -80, "else it is the store's"


def test_the_paper_network(joint: Store) -> None:
    chosen = params()
    task = dataclasses.replace(task_of(joint, chosen=chosen), spacing=(3.0, 0.542, 0.542))
    with torch.device("meta"):
        model = METHOD.build(chosen, task=task)
        plain = METHOD.build(params(network="unet"), task=task)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    ups = [shapes[f"decoder.transpconvs.{level}.weight"][2:] for level in range(6)]
    assert ups == [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)], "the deepest first"
    kernels = [shapes[f"encoder.stages.{level}.blocks.0.conv1.conv.weight"] for level in range(7)]
    assert [shape[2:] for shape in kernels] == [(1, 3, 3)] * 2 + [(3, 3, 3)] * 5
    assert [shape[0] for shape in kernels] == [30, 60, 120, 240, 320, 320, 320]
    blocks = [
        sum(f"encoder.stages.{level}.blocks.{n}.conv1.conv.weight" in shapes for n in range(9)) for level in range(7)
    ]
    assert blocks == [1, 2, 3, 4, 4, 4, 4]
    assert "decoder.stages.0.convs.1.conv.weight" not in shapes, "the decoder convolves once a level"
    twice = ("encoder.stages.0.0.convs.1.conv.weight", "decoder.stages.0.convs.1.conv.weight")
    assert set(twice) <= {name for name, _ in plain.named_parameters()}


def pretraining_loss(joint: Store) -> Callable[..., Tensor]:
    chosen = params(**TINY, part="pretraining")
    task = task_of(joint, chosen=chosen)
    loss, atoms = (
        METHOD.loss(chosen, task=task),
        torch.randint(0, 4, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0)),
    )
    return lambda logits, annotated: loss([logits], atoms, torch.tensor(annotated))


def test_outputs_of_other_datasets_get_no_gradient(joint: Store) -> None:
    logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    pretraining_loss(joint)(logits, [[True, True, False], [True, True, False]]).backward()
    assert logits.grad is not None
    assert not logits.grad[:, 2].any(), "b/liver"
    assert logits.grad[:, :2].abs().amin(dim=(0, 2, 3, 4)).gt(0).all()


def test_a_second_class_adds_to_the_loss(joint: Store) -> None:
    loss, logits = pretraining_loss(joint), torch.randn(2, 3, 4, 4, 4)
    liver, spleen = ([[index == only for index in range(3)]] * 2 for only in (0, 1))
    both = loss(logits, [[True, True, False]] * 2)
    assert float(both) == pytest.approx(float(loss(logits, liver) + loss(logits, spleen)), rel=1e-5)


def test_large_datasets_are_drawn_by_the_root_of_their_size(joint: Store) -> None:
    chosen = params(**{**TINY, "batch_size": 300, "patch_size": (8, 8, 8)}, part="pretraining")
    task = task_of(joint, chosen=chosen)
    batch = draw(cases_of(joint, task=task), task=task, params=chosen, turn=Turn(seed=1))
    # 4 cases against 1: sqrt(4) to sqrt(1), not 4 to 1; the deviation of 300 draws is 0.027.
    assert float((batch.source == 0).float().mean()) == pytest.approx(2 / 3, abs=0.08)
    assert torch.equal(batch.annotated[:, 0], batch.source == 0)


def test_heads_start_new_even_where_as_many_structures_were_learned(target: Store) -> None:
    chosen = params(**TINY)
    task = task_of(target, chosen=chosen)
    torch.manual_seed(0)
    first, second = METHOD.build(chosen, task=task), METHOD.build(chosen, task=task)
    weights = first.state_dict()
    report = transfer(second, weights=weights, fitted=METHOD.adapt(weights, model=second))
    heads = {f"decoder.seg_layers.{level}.{part}" for level in (0, 1) for part in ("weight", "bias")}
    assert set(report.new) == set(report.dropped) == heads
    assert not torch.equal(second.state_dict()["decoder.seg_layers.1.weight"], weights["decoder.seg_layers.1.weight"])


def test_pre_training_then_fine_tuning_of_heads_and_of_all(joint: Store, target: Store) -> None:
    first = setting(joint, chosen=params(**TINY, part="pretraining", epochs=6))
    assert first.model(torch.zeros(1, 1, 8, 16, 16))[0].shape[1] == 3, "an output for each dataset's structure"
    losses = [epoch.metrics["loss"] for epoch in train(first)]
    assert losses[-1] < losses[0] - 0.3

    chosen = params(**TINY, initial="m", epochs=8, heads_epochs=2, warmup_epochs=2)
    second = setting(target, chosen=chosen)
    report = transfer(second.model, weights=first.model.state_dict())
    assert report.new and all(name.startswith("decoder.seg_layers.") for name in report.new)
    begin = {name: value.clone() for name, value in second.model.state_dict().items()}
    losses = []
    for epoch in train(second):
        losses.append(epoch.metrics["loss"])
        if epoch.number == chosen.heads_epochs - 1:
            changed = {name for name, value in second.model.state_dict().items() if not torch.equal(value, begin[name])}
            finest = {f"decoder.seg_layers.1.{name}" for name in ("weight", "bias")}
            assert finest <= changed <= set(report.new), "heads alone"
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0] - 0.1
    assert not torch.equal(
        second.model.get_parameter("encoder.stem.convs.0.conv.weight"), begin["encoder.stem.convs.0.conv.weight"]
    )
