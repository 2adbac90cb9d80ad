"""An exponential moving average of a network's weights, which is validated and kept instead of the last step's own."""

import copy

import torch
from torch import nn


class Average:
    """`model` holds the average; it is a copy of its own, in evaluation mode, that nothing trains."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int) -> None:
        """Take in the weights after a step of the training, counted from 0.

        The first steps weigh more, so that the average soon forgets the initial weights: decay min(decay, (1 + n) / (10 + n)).
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for mine, other in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(other)
