"""What every recipe promises. A recipe is enrolled here by itself as soon as its file is there."""

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from segsweep import recipes
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning import checkpoint
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import forced_flags
from segsweep.learning.task import Head, Task
from segsweep.run import Run

TRAINABLES = recipes.names("trainables")
# Makes any network small, for parameters that a recipe happens to have.
SMALL = {"features": 4, "most_features": 16, "feature_size": 12}
# Recipes that need an optional package; without it their networks are not tested.
EXTRAS = {"segresnet": "monai", "swin_unetr": "monai", "mednext": "monai"}
PATCH = (32, 32, 64)
LABELS = LabelSet(structures=("Eye_L", "Eye_R", "Tumour"), pairs=(("Eye_L", "Eye_R"),))


def task_of(head: Head, *, patch_size: tuple[int, int, int] = PATCH) -> Task:
    """Two channels, three overlapping structures in five atoms, slices three times as thick as wide."""
    return Task(
        channels=("CT", "contrast CT"),
        table=LabelTable(labels=LABELS, atoms=((), (0,), (1,), (2,), (0, 2))),
        head=head,
        patch_size=patch_size,
        spacing=(3.0, 1.0, 1.0),
        normalisation=(Normalisation(scheme="ct", low=-500.0, high=500.0),) * 2,
    )


def demand_extra(name: str) -> None:
    """Skip the test when the recipe's optional package is not installed."""
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])


def small_params(recipe: ModuleType, **values: Any) -> Any:
    """The recipe's parameters with its networks as small as it allows."""
    fields = {field.name for field in dataclasses.fields(recipe.Params)}
    return recipes.build_params(recipe, values={**{k: v for k, v in SMALL.items() if k in fields}, **values})


def presets(name: str) -> list[dict[str, str]]:
    """No preset, and every preset of a trainable."""
    recipe = recipes.load("trainables", name=name)
    return [{}, *({"preset": preset} for preset in getattr(recipe, "PRESETS", {}))]


@pytest.mark.parametrize("name", TRAINABLES)
def test_params_are_a_frozen_json_able_value(name: str) -> None:
    recipe = recipes.load("trainables", name=name)
    assert issubclass(recipe.Params, TrainingParams)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.Params().epochs = 1  # type: ignore[misc]
    assert all(field.kw_only for field in dataclasses.fields(recipe.Params))
    for values in presets(name):
        params = recipes.build_params(recipe, values=values)
        document = json.loads(json.dumps(recipes.params_json(params)))
        assert recipes.build_params(recipe, values=document) == params
        assert hash(params) == hash(recipes.build_params(recipe, values=document))
    assert recipe.Params() == recipes.build_params(recipe, values={}), "the defaults are a run of their own"


@pytest.mark.parametrize("name", TRAINABLES)
def test_no_preset_leaves_foreground_to_chance(name: str) -> None:
    """The deterministic rule rounds its share: of a batch of one it forces none."""
    recipe = recipes.load("trainables", name=name)
    for values in presets(name):
        params = recipes.build_params(recipe, values=values)
        given, rule = params.batch_size or 2, params.oversampling
        flags = forced_flags(given, foreground=params.foreground, rule=rule, generator=np.random.default_rng(0))
        assert any(flags) or rule == "probabilistic", values


@pytest.mark.parametrize("name", TRAINABLES)
def test_a_trainable_says_where_it_comes_from(name: str) -> None:
    recipe = recipes.load("trainables", name=name)
    assert (recipe.__doc__ or "").strip()
    assert (recipe.Params.__doc__ or "").strip() and not recipe.Params.__doc__.startswith("Params(")
    assert list(inspect.signature(recipe.build).parameters) == ["params", "task"]


@pytest.mark.parametrize("head", ("softmax", "sigmoid"))
@pytest.mark.parametrize(
    ("name", "values"), [(name, values) for name in TRAINABLES for values in presets(name)], ids=str
)
def test_a_network_keeps_the_model_contract(name: str, values: dict[str, str], head: Head, tmp_path: Path) -> None:
    demand_extra(name)
    recipe, task = recipes.load("trainables", name=name), task_of(head)
    params = small_params(recipe, **values, head=head)
    torch.manual_seed(0)
    model = recipe.build(params, task).train()
    x_BCZYX = torch.randn(2, 2, *PATCH)
    levels = model(x_BCZYX)
    assert isinstance(levels, list) and len(levels) >= 1
    assert tuple(levels[0].shape) == (2, task.outputs, *PATCH), "full resolution first"
    sizes = [level.shape[2:].numel() for level in levels]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert all(level.shape[:2] == (2, task.outputs) for level in levels)
    torch.stack([level.square().mean() for level in levels]).sum().backward()
    without = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == [], "every parameter must take part, or DDP waits for ever"
    with torch.no_grad():
        alone = model.eval()(x_BCZYX[:1])
    assert len(alone) == 1 and tuple(alone[0].shape) == (1, task.outputs, *PATCH)
    assert bool(torch.isfinite(alone[0]).all())
    _demand_reload(model, params=params, task=task, name=name, folder=tmp_path / "model", x_BCZYX=x_BCZYX[:1])


