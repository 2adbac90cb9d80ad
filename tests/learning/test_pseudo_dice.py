"""Dice on patches: counts of all of them are pooled before they are divided, and an average of weights takes part like any model."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segsweep.learning.batches import Batch, draw
from segsweep.learning.feeding import feed
from segsweep.learning.pseudo_dice import VALIDATION, pseudo_dice
from segsweep.learning.sampling import Turn
from segsweep.learning.setting import Setting, plain

Make = Callable[..., Setting]


class Threshold(nn.Module):
    """Calls a voxel bright from a value on; in training it would fail."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        assert not self.training
        return [torch.cat((torch.zeros_like(x_BCZYX), x_BCZYX - self.value), dim=1)]


def test_counts_are_pooled_over_all_patches(ball_setting: Make) -> None:
    setting = ball_setting(validation_iterations=3)
    found = pseudo_dice(Threshold(0.6), setting=setting)
    hits = false = missed = 0
    for step in range(3):
        turn = Turn(seed=setting.seed, epoch=VALIDATION, step=step)
        batch = draw(setting.validation, task=setting.task, params=plain(setting.params), turn=turn)
        bright, true = batch.image[:, 0] > 0.6, batch.atoms == 1
        hits, false = hits + int((bright & true).sum()), false + int((bright & ~true).sum())
        missed += int((~bright & true).sum())
    assert hits and false and missed
    expected = 2 * hits / (2 * hits + false + missed)
    assert found == pytest.approx({"patch_dice": expected, "patch_dice/bright": expected})


def test_patches_are_the_same_every_time_and_never_augmented(ball_setting: Make) -> None:
    values = [
        pseudo_dice(Threshold(0.6), setting=ball_setting(augmentation=level)) for level in ("nnunet", "none", "none")
    ]
    assert values[0] == values[1] == values[2]


def test_by_quota_every_dataset_has_its_share(ball_setting: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = ball_setting(iterations=500, validation_iterations=10, sampling="quota")
    cases = tuple(dataclasses.replace(setting.validation[0], source=source) for source in range(5))
    seen: list[int] = []

    def counted(logits: Tensor, **_: object) -> Tensor:
        return logits.new_zeros(1, 3)

    def watched(*args: Any, **keywords: Any) -> Iterator[Batch]:
        for batch in feed(*args, **keywords):
            seen.extend(batch.source.unique().tolist())
            yield batch

    monkeypatch.setattr("segsweep.learning.pseudo_dice.feed", watched)
    monkeypatch.setattr("segsweep.learning.pseudo_dice.dice_counts", counted)
    pseudo_dice(Threshold(0.6), setting=dataclasses.replace(setting, validation=cases))
    assert sorted(seen) == sorted([*range(5)] * 2)


def test_what_is_nowhere_has_no_value(ball_setting: Make) -> None:
    setting = ball_setting()
    unknown = tuple(dataclasses.replace(case, annotated=(False,)) for case in setting.validation)
    assert pseudo_dice(Threshold(0.6), setting=dataclasses.replace(setting, validation=unknown)) == {"patch_dice": 0.0}


def test_without_cases_or_iterations_there_is_none(ball_setting: Make) -> None:
    setting = ball_setting()
    assert pseudo_dice(Threshold(0.6), setting=dataclasses.replace(setting, validation=())) == {}
    assert pseudo_dice(Threshold(0.6), setting=ball_setting(validation_iterations=0)) == {}
