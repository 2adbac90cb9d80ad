"""The moving average, by hand, and that it is nobody else's."""

import pytest
import torch
from torch import nn

from segsweep.learning.average import Average


class One(nn.Module):
    """One weight and one flag."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.flag = nn.Buffer(torch.tensor(False))


def test_it_follows_slowly_and_its_first_steps_weigh_more() -> None:
    model = One()
    average = Average(model, decay=0.5)
    expected = 0.0
    for step, decay in enumerate((1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5)):
        with torch.no_grad():
            model.weight.fill_(step + 1.0)
        average.update(model, step=step)
        expected = decay * expected + (1 - decay) * (step + 1.0)
        assert average.model.get_parameter("weight").item() == pytest.approx(expected)


def test_flags_are_copied_and_the_model_is_left_alone() -> None:
    model = One()
    average = Average(model, decay=0.9)
    model.flag.fill_(True)
    average.update(model, step=0)
    assert average.model.get_buffer("flag").item() is True
    assert not average.model.training and not average.model.get_parameter("weight").requires_grad
    assert model.training and model.weight.requires_grad and model.weight.item() == 0.0