def _demand_reload(
    model: torch.nn.Module, *, params: Any, task: Task, name: str, folder: Path, x_BCZYX: torch.Tensor
) -> None:
    """A saved model comes back by its recipe's name and gives the same logits."""
    document = {
        "run": Run(trainable=name, store="s").to_json(),
        "task": task.to_json(),
        "params": recipes.params_json(params),
    }
    checkpoint.save(folder, snapshot=checkpoint.Snapshot(weights=model.state_dict(), metrics={}, epoch=0), run=document)
    loaded = checkpoint.load_model(folder)
    assert loaded.task == task and not loaded.model.training
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x_BCZYX)[0], model(x_BCZYX)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", TRAINABLES)
def test_a_network_has_no_state_outside_its_weights(name: str) -> None:
    """Equal seeds give equal networks, and a second call gives what the first gave."""
    demand_extra(name)
    recipe, task = recipes.load("trainables", name=name), task_of("softmax")
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        model = recipe.build(small_params(recipe), task).eval()
        with torch.no_grad():
            outputs += [model(torch.ones(1, 2, *PATCH))[0] for _ in range(2)]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


def test_trainables_import_no_tracking_and_no_cluster() -> None:
    """One process for all: what the first of them loads, the others have too."""
    code = (
        "import sys; from segsweep import recipes\n"
        f"for name in {TRAINABLES!r}:\n"
        "    recipes.load('trainables', name=name)\n"
        "    print(name, sorted({'mlflow', 'ray', 'optuna', 'SimpleITK', 'zarr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} []" for name in TRAINABLES]


def test_the_unet_is_nnunets_plain_one_name_by_name() -> None:
    """nnU-Net's plan for openKBP: 128^3 isotropic, six stages, one channel, eight outputs, 31.2 M parameters."""
    unet = recipes.load("trainables", name="unet")
    task = dataclasses.replace(
        task_of("softmax", patch_size=(128, 128, 128)),
        channels=("CT",),
        table=LabelTable(labels=LabelSet(structures=tuple("abcdefg")), atoms=((), *((i,) for i in range(7)))),
        spacing=(3.0, 3.0, 3.0),
    )
    with torch.device("meta"):
        model = unet.build(unet.Params(), task)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 1) == 31.2
    features = (32, 64, 128, 256, 320, 320)
    for stage, (inputs, outputs) in enumerate(zip((1, *features[:-1]), features, strict=True)):
        for number, into in enumerate((inputs, outputs)):
            prefix = f"encoder.stages.{stage}.0.convs.{number}"
            assert shapes.pop(f"{prefix}.conv.weight") == (outputs, into, 3, 3, 3)
            for rest in ("conv.bias", "norm.weight", "norm.bias"):
                assert shapes.pop(f"{prefix}.{rest}") == (outputs,)
    for stage, (below, above) in enumerate(zip(features[:0:-1], features[-2::-1], strict=True)):
        assert shapes.pop(f"decoder.transpconvs.{stage}.weight") == (below, above, 2, 2, 2)
        assert shapes.pop(f"decoder.transpconvs.{stage}.bias") == (above,)
        assert shapes.pop(f"decoder.seg_layers.{stage}.weight") == (8, above, 1, 1, 1)
        assert shapes.pop(f"decoder.seg_layers.{stage}.bias") == (8,)
        for number, into in enumerate((2 * above, above)):
            prefix = f"decoder.stages.{stage}.convs.{number}"
            assert shapes.pop(f"{prefix}.conv.weight") == (above, into, 3, 3, 3)
            for rest in ("conv.bias", "norm.weight", "norm.bias"):
                assert shapes.pop(f"{prefix}.{rest}") == (above,)
    assert shapes == {}, "parameters that nnU-Net's network does not have"
