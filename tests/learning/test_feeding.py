"""Batches come in the order of their turns, as `draw` makes them, with everything on the network's device."""

from collections.abc import Callable

import pytest
import torch

from segsweep.errors import InputError
from segsweep.learning.batches import draw
from segsweep.learning.feeding import feed
from segsweep.learning.sampling import Turn
from segsweep.learning.setting import Setting

Make = Callable[..., Setting]


def test_batches_are_those_of_the_turns(ball_setting: Make) -> None:
    setting = ball_setting(unlabelled=1)
    turns = [Turn(seed=setting.seed, step=step) for step in range(4)]
    fed = feed(setting.training, setting=setting, params=setting.params, turns=turns, unlabelled=setting.unlabelled)
    for batch, turn in zip(fed, turns, strict=True):
        expected = draw(
            setting.training, task=setting.task, params=setting.params, turn=turn, unlabelled=setting.unlabelled
        )
        assert batch.image.shape[0] == 2 * (setting.params.batch_size or 0)
        for name, value in vars(expected).items():
            assert torch.equal(vars(batch)[name], value), name


def test_what_cannot_be_drawn_is_raised_where_it_is_used(ball_setting: Make) -> None:
    setting = ball_setting()
    with pytest.raises(InputError, match="0 cases"):
        next(feed((), setting=setting, params=setting.params, turns=[Turn()]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams need a GPU")
def test_a_gpu_gets_the_same_batches(ball_setting: Make) -> None:
    setting = ball_setting(augmentation="none", mirror="none")
    on_gpu = ball_setting(augmentation="none", mirror="none", device=torch.device("cuda"))
    turns = [Turn(seed=setting.seed, step=step) for step in range(8)]
    pairs = zip(
        *(feed(one.training, setting=one, params=one.params, turns=turns) for one in (setting, on_gpu)), strict=True
    )
    for here, there in pairs:
        for name, value in vars(here).items():
            assert vars(there)[name].device.type == "cuda"
            torch.testing.assert_close(vars(there)[name].cpu(), value)
