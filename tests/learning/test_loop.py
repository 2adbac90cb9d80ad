"""The loop learns, and a training that stops after any epoch and goes on gives the weights of one that did not, bit by bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from segsweep.errors import RecipeError
from segsweep.learning import checkpoint
from segsweep.learning.loop import train
from segsweep.learning.setting import Setting
from segsweep.learning.stages import Stage

Make = Callable[..., Setting]

# Heads alone, then all with other momenta, and last without augmentation, on labelled and unlabelled patches, half of the network off.
STAGES = (
    Stage(name="head", epochs=1, learning_rate=0.05, schedule="rise", parameters=("head.",), optimizer="amsgrad"),
    Stage(name="all", epochs=2, learning_rate=0.05, unlabelled=True, switches={"deep": False}),
    Stage(name="end", epochs=1, learning_rate=0.01, schedule="step", augment=False, switches={"deep": True}),
)
# All, then less, with gradients that are clipped.
NARROWED = (
    Stage(name="all", epochs=3, learning_rate=0.05),
    Stage(name="head", epochs=1, learning_rate=0.05, parameters=("head.",), largest_gradient=0.01),
)


def assert_same_weights(setting: Setting, other: Setting) -> None:
    expected = other.model.state_dict()
    for name, value in setting.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_it_learns(ball_setting: Make) -> None:
    epochs = list(train(ball_setting(epochs=12)))
    assert epochs[-1].metrics["loss"] < epochs[0].metrics["loss"]
    assert epochs[-1].metrics["patch_dice"] > 0.6


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_that_diverges_ends_before_it_replaces_a_good_checkpoint(ball_setting: Make, optimizer: str) -> None:
    stages = tuple(Stage(name=f"{rate}", epochs=1, learning_rate=rate) for rate in (0.05, 1e30))
    epochs = train(ball_setting(optimizer=optimizer, stages=stages))
    assert next(epochs).number == 0
    with pytest.raises(RecipeError, match=r"epoch 2: the weights are not finite .* choose a lower learning_rate"):
        next(epochs)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"optimizer": "adamw"},
        {"optimizer": "adam", "accumulate": 2, "recompute": True, "dropout": 0.3},
        {"ema": 0.9},
        {"precision": "bfloat16"},
        {"precision": "float16", "ema": 0.5, "optimizer": "adamw"},
        {"stages": NARROWED},
        {"stages": STAGES, "unlabelled": 2, "ema": 0.9, "precision": "float16"},
    ],
    ids=lambda params: " ".join(params) or "plain",
)
def test_resuming_after_any_epoch_changes_nothing(ball_setting: Make, tmp_path: Path, params: dict) -> None:
    params = {"epochs": 4, **params}
    whole = ball_setting(**params)
    metrics = []
    for epoch in train(whole):
        metrics.append(epoch.metrics)
        checkpoint.save(tmp_path / f"{epoch.number}", snapshot=epoch.snapshot(), run={})
    assert len(metrics) == 4
    kept = checkpoint.load(tmp_path / "3")
    for after in range(4):
        second = ball_setting(**params)
        epochs = list(train(second, resume=checkpoint.load(tmp_path / f"{after}")))
        assert [epoch.metrics for epoch in epochs] == metrics[after + 1 :]
        assert_same_weights(second, whole)
        for name, value in epochs[-1].snapshot().weights.items() if epochs else ():
            assert torch.equal(value, kept.weights[name]), name


def test_the_average_is_validated_and_kept(ball_setting: Make) -> None:
    setting = ball_setting(ema=0.9)
    epochs, plain = list(train(setting)), list(train(ball_setting()))
    assert [epoch.metrics["loss"] for epoch in epochs] == [epoch.metrics["loss"] for epoch in plain]
    epoch, snapshot = epochs[-1], epochs[-1].snapshot()
    assert epoch.metrics["patch_dice"] != plain[-1].metrics["patch_dice"]
    assert torch.equal(snapshot.raw["head.weight"], setting.model.state_dict()["head.weight"])
    assert torch.equal(snapshot.weights["head.weight"], epoch.model.state_dict()["head.weight"])
    assert not torch.equal(snapshot.raw["head.weight"], snapshot.weights["head.weight"])
    assert set(snapshot.raw) == set(snapshot.weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NCCL needs a GPU")
def test_metrics_of_several_gpus_are_pooled(ball_setting: Make) -> None:
    device = torch.device("cuda")
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    try:
        epochs = list(train(ball_setting(device=device)))
    finally:
        dist.destroy_process_group()
    assert all(0.0 <= epoch.metrics["patch_dice"] <= 1.0 for epoch in epochs)


def test_a_stage_trains_only_what_it_names(ball_setting: Make) -> None:
    stages = (
        Stage(name="head", epochs=1, learning_rate=0.05, schedule="rise", parameters=("head.",)),
        Stage(name="all", epochs=1, learning_rate=0.05),
    )
    staged = ball_setting(stages=stages)
    before = {name: value.clone() for name, value in staged.model.state_dict().items()}
    epochs = train(staged)
    assert next(epochs).total == 2
    after_head = {name: value.clone() for name, value in staged.model.state_dict().items()}
    assert torch.equal(after_head["stages.0.0.weight"], before["stages.0.0.weight"])
    assert not torch.equal(after_head["head.weight"], before["head.weight"])
    next(epochs)
    assert not torch.equal(staged.model.state_dict()["stages.0.0.weight"], before["stages.0.0.weight"])


def test_rates_are_those_of_the_stages(ball_setting: Make) -> None:
    rates = [epoch.metrics["learning_rate"] for epoch in train(ball_setting(stages=STAGES, unlabelled=1))]
    assert rates == pytest.approx([0.05, 0.05, 0.05 * 0.5**0.9, 0.01])


def test_switches_hold_from_their_stage_on(ball_setting: Make) -> None:
    held = [bool(epoch.model.get_buffer("deep")) for epoch in train(ball_setting(stages=STAGES, unlabelled=1))]
    assert held == [True, False, False, True]
