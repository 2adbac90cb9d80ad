"""Activations of encoder and decoder stages that are computed again in the backward pass instead of kept (Chen 2016, 1604.06174)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from segsweep.errors import RecipeError


@contextmanager
def recomputed(model: nn.Module, *, on: bool = True) -> Iterator[None]:
    """Within it, `on` keeps only what goes into each stage; weights and their names stay as they are.

    Raises RecipeError for a network without stages.
    """
    stages = stages_of(model) if on else []
    if on and not stages:
        raise RecipeError(
            f"recompute=true: {type(model).__name__} has no list `stages`; expected one: choose recompute=false"
        )
    for stage in stages:
        stage.forward = partial(checkpoint, stage.forward, use_reentrant=False)
    try:
        yield
    finally:
        for stage in stages:
            del stage.forward  # the class's own is seen again


def stages_of(model: nn.Module) -> list[nn.Module]:
    """The outermost entries of all module lists named `stages`."""
    found: list[nn.Module] = []
    for name, child in model.named_children():
        if name == "stages" and isinstance(child, nn.ModuleList):
            found += child
        else:
            found += stages_of(child)
    return found
