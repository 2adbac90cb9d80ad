"""nnU-Net's side of training_step.py, run by nnU-Net's own interpreter: one line of numbers for every line with a number of steps.

Its trainer's train_step, _build_loss and configure_optimizers are called as they are; only what they read of the trainer is made here.
"""

import json
import resource
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet  # type: ignore[import-not-found]
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # type: ignore[import-not-found]


def make_network(described: dict) -> torch.nn.Module:
    """The plain network as nnU-Net's plans describe it."""
    levels = len(described["features"])
    network = PlainConvUNet(
        1, levels, described["features"], torch.nn.Conv3d, described["kernels"], described["strides"],
        described["convolutions"], described["outputs"], described["convolutions"], conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip
    network.apply(network.initialize)
    return network


def make_trainer(described: dict) -> SimpleNamespace:
    """What train_step reads of a trainer on CPU."""
    scales = [list(row) for row in 1 / np.cumprod(np.vstack(described["strides"]), axis=0)][:-1]
    trainer = SimpleNamespace(
        device=torch.device("cpu"), network=make_network(described), grad_scaler=None, is_ddp=False,
        enable_deep_supervision=True, initial_lr=1e-2, weight_decay=3e-5, num_epochs=1000,
        label_manager=SimpleNamespace(has_regions=False, ignore_label=None),
        configuration_manager=SimpleNamespace(batch_dice=False),
        _do_i_compile=lambda: False, _get_deep_supervision_scales=lambda: scales,
    )  # fmt: skip
    trainer.loss = nnUNetTrainer._build_loss(trainer)
    trainer.optimizer, _ = nnUNetTrainer.configure_optimizers(trainer)
    return trainer


def make_batch(described: dict, *, scales: list[list[float]]) -> dict:
    """Random tensors in the shapes and types that its loader gives."""
    patch, batch, outputs = described["patch"], described["batch"], described["outputs"]
    shapes = [[round(size * share) for size, share in zip(patch, scale)] for scale in scales]  # noqa: B905  any Python
    target = [torch.randint(0, outputs, (batch, 1, *shape), dtype=torch.int16) for shape in shapes]
    return {"data": torch.randn(batch, 1, *patch), "target": target}


def main() -> None:
    """Answer every line until there are no more."""
    described = json.loads(sys.argv[1])
    torch.set_num_threads(described["threads"])
    trainer = make_trainer(described)
    batch = make_batch(described, scales=trainer._get_deep_supervision_scales())
    trainer.network.train()
    for line in sys.stdin:
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            nnUNetTrainer.train_step(trainer, batch)
        weights = sum(parameter.numel() for parameter in trainer.network.parameters())
        measured = {
            "weights": weights,
            "clock": time.perf_counter() - clock, "processor": time.process_time() - processor,
            "peak_kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }  # fmt: skip
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
