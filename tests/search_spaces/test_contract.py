"""What every search space promises. A space or a published comparison is enrolled here by itself as soon as its file is there."""

import dataclasses
import json
from typing import Any

import optuna
import pytest
import torch

from segsweep import recipes
from segsweep.data.planning import Normalisation, Plan
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning.method import load_method
from segsweep.learning.params import TrainingParams
from segsweep.learning.task import Head, Task
from segsweep.sweeps.comparison import Comparison, Row, comparison_of, config_of

NAMES = recipes.names("search_spaces")
COMPARISONS = {
    name: found for name in NAMES if (found := comparison_of(recipes.load("search_spaces", name=name))) is not None
}
SPACES = [name for name in NAMES if name not in COMPARISONS]
TRAINED = [(name, row) for name, comparison in COMPARISONS.items() for row in comparison.rows if not row.members]
DATASETS = recipes.names("datasets")
PLAN = Plan(
    spacing=(3.0, 1.0, 1.0),
    patch_size=(48, 160, 128),
    batch_size=2,
    median_shape=(100, 400, 400),
    normalisation=(Normalisation(scheme="ct", low=-500.0, high=500.0),),
    head="softmax",
)


def task_of(head: Head, *, patch_size: tuple[int, int, int]) -> Task:
    """Two channels, three overlapping structures in five atoms, slices three times as thick as wide."""
    return Task(
        channels=("CT", "contrast CT"),
        table=LabelTable(labels=LabelSet(structures=("a", "b", "c")), atoms=((), (0,), (1,), (2,), (0, 2))),
        head=head,
        patch_size=patch_size,
        spacing=PLAN.spacing,
        normalisation=PLAN.normalisation * 2,
    )


def params_of(config: dict[str, Any], **more: Any) -> TrainingParams:
    """The parameters of a trial; what neither its config nor its recipe says is the plan's."""
    given = dict(config)
    method = load_method(given.pop("trainable"))
    params = method.params({**given, **more})
    return params if params.patch_size else dataclasses.replace(params, patch_size=PLAN.patch_size)


def demand_network(trainable: str, *, params: TrainingParams) -> None:
    """The trainable builds a network for these parameters, and it takes their patch."""
    assert params.patch_size is not None
    method = load_method(trainable)
    task = method.task(params, task=task_of(params.head or "softmax", patch_size=params.patch_size))
    with torch.device("meta"), torch.no_grad():
        logits = method.build(params, task=task).eval()(torch.empty(1, 2, *params.patch_size))
    assert logits[0].shape[1:] == (task.outputs, *params.patch_size)
    assert sum(stage.epochs for stage in method.stages(params)) == params.epochs


@pytest.mark.parametrize("name", SPACES)
def test_a_space_yields_parameters_that_its_trainable_accepts(name: str) -> None:
    """Its first trials and 20 draws, on a plan; with the parameters that all its trials share."""
    recipe = recipes.load("search_spaces", name=name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    first = getattr(recipe, "first", lambda _: [])(PLAN)
    for values in first:
        study.enqueue_trial(values)
    drawn = set()
    for number in range(20):
        trial = study.ask()
        overrides = recipe.space(trial, PLAN)
        json.dumps(overrides)
        params = params_of({"trainable": recipe.TRAINABLE, **getattr(recipe, "PARAMS", {}), **overrides})
        assert all(getattr(params, key) is not None for key in overrides if key != "trainable")
        if number < len(first):
            assert {key: trial.params[key] for key in first[number]} == first[number], "an enqueued value was ignored"
        drawn.add(json.dumps(overrides, sort_keys=True))
    assert len(drawn) > 5, "a sweep that draws the same again and again"


@pytest.mark.parametrize("name", SPACES)
def test_networks_of_a_space_can_be_built(name: str) -> None:
    recipe = recipes.load("search_spaces", name=name)
    for seed in range(5):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        config = {"trainable": recipe.TRAINABLE, **getattr(recipe, "PARAMS", {}), **recipe.space(study.ask(), PLAN)}
        demand_network(config["trainable"], params=params_of(config))


@pytest.mark.parametrize("comparison", COMPARISONS.values(), ids=COMPARISONS)
def test_a_comparison_says_whose_figures_on_which_data(comparison: Comparison) -> None:
    assert comparison.source and comparison.measured
    assert set(comparison.datasets) <= set(DATASETS)
    figures = [value for row in comparison.rows for value in row.published.values()]
    assert len(figures) >= 2 and all(0.0 < value < 1.0 for value in figures), "fractions, not per cent"
    assert all(key.partition("/")[0].startswith(("dice", "nsd")) for row in comparison.rows for key in row.published)


@pytest.mark.parametrize("scale", (1.0, 0.2, 0.01, 1e-6))
@pytest.mark.parametrize(("name", "row"), TRAINED, ids=lambda value: getattr(value, "name", value))
def test_a_row_can_be_trained_at_any_scale(name: str, row: Row, scale: float) -> None:
    """A parameter that its trainable renamed, or a patch that its network cannot halve, fails here."""
    assert row in COMPARISONS[name].rows
    config = config_of(row, plan=PLAN, scale=scale)
    start = {"initial": "folder@digest"} if row.pretrained or row.initial else {}
    params = params_of(config, **start)
    full = params_of(config_of(row, plan=PLAN, scale=1.0), **start)
    assert params.patch_size is not None and full.patch_size is not None
    if scale < 1.0:
        assert params.epochs == pytest.approx(full.epochs * scale, abs=3)
        assert all(8 <= edge <= most for edge, most in zip(params.patch_size, full.patch_size, strict=True))
    demand_network(row.trainable, params=params)


@pytest.mark.parametrize(("name", "row"), TRAINED, ids=lambda value: getattr(value, "name", value))
def test_a_page_says_of_flips_what_is_done(name: str, row: Row) -> None:
    params = params_of(config_of(row, plan=PLAN, scale=1.0))
    task = task_of(params.head or "softmax", patch_size=PLAN.patch_size)
    flipped = load_method(row.trainable).inference(params, task=task).mirror != "none"
    assert not (flipped and "without flips" in COMPARISONS[name].measured)
