"""Scores of a run: as its model will segment, and how they are averaged."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segsweep import recipes
from segsweep.data.planning import Normalisation
from segsweep.data.store import open_store
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError
from segsweep.evaluation.metrics import score
from segsweep.evaluation.profiles import profile
from segsweep.evaluation.whole_scans import Case, _nsd
from segsweep.inference.predictor import Member
from segsweep.learning import checkpoint
from segsweep.learning.checkpoint import Snapshot
from segsweep.learning.inference import CleanUp, Inference
from segsweep.learning.method import load_method
from segsweep.learning.task import Task
from segsweep.run import Run
from segsweep.sweeps.validation import Validated, summarise, validate


def test_scores_are_averaged_over_cases_then_over_structures() -> None:
    scores = {"a": {"Eye": 1.0, "Brain": 0.5}, "b": {"Eye": 0.5}, "c": {}}
    assert summarise(scores) == {"dice": 0.625, "dice/Brain": 0.5, "dice/Eye": 0.75}
    assert summarise({}) == {}


def test_a_cases_costs_are_those_of_the_median_case() -> None:
    cases = {name: Case(dice={}, seconds=seconds) for name, seconds in (("a", 2.0), ("b", 9.0), ("c", 3.0))}
    assert Validated(cases=cases, memory=4 * 10**9).costs() == {"seconds_per_case": 3.0, "memory_gb": 4.0}
    assert Validated(cases={}, memory=1).costs() == {}


class Everywhere(torch.nn.Module):
    """Every structure at every voxel, the last one the most certain."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.halved = False

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        self.halved = torch.is_autocast_enabled("cpu")
        return [torch.ones_like(image[:, :1]) * torch.arange(1, self.outputs + 1).view(1, -1, 1, 1, 1)]


def test_a_run_is_scored_as_its_model_will_segment(
    tiny_store: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = np.zeros((16, 32, 32), dtype=np.uint8)
    label[:8] = 1
    store = open_store(tiny_store("a", labels=LabelSet(structures=("liver",)), cases={"c": label}))
    rule = Normalisation(scheme="ct", low=-100, high=200)
    task = Task(
        channels=("CT",), table=store.table, head="softmax", patch_size=(16, 32, 32), spacing=(2.0, 1.0, 1.0),
        normalisation=(rule,),
    )  # fmt: skip
    given: dict[str, Any] = {"task": task, "store": store, "case_ids": ("c",), "precision": "auto"}
    anchored = CleanUp(anchors=("liver",), farthest_mm=-1.0)
    for rules, dice in ((CleanUp(), 2 / 3), (anchored, 0.0)):
        pictures = tmp_path / "overlays"
        found = validate(Everywhere(2), inference=Inference(clean_up=rules), finder=None, pictures=pictures, **given)
        assert [path.name for path in pictures.iterdir()] == ["c.png"]
        assert found.scores == {"c": {"liver": pytest.approx(dice)}}
        assert found.nsd == {}
        costs = found.costs()
        assert costs["seconds_per_case"] == found.cases["c"].seconds > 0
        assert 0.01 < costs["memory_gb"] < 1000
    # By NSD as by the evaluation's profile of the same tolerance, also where there is nothing.
    surfaces = validate(Everywhere(2), inference=Inference(), finder=None, nsd_tolerance=2.0, **given).nsd
    whole = np.ones((16, 32, 32), dtype=bool)
    how: dict[str, Any] = {
        "case": "c",
        "structure": "liver",
        "spacing": (2.0, 1.0, 1.0),
        "rule": profile("plain").rule("liver"),
    }
    assert surfaces == {"c": {"liver": score(whole, reference=label > 0, **how).nsd}}
    assert 0 < surfaces["c"]["liver"] < 1
    nothing = np.zeros((4, 4, 4), dtype=bool)
    assert _nsd(nothing, truth=nothing, spacing=(1.0, 1.0, 1.0), tolerance=2.0) == 1.0
    # On a GPU in the numbers that it was trained in.
    monkeypatch.setattr(Member, "on_gpu", True)
    for precision in ("bfloat16", "float32"):
        model = Everywhere(2)
        validate(model, inference=Inference(), finder=None, **{**given, "precision": precision})
        assert model.halved == (precision == "bfloat16")
    # A finder that takes two channels cannot look at this scan: whoever asks it says so.
    two, method = dataclasses.replace(task, channels=("CT", "PET"), normalisation=(rule, rule)), load_method("unet")
    params = method.params({"features": 4})
    weights = method.build(params, task=two).state_dict()
    run = Run(trainable="unet", store=store.uri)
    document = {"run": run.to_json(), "task": two.to_json(), "params": recipes.params_json(params)}
    checkpoint.save(tmp_path / "finder", snapshot=Snapshot(weights=weights, metrics={}, epoch=0), run=document)
    with pytest.raises(InputError, match=r"the model expects \('CT', 'PET'\)"):
        validate(Everywhere(2), inference=Inference(margin_mm=1.0), finder=tmp_path / "finder", **given)
