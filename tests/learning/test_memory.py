"""The memory estimate: a closed form on a network that can be counted by hand, and the size of the rest."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from segsweep import recipes
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import InputError
from segsweep.learning.memory import (
    PASSES,
    WEIGHT_COPIES,
    _left_in_container,
    available_bytes,
    describe,
    forward_bytes,
    machine_bytes,
    read_size,
    resident_bytes,
    training_bytes,
)
from segsweep.learning.precision import Precision
from segsweep.learning.task import Task


class TwoConvolutions(nn.Module):
    """The second one works at half resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)
        self.second = nn.Conv3d(4, 2, 2, stride=2)

    def forward(self, x_BCZYX: torch.Tensor) -> list[torch.Tensor]:
        return [self.second(self.activation(self.first(x_BCZYX)))]


def task_of(patch_size: tuple[int, int, int]) -> Task:
    return Task(
        channels=("CT",),
        table=LabelTable(labels=LabelSet(structures=("organ",)), atoms=((), (0,))),
        head="softmax",
        patch_size=patch_size,
        spacing=(1.0, 1.0, 1.0),
        normalisation=(Normalisation(scheme="ct"),),
    )


def unet_bytes(patch_size: tuple[int, int, int], *, batch_size: int = 2, features: int = 4) -> int:
    """The estimate for a small U-Net."""
    recipe = recipes.load("trainables", name="unet")
    params = recipes.build_params(recipe, values={"features": features, "levels": 3})
    return training_bytes(
        recipe.build(params, task_of(patch_size)), patch_size=patch_size, channels=1, batch_size=batch_size
    )


def test_a_network_that_can_be_counted_by_hand() -> None:
    """Outputs: 4 x 8 x 16 x 16 and 2 x 4 x 8 x 8 values a patch; what works in place takes nothing."""
    outputs = 3 * (4 * 8 * 16 * 16 + 2 * 4 * 8 * 8)
    weights = (4 * 27 + 4) + (2 * 4 * 8 + 2)
    found = training_bytes(TwoConvolutions(), patch_size=(8, 16, 16), channels=1, batch_size=3)
    assert found == 4 * (PASSES * outputs + WEIGHT_COPIES * weights)


def test_it_grows_with_patch_batch_and_features() -> None:
    small = unet_bytes((16, 32, 32))
    assert unet_bytes((16, 32, 64)) == pytest.approx(2 * small, rel=0.05)
    assert unet_bytes((16, 32, 32), batch_size=4) == pytest.approx(2 * small, rel=0.05)
    assert 1.8 * small < unet_bytes((16, 32, 32), features=8) < 2.5 * small


def test_it_is_about_what_autograd_keeps() -> None:
    """Bytes that autograd really saved for the backward pass of one step; the estimate allows for gradients on top."""
    model, kept = TwoConvolutions(), {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.zeros(2, 1, 16, 32, 32))[0].sum()
    estimate = training_bytes(model, patch_size=(16, 32, 32), channels=1, batch_size=2)
    assert 0.5 * estimate < sum(kept.values()) < 1.5 * estimate


@pytest.mark.parametrize("name", ["unet", "resenc_unet"])
def test_half_precision_keeps_half_as_much(name: str) -> None:
    """Of a whole network, by what autograd saved under autocast; on a GPU that is what a training computes in unless it is told."""
    recipe, size, kept = recipes.load("trainables", name=name), (32, 32, 32), {}
    model = recipe.build(recipes.build_params(recipe, values={"features": 16, "levels": 4}), task_of(size)).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.zeros(2, 1, *size))
    asked: tuple[tuple[Precision, bool], ...] = (
        ("bfloat16", False),
        ("float32", True),
        ("auto", False),
        ("auto", True),
    )
    half, whole, usual, on_gpu = (
        training_bytes(model, patch_size=size, channels=1, batch_size=2, precision=precision, gpu=gpu)
        for precision, gpu in asked
    )
    assert (usual, on_gpu) == (whole, half)
    weights = 4 * WEIGHT_COPIES * sum(parameter.numel() for parameter in model.parameters())
    assert half - weights == (whole - weights) / 2
    assert outputs and 1 < (half - weights) / sum(kept.values()) < 2.5


