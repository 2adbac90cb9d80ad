"""The numbers that a network computes in: half precision where it is faster, with its gradients scaled where they need it."""

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def number_format(precision: Precision, *, device: torch.device) -> torch.dtype:
    """What convolutions compute in on a device: "auto" is bfloat16 on a GPU and float32 on a CPU."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[precision]


def computing(precision: Precision, *, device: torch.device) -> torch.autocast:
    """The context in which the network runs; weights and optimizer stay float32."""
    dtype = number_format(precision, device=device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)


def make_scaler(precision: Precision, *, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss of a float16 training, whose small gradients would vanish; of others it changes nothing."""
    return torch.amp.GradScaler(device.type, enabled=number_format(precision, device=device) is torch.float16)
