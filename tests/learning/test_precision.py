"""What is computed in which numbers, on which device, and when gradients are scaled."""

import pytest
import torch
from torch import nn

from segsweep.learning.precision import Precision, computing, make_scaler, number_format

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", CPU, torch.float32),
        ("auto", GPU, torch.bfloat16),
        ("float32", GPU, torch.float32),
        ("bfloat16", CPU, torch.bfloat16),
        ("float16", CPU, torch.float16),
    ],
)
def test_formats(precision: Precision, device: torch.device, expected: torch.dtype) -> None:
    assert number_format(precision, device=device) == expected


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_convolutions_compute_in_it_and_weights_stay(precision: Precision) -> None:
    model = nn.Conv3d(1, 2, 3)
    with computing(precision, device=CPU):
        assert model(torch.zeros(1, 1, 4, 4, 4)).dtype == number_format(precision, device=CPU)
    assert model.weight.dtype == torch.float32


def test_only_float16_is_scaled() -> None:
    scaled = [name for name in ("auto", "float32", "bfloat16", "float16") if make_scaler(name, device=CPU).is_enabled()]
    assert scaled == ["float16"]
