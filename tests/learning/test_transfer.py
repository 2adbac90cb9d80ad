import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segsweep import recipes
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import ModelError
from segsweep.learning import checkpoint
from segsweep.learning.task import Task
from segsweep.learning.transfer import HEADS as HEAD_NAMES
from segsweep.learning.transfer import Report, pinned, transfer, transfer_from
from segsweep.run import Run

HEADS = {f"decoder.seg_layers.{level}.{part}" for level in (0, 1) for part in ("weight", "bias")}
STEM = "encoder.stages.0.0.convs.0.conv.weight"
SMALL = {"features": 4, "levels": 3}


def task(*, channels: int = 1, structures: int = 2) -> Task:
    names = tuple(f"s{index}" for index in range(structures))
    return Task(
        channels=tuple(f"c{index}" for index in range(channels)),
        table=LabelTable(labels=LabelSet(structures=names), atoms=((), *((index,) for index in range(structures)))),
        head="softmax",
        patch_size=(16, 16, 16),
        spacing=(1.0, 1.0, 1.0),
        normalisation=(Normalisation(scheme="z-score"),) * channels,
    )


def network(name: str = "unet", *, seed: int = 0, **changed: int) -> nn.Module:
    recipe = recipes.load("trainables", name=name)
    torch.manual_seed(seed)
    return recipe.build(recipes.build_params(recipe, values=SMALL), task(**changed)).eval()


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_equal_networks_share_every_tensor() -> None:
    source, target = network(), network(seed=1)
    report = transfer(target, weights=source.state_dict())
    assert (report.adapted, report.dropped, report.new) == ((), (), ())
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    assert str(report) == f"loaded {len(source.state_dict())} tensors, adapted 0, dropped 0, new 0"


def test_heads_of_another_class_count_start_new() -> None:
    source, target = network(), network(seed=1, structures=4)
    before = copied(target)
    report = transfer(target, weights=source.state_dict())
    assert set(report.dropped) == set(report.new) == HEADS
    assert all(torch.equal(target.state_dict()[name], before[name]) for name in HEADS)
    assert torch.equal(target.state_dict()[STEM], source.state_dict()[STEM])
    assert "new 4 (decoder.seg_layers.0, decoder.seg_layers.1)" in str(report)


@pytest.mark.parametrize(("given", "wanted"), [(1, 2), (1, 3), (3, 1), (2, 3)])
def test_an_image_that_all_channels_share_gives_the_same_logits(given: int, wanted: int) -> None:
    source, target = network(channels=given), network(seed=1, channels=wanted)
    report = transfer(target, weights=source.state_dict())
    assert report.adapted == (STEM,) and report.new == ()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = source(image.expand(-1, given, -1, -1, -1))[0]
        found = target(image.expand(-1, wanted, -1, -1, -1))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_another_architecture_has_in_common_is_taken() -> None:
    source, target = network("resenc_unet"), network(seed=1)
    report = transfer(target, weights=source.state_dict())
    assert "decoder.transpconvs.0.weight" in report.loaded
    assert "encoder.stem.convs.0.conv.weight" in report.dropped
    assert STEM in report.new


def test_a_layers_weight_and_bias_fit_together_or_not_at_all() -> None:
    weights = {**network().state_dict(), STEM: torch.zeros(9, 1, 3, 3, 3)}
    report = transfer(network(seed=1), weights=weights)
    assert set(report.dropped) == {STEM, STEM.replace("weight", "bias")}


def test_weights_of_which_nothing_fits_are_refused() -> None:
    with pytest.raises(ModelError, match="none of the 1 initial tensors fits"):
        transfer(network(), weights={STEM: torch.zeros(9, 1, 3, 3, 3)})


def saved(folder: Path, *, trainable: str = "unet", model: nn.Module) -> Path:
    document = {"run": Run(trainable=trainable, store="s").to_json(), "task": task().to_json(), "params": {}}
    checkpoint.save(folder, snapshot=checkpoint.Snapshot(weights=model.state_dict(), metrics={}, epoch=0), run=document)
    return folder


