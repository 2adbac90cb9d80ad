"""nnU-Net's side of training_step.py, run by nnU-Net's own interpreter: a line of numbers for every line "STEPS KIND".

KIND "loading" takes every batch from its loader, whose worker processes load and augment; "stepping" steps on one batch over and over.
Its trainer's train_step, _build_loss, configure_optimizers and loader are called as they are; only what they read of the trainer is made
here. There are as many workers as its trainer takes: one a processor.
"""

import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (  # type: ignore[import-not-found]
    NonDetMultiThreadedAugmenter,
)
from dynamic_network_architectures.architectures.unet import PlainConvUNet  # type: ignore[import-not-found]
from nnunet_loading import training_loader
from nnunetv2.preprocessing.preprocessors.default_preprocessor import (  # type: ignore[import-not-found]
    DefaultPreprocessor,
)
from nnunetv2.training.dataloading.nnunet_dataset import (  # type: ignore[import-not-found]
    comp_blosc2_params,
    nnUNetDatasetBlosc2,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # type: ignore[import-not-found]
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA  # type: ignore[import-not-found]

# Its trainer keeps this many batches ready. They are there when a round begins and when it ends: in between the workers make as many as
# are taken. REST is time (s) for them to be made.
CACHED, REST = 6, 2.0


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


def make_loader(described: dict, *, scales: list[list[float]]) -> NonDetMultiThreadedAugmenter:
    """Batches of the scans that lie there as NAME.npz, which are first written as its preprocessor writes them."""
    folder, patch, structures = Path(described["scans"]), described["patch"], described["outputs"] - 1
    for path in folder.glob("*.npz"):
        with np.load(path) as scan:
            image, label = scan["image"].astype(np.float32), scan["label"].astype(np.int16)[None]
        image = (image - image.mean()) / image.std()
        places = DefaultPreprocessor._sample_foreground_locations(label, list(range(1, structures + 1)))
        blocks, chunks = comp_blosc2_params(image.shape, patch, image.itemsize)
        nnUNetDatasetBlosc2.save_case(
            image, label, {"class_locations": places}, str(folder / path.stem), chunks=chunks, blocks=blocks
        )
    loader = training_loader(
        folder, patch_size=patch, batch_size=described["batch"], structures=structures, scales=scales
    )
    return NonDetMultiThreadedAugmenter(loader, None, get_allowed_n_proc_DA(), CACHED, None, False, wait_time=0.002)


def main() -> None:
    """Answer every line until there are no more."""
    described = json.loads(sys.argv[1])
    torch.set_num_threads(described["threads"])
    trainer = make_trainer(described)
    loader = make_loader(described, scales=trainer._get_deep_supervision_scales())
    batch = next(loader)
    trainer.network.train()
    for line in sys.stdin:
        steps, kind = line.split()
        time.sleep(REST)
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(int(steps)):
            nnUNetTrainer.train_step(trainer, next(loader) if kind == "loading" else batch)
        weights = sum(parameter.numel() for parameter in trainer.network.parameters())
        measured = {
            "weights": weights,
            "clock": time.perf_counter() - clock, "processor": time.process_time() - processor,
            "peak_kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }  # fmt: skip
        time.sleep(REST)
        print(json.dumps(measured), flush=True)
    loader._finish()


if __name__ == "__main__":
    main()
