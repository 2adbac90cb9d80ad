"""Recomputing changes what is kept, and nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segsweep import recipes
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import RecipeError
from segsweep.learning.recompute import recomputed
from segsweep.learning.task import Task

TASK = Task(
    channels=("CT",),
    table=LabelTable(labels=LabelSet(structures=("organ",)), atoms=((), (0,))),
    head="softmax",
    patch_size=(16, 16, 16),
    spacing=(1.0, 1.0, 1.0),
    normalisation=(Normalisation(scheme="ct"),),
)


def network(name: str, **values: Any) -> nn.Module:
    recipe = recipes.load("trainables", name=name)
    torch.manual_seed(0)
    return recipe.build(recipes.build_params(recipe, values=values), TASK)


def kept_bytes(model: nn.Module) -> int:
    """What autograd keeps between forward and backward."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(torch.randn(1, 1, 16, 16, 16))
        kept_now = sum(kept.values())
    torch.stack([level.square().mean() for level in logits]).sum().backward()
    return kept_now


@pytest.mark.parametrize("name", ["unet", "resenc_unet"])
def test_gradients_are_equal_and_less_is_kept(name: str) -> None:
    plain, other = (network(name, features=4, levels=3) for _ in range(2))
    names = list(other.state_dict())
    kept = kept_bytes(plain)
    with recomputed(other):
        assert list(other.state_dict()) == names
        assert kept_bytes(other) < 0.6 * kept
    for mine, expected in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad)
    other.zero_grad(set_to_none=True)
    assert kept_bytes(other) == kept, "it goes on outside"


def test_off_it_does_nothing_and_a_network_without_stages_is_refused() -> None:
    with recomputed(nn.Conv3d(1, 1, 3), on=False):
        pass
    with (
        pytest.raises(RecipeError, match=r"Conv3d has no list `stages`.*recompute=false"),
        recomputed(nn.Conv3d(1, 1, 3)),
    ):
        pass