def test_a_checkpoint_is_taken_by_its_digest(tmp_path: Path) -> None:
    source, target = network(), network(seed=1)
    initial = pinned(saved(tmp_path / "model", model=source))
    assert transfer_from(target, initial=initial, task=task()).new == ()
    assert torch.equal(target.state_dict()[STEM], source.state_dict()[STEM])
    saved(tmp_path / "model", model=target.train().apply(_shift))
    with pytest.raises(ModelError, match="changed since the run began"):
        transfer_from(target, initial=initial, task=task())
    with pytest.raises(ModelError, match="no checkpoint with its digest"):
        transfer_from(target, initial=str(tmp_path / "model"), task=task())


def test_heads_that_meant_other_structures_start_new(tmp_path: Path) -> None:
    initial = pinned(saved(tmp_path / "model", model=network()))
    others = LabelTable(labels=LabelSet(structures=("liver", "eye")), atoms=task().table.atoms)
    elsewhere = dataclasses.replace(task(), table=others)
    sigmoid = dataclasses.replace(task(structures=3), head="sigmoid")
    for other in (elsewhere, sigmoid):
        report = transfer_from(network(seed=1), initial=initial, task=other)
        assert set(report.new) == set(report.dropped) == HEADS
    assert transfer_from(network(seed=1), initial=initial, task=task()).new == ()


@pytest.mark.parametrize(
    "name", ["unet", "resenc_unet", "dice_focal_unet", "multitalent", "uniseg", "phased_resunet", "coarse_to_fine"]
)
def test_heads_are_known_in_every_recipe(name: str) -> None:
    """What depends on the number of outputs, and nothing else, is called a head."""
    recipe = recipes.load("trainables", name=name)
    params = recipes.build_params(recipe, values={"features": 4})
    sizes = [
        {key: value.shape for key, value in recipe.build(params, task(structures=number)).state_dict().items()}
        for number in (2, 3)
    ]
    depends = {key for key, shape in sizes[0].items() if sizes[1][key] != shape}
    assert depends == {key for key in sizes[0] if HEAD_NAMES.fullmatch(key)} != set()


def _shift(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data += 1


def test_a_method_says_how_its_weights_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UniSeg's first transposed convolution has one input channel more than the plain U-Net's, the last."""
    name = "decoder.transpconvs.0.weight"

    def adapt(weights: Mapping[str, Tensor], _model: nn.Module) -> dict[str, Tensor]:
        return {**weights, name: weights[name][:-1]}

    source, target = network(), network(seed=1)
    wide = torch.cat((source.state_dict()[name], torch.ones_like(source.state_dict()[name][:1])))
    folder = tmp_path / "model"
    document = {"run": Run(trainable="unet", store="s").to_json(), "task": task().to_json(), "params": {}}
    snapshot = checkpoint.Snapshot(weights={**source.state_dict(), name: wide}, metrics={}, epoch=0)
    checkpoint.save(folder, snapshot=snapshot, run=document)
    assert name in transfer_from(network(seed=2), initial=pinned(folder), task=task()).new
    monkeypatch.setattr(recipes.load("trainables", name="unet"), "adapt", adapt, raising=False)
    report = transfer_from(target, initial=pinned(folder), task=task())
    assert report.adapted == (name,) and report.new == report.dropped == ()
    assert torch.equal(target.state_dict()[name], source.state_dict()[name])
    assert Report(**report.to_json()).to_json() == report.to_json()


def test_a_tensor_of_no_module_is_named_itself() -> None:
    target = network(seed=1)
    target.register_parameter("prompt", nn.Parameter(torch.zeros(1, 2, 3)))
    report = transfer(target, weights=network().state_dict())
    assert str(report).endswith("new 1 (prompt)")
