"""nnU-Net's checkpoints: outputs equal to the original network's in its own axis order, and nothing that a file names is run."""

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segsweep import recipes
from segsweep.errors import ModelError
from segsweep.inference.sliding import predict_planes
from segsweep.learning.method import load_method
from segsweep.learning.nnunet import Imported, read_nnunet
from segsweep.learning.nnunet_plans import read_task
from segsweep.learning.task import Task

# In the plan's own order of axes.
STRIDES = [[1, 1, 1], [2, 1, 2], [2, 2, 2], [2, 1, 2]]
KERNELS = [[3, 1, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
PATCH = [32, 8, 48]
SPACING = [0.5, 3.0, 0.75]
DATASET = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "liver": 1, "spleen": 2}}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
COUNTS: dict[str, dict[str, Any]] = {
    "PlainConvUNet": {"n_conv_per_stage": [2] * 4, "n_conv_per_stage_decoder": [2] * 3},
    "ResidualEncoderUNet": {"n_blocks_per_stage": [1, 3, 4, 6], "n_conv_per_stage_decoder": [1] * 3},
}
RECIPES = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "resenc_unet"}


def arch_kwargs(kind: str) -> dict[str, Any]:
    return {
        "n_stages": 4, "features_per_stage": [4, 8, 16, 16], "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": KERNELS, "strides": STRIDES, **COUNTS[kind], "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip


def plans(kind: str = "PlainConvUNet", *, forward: tuple[int, ...] = (1, 0, 2)) -> dict[str, Any]:
    network = f"dynamic_network_architectures.architectures.unet.{kind}"
    full = {
        "patch_size": PATCH, "spacing": SPACING, "batch_size": 2, "use_mask_for_norm": [False, False],
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "architecture": {"network_class_name": network, "arch_kwargs": arch_kwargs(kind)},
    }  # fmt: skip
    seen = {"percentile_00_5": -900.0, "percentile_99_5": 1100.0, "mean": 40.0, "std": 200.0, "max": 3000.0}
    return {
        "dataset_name": "Dataset218_openKBP", "transpose_forward": list(forward),
        "foreground_intensity_properties_per_channel": {"0": seen, "1": seen},
        "configurations": {"3d_fullres": full, "bigger": {"inherits_from": "3d_fullres", "batch_size": 5}},
    }  # fmt: skip


def network(kind: str = "PlainConvUNet", *, outputs: int = 3) -> nn.Module:
    """A network in the plan's own order of axes, from our recipe: what nnU-Net would have built."""
    recipe = recipes.load("trainables", name=RECIPES[kind])
    labels = {"background": 0, **{f"s{value}": value for value in range(1, outputs)}}
    counts = {"blocks": [1, 3, 4, 6]} if kind == "ResidualEncoderUNet" else {}
    values = {"features": 4, "most_features": 16, "strides": STRIDES, "kernels": KERNELS, **counts}
    torch.manual_seed(0)
    model = recipe.build(recipes.build_params(recipe, values=values), _plain_task(labels))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def _plain_task(labels: dict[str, int]) -> Task:
    plan = plans()
    dataset = {**DATASET, "labels": labels}
    return read_task(plan, configuration=plan["configurations"]["3d_fullres"], dataset=dataset, axes=(0, 1, 2))


def save(
    folder: Path, *, plan: dict[str, Any], weights: dict[str, torch.Tensor], dataset: dict[str, Any], **changed: Any
) -> Path:
    """A folder as nnU-Net's results are: numpy's numbers in the log, every weight under its second names too."""
    fold = folder / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    doubled = {f"decoder.{name}": value for name, value in weights.items() if name.startswith("encoder.")}
    doubled |= {name.replace(".conv.", ".all_modules.0."): value for name, value in weights.items() if ".conv." in name}
    saved = {
        "network_weights": OrderedDict({**weights, **doubled}),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": np.float64(0.01), "params": [0]}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "dice_per_class_or_region": [[np.float32(0.5), np.nan]]},
        "_best_ema": np.float64(0.4),
        "current_epoch": 7,
        "init_args": {"plans": plan, "configuration": "3d_fullres", "fold": 3, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save({**saved, **changed}, fold / "checkpoint_final.pth")
    (fold.parent / "plans.json").write_text(json.dumps(plan))
    (fold.parent / "dataset.json").write_text(json.dumps(dataset))
    return fold / "checkpoint_final.pth"


def imported(folder: Path, *, plan: dict[str, Any] | None = None, dataset: dict[str, Any] | None = None) -> Imported:
    plan = plan or plans()
    return read_nnunet(save(folder, plan=plan, weights=network().state_dict(), dataset=dataset or DATASET))


def rebuilt(found: Imported) -> nn.Module:
    model = load_method(found.trainable).build(found.params, task=found.task)
    model.load_state_dict(dict(found.weights))
    return model.eval()


def demand_equal(found: Imported, *, original: nn.Module, forward: tuple[int, ...]) -> None:
    """Our network on a patch (z, y, x) says what the original says of the same patch in its own order of axes."""
    torch.manual_seed(1)
    patch = torch.randn(1, 2, *found.task.patch_size)
    turn, back = [0, 1, *(2 + axis for axis in forward)], [0, 1, *(2 + forward.index(axis) for axis in range(3))]
    with torch.no_grad():
        logits = original(patch.permute(turn))
    expected = (logits[0] if isinstance(logits, list) else logits).permute(back)
    planes = predict_planes(rebuilt(found), patch[0], patch_size=found.task.patch_size)
    found_logits = torch.stack(list(planes), dim=1)
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(found_logits, expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("forward", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("kind", COUNTS)
def test_outputs_equal_the_networks_in_its_own_axis_order(tmp_path: Path, kind: str, forward: tuple[int, ...]) -> None:
    original = network(kind)
    path = save(tmp_path, plan=plans(kind, forward=forward), weights=original.state_dict(), dataset=DATASET)
    found = read_nnunet(path)
    assert found.trainable == RECIPES[kind]
    demand_equal(found, original=original, forward=forward)


@pytest.mark.parametrize("kind", COUNTS)
def test_outputs_equal_the_original_packages(tmp_path: Path, kind: str) -> None:
    package = pytest.importorskip("nnunetv2.utilities.get_network_from_plans")
    architecture = plans(kind)["configurations"]["3d_fullres"]["architecture"]
    original = package.get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], ("conv_op", "norm_op", "dropout_op", "nonlin"),
        input_channels=2, output_channels=3, deep_supervision=False,
    ).eval()  # fmt: skip
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.2)
    path = save(tmp_path, plan=plans(kind), weights=original.state_dict(), dataset=DATASET)
    demand_equal(read_nnunet(path), original=original, forward=(1, 0, 2))


@pytest.mark.parametrize(("orientation", "flipped"), [("RAS", (3, 4)), ("LAI", (2, 3)), ("LPS", ())])
def test_a_network_of_scans_stored_otherwise_sees_them_so(
    tmp_path: Path, orientation: str, flipped: tuple[int, ...]
) -> None:
    path = save(tmp_path, plan=plans(), weights=network().state_dict(), dataset=DATASET)
    usual, other = rebuilt(read_nnunet(path)), rebuilt(read_nnunet(path, orientation=orientation))
    image = torch.randn(1, 2, 8, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(other(image)[0], usual(image.flip(flipped))[0].flip(flipped), rtol=0, atol=1e-6)
        assert bool(flipped) != torch.equal(other(image)[0], usual(image)[0])
        assert len(other.train()(image)) == len(STRIDES) - 1
    for wrong in ("RASP", "SPL", "ras", ""):
        with pytest.raises(ModelError, match="expected R or L"):
            read_nnunet(path, orientation=wrong)


def test_the_task_is_the_plans_with_axes_turned_back(tmp_path: Path) -> None:
    found = imported(tmp_path)
    assert (found.dataset, found.fold, found.epoch, found.params.epochs) == ("Dataset218_openKBP", 3, 6, 7)
    assert (found.task.patch_size, found.task.spacing) == ((8, 32, 48), (3.0, 0.5, 0.75))
    assert (found.task.channels, found.task.head, found.params.batch_size) == (("CT", "PET"), "softmax", 2)
    assert found.task.table.labels.structures == ("liver", "spleen")
    assert found.task.table.atoms == ((), (0,), (1,))
    ct, pet = found.task.normalisation
    assert (ct.scheme, ct.low, ct.high, ct.mean, ct.deviation) == ("ct", -900.0, 1100.0, 40.0, 200.0)
    assert pet.scheme == "z-score"


def test_regions_become_overlapping_structures(tmp_path: Path) -> None:
    found = imported(tmp_path, dataset={**DATASET, "labels": REGIONS})
    assert found.task.head == "sigmoid"
    assert found.task.table.labels.structures == ("whole", "core", "enhancing")
    assert found.task.table.atoms == ((), (0,), (0, 1), (0, 1, 2))


def test_lists_of_one_value_are_plain_labels(tmp_path: Path) -> None:
    found = imported(tmp_path, dataset={**DATASET, "labels": {"background": [0], "spleen": [2], "liver": [1]}})
    assert (found.task.head, found.task.table.labels.structures) == ("softmax", ("liver", "spleen"))


def test_plans_of_older_versions_and_inherited_configurations(tmp_path: Path) -> None:
    plan = plans()
    full = plan["configurations"]["3d_fullres"]
    values = full.pop("architecture")["arch_kwargs"]
    full |= {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 16,
        "n_conv_per_stage_encoder": [2] * 4, "n_conv_per_stage_decoder": [2] * 3,
        "pool_op_kernel_sizes": values["strides"], "conv_kernel_sizes": values["kernel_sizes"],
    }  # fmt: skip
    start = {"configuration": "bigger", "fold": "all"}
    path = save(tmp_path, plan=plan, weights=network().state_dict(), dataset=DATASET, init_args=start)
    found = read_nnunet(path)
    assert (found.params.batch_size, found.fold) == (5, "all")
    demand_equal(found, original=network(), forward=(1, 0, 2))


def test_files_elsewhere_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, plan=plans(), weights=network().state_dict(), dataset=DATASET)
    for name in ("plans.json", "dataset.json"):
        (path.parents[1] / name).rename(tmp_path / name)
    with pytest.raises(ModelError, match=r"plans\.json: cannot be read"):
        read_nnunet(path)
    found = read_nnunet(path, plans=tmp_path / "plans.json", dataset_json=tmp_path / "dataset.json")
    assert found.task.outputs == 3


class Bomb:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("place", ["network_weights", "logging", "init_args", "_best_ema"])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, place: str) -> None:
    marker = tmp_path / "executed"
    changed = {place: {"a": Bomb(marker)}}
    path = save(tmp_path, plan=plans(), weights=network().state_dict(), dataset=DATASET, **changed)
    with pytest.raises(ModelError, match="never unpickled") as caught:
        read_nnunet(path)
    assert not marker.exists() and "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ModelError, match="never unpickled"):
        read_nnunet(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"text"])
