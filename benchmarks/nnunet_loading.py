"""nnU-Net's loader of training batches, as its trainer sets it up; for benchmarks, in an interpreter that has nnU-Net."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader  # type: ignore[import-not-found]
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2  # type: ignore[import-not-found]
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # type: ignore[import-not-found]
from nnunetv2.utilities.label_handling.label_handling import LabelManager  # type: ignore[import-not-found]


def training_loader(
    folder: Path, *, patch_size: Sequence[int], batch_size: int, structures: int, scales: Sequence[Sequence[float]]
) -> nnUNetDataLoader:
    """Augmented batches of a folder of preprocessed cases; `scales` are those of the network's levels, full resolution first."""
    labels = LabelManager({"background": 0, **{str(value): value for value in range(1, structures + 1)}}, None)
    trainer = SimpleNamespace(
        configuration_manager=SimpleNamespace(patch_size=list(patch_size)), print_to_log_file=lambda *_: None
    )
    setting = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(trainer)
    rotation, flat, read_size, mirrored = setting
    transforms = nnUNetTrainer.get_training_transforms(
        patch_size, rotation, [list(scale) for scale in scales], mirrored, flat,
        use_mask_for_norm=[False], foreground_labels=labels.foreground_labels,
    )  # fmt: skip
    return nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)), batch_size, tuple(map(int, read_size)), patch_size, labels,
        oversample_foreground_percent=0.33, transforms=transforms,
    )  # fmt: skip