class Stages(nn.Module):
    """Two stages of two convolutions and one that is in no stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv3d(1, width, 3, padding=1), nn.Conv3d(width, 1, 3, padding=1)) for width in (4, 6)
        )
        self.head = nn.Conv3d(1, 2, 1)

    def forward(self, x_BCZYX: torch.Tensor) -> list[torch.Tensor]:
        return [self.head(self.stages[1](self.stages[0](x_BCZYX)))]


def test_recomputed_stages_keep_what_they_give_and_the_largest_inside() -> None:
    model, voxels = Stages(), 8 * 16 * 16
    weights = WEIGHT_COPIES * sum(parameter.numel() for parameter in model.parameters())
    for recompute, channels in ((False, (4 + 1) + (6 + 1) + 2), (True, 1 + 1 + (6 + 1) + 2)):
        found = training_bytes(model, patch_size=(8, 16, 16), channels=1, batch_size=1, recompute=recompute)
        assert found == 4 * (PASSES * channels * voxels + weights)


def test_nothing_is_allocated_and_the_model_stays_as_it_was() -> None:
    """A patch of 2048 voxels an axis would need terabytes."""
    model = TwoConvolutions().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert training_bytes(model, patch_size=(2048, 2048, 2048), channels=1, batch_size=2) > 2 * 2048**3 * 4 * 4
    assert not model.training and not model.first._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert next(model.parameters()).device.type == "cpu"


def test_a_machine_has_more_than_a_gigabyte_and_less_than_a_petabyte() -> None:
    assert 2**30 < machine_bytes() < 2**50


@pytest.mark.parametrize(
    ("size", "text"),
    (
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1.02e+03 B"),
        (1024, "1 KB"),
        (3 * 2**29, "1.5 GB"),
        (2**40, "1 TB"),
        (2**52, "4.1e+03 TB"),
    ),
)
def test_bytes_are_written_for_people(size: int, text: str) -> None:
    assert describe(size) == text


def test_a_prediction_holds_what_lives_at_once() -> None:
    voxels = 2 * 8 * 12 * 16
    # The image, the first layer's output (the activation works in place) and half resolution's; the largest once more.
    expected = 4 * (voxels * 1 + voxels * 4 + 2 * voxels // 8 + voxels * 4)
    assert forward_bytes(TwoConvolutions(), patch_size=(8, 12, 16), channels=1, batch_size=2) == expected


def test_what_is_dropped_counts_no_longer() -> None:
    class Chain(nn.Module):
        def forward(self, x_BCZYX: torch.Tensor) -> list[torch.Tensor]:
            for _ in range(10):
                x_BCZYX = x_BCZYX + 1
            return [x_BCZYX]

    # Whoever calls holds the image; besides there are at most two results, and the largest counts once more.
    assert forward_bytes(Chain(), patch_size=(8, 8, 8), channels=1, batch_size=1) == 4 * 8**3 * (1 + 2 + 1)


def test_this_process_and_what_is_left_are_seen() -> None:
    before = resident_bytes()
    held = torch.ones(2**24)
    assert 0.9 * 2**26 < resident_bytes() - before < 2**28 and held.shape
    assert 2**20 < available_bytes() < machine_bytes()


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert _left_in_container(tmp_path) == math.inf
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.stat").write_text("anon 250\ninactive_file 40\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert _left_in_container(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("1000\n")
    assert _left_in_container(tmp_path) == 740, "cached files make room"


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 2**33), ("500 MB", 500 * 2**20), ("1.5g", 3 * 2**29), ("4096", 4096), ("2 TB", 2**41)]
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "0GB", "-1GB", "eight", "8 GiBs", "GB"])
def test_other_words_are_no_sizes(text: str) -> None:
    with pytest.raises(InputError, match="such as 8GB"):
        read_size(text)