def test_damaged_checkpoints_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint_final.pth"
    with pytest.raises(ModelError, match="no such file"):
        read_nnunet(path)
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        read_nnunet(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ModelError, match="no network_weights"):
        read_nnunet(path)


def full(plan: dict[str, Any]) -> dict[str, Any]:
    return plan["configurations"]["3d_fullres"]


def kwargs(plan: dict[str, Any]) -> dict[str, Any]:
    return full(plan)["architecture"]["arch_kwargs"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: kwargs(plan).update(conv_op="torch.nn.modules.conv.Conv2d"), "'conv_op': 'Conv2d'"),
        (lambda plan: kwargs(plan).update(squeeze_excitation=True), "squeeze_excitation"),
        (lambda plan: kwargs(plan).update(features_per_stage=[4, 8, 12, 16]), "features that double"),
        (lambda plan: kwargs(plan).update(n_conv_per_stage=[2, 2, 3, 2]), "equal levels"),
        (lambda plan: kwargs(plan).update(n_conv_per_stage=[2, 2]), "does not name 4 levels"),
        (lambda plan: full(plan)["architecture"].update(network_class_name="a.Primus"), "the network is a Primus"),
        (lambda plan: full(plan).update(previous_stage="3d_lowres"), "second network of a cascade"),
        (lambda plan: full(plan).update(normalization_schemes=["NoNormalization"] * 2), "normalised by NoNormalization"),
        (lambda plan: full(plan).update(use_mask_for_norm=[False, True]), "inside the nonzero mask"),
        (lambda plan: full(plan).update(patch_size=[64, 64]), "patches of 2 axes; expected a 3D one"),
        (lambda plan: full(plan).update(spacing=[0.0, 1.0, 1.0]), "spacing is"),
        (lambda plan: plan.pop("transpose_forward"), "transpose_forward"),
        (lambda plan: plan.update(transpose_forward=[0, 0, 1]), "is not in list"),
        (lambda plan: full(plan).update(inherits_from="3d_fullres"), "inherits from itself"),
        (lambda plan: full(plan).update(inherits_from="absent"), "no 'absent' among configurations"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    plan = plans()
    change(plan)
    with pytest.raises(ModelError, match=words) as caught:
        imported(tmp_path, plan=plan)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ({**DATASET, "labels": {"background": 0, "liver": 1}}, "size mismatch"),
        ({**DATASET, "labels": {"background": 0, "liver": 1, "spleen": 3}}, "without a gap"),
        ({**DATASET, "labels": {"background": 0, "lung/left": 1, "lung/right": 2}}, "without '/'"),
        ({**DATASET, "labels": {"background": 0, "liver": 1, "a\nb": 2}}, "expected printable characters"),
        ({**DATASET, "channel_names": {"0": "CT"}}, "expected 1, one a channel"),
        ({"labels": DATASET["labels"]}, "modality"),
    ],
)
def test_a_dataset_of_another_network_is_refused(tmp_path: Path, dataset: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        imported(tmp_path, dataset=dataset)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = {**network().state_dict(), "encoder.extra.weight": torch.zeros(1)}
    with pytest.raises(ModelError, match=r"encoder\.extra\.weight"):
        read_nnunet(save(tmp_path, plan=plans(), weights=weights, dataset=DATASET))
