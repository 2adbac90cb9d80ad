"""nnU-Net's criterion on numbers worked out by hand, and what a case gives for each of the rules."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segsweep.data.planning import Normalisation
from segsweep.data.store import open_store
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.evaluation.postprocessing import Gain, choose, try_case
from segsweep.inference.predictor import Member, Predictor
from segsweep.learning.inference import CleanUp, Inference
from segsweep.learning.task import Task


def tried(present: list[float], foreground: list[float], structures: list[float], both: list[float]) -> dict:
    """One case with the Dice of structures a, b, … by variant."""
    rows = {"present": present, "foreground": foreground, "structures": structures, "both": both}
    return {variant: dict(zip("abc", values, strict=False)) for variant, values in rows.items()}


def test_structures_are_chosen_one_by_one_where_the_whole_foreground_does_not_help() -> None:
    cases = {
        "1": tried([0.5, 0.8, 0.6], [0.9, 0.8, 0.4], [0.7, 0.7, 0.6], [0.9, 0.9, 0.9]),
        "2": tried([0.5, 0.8, 0.6], [0.9, 0.8, 0.6], [0.4, 0.8, 0.6], [0.9, 0.9, 0.9]),
    }
    found = choose(cases, present=CleanUp())
    assert found.rules == CleanUp(largest=("a",)), "c falls with the foreground, b falls by itself"
    assert found.helps and found.gains["a"].after == pytest.approx(0.55)
    assert (found.gains["a"].before, found.gains["a"].better, found.gains["a"].worse) == (0.5, 1, 1)
    assert found.gains["b"] == Gain(before=0.8, after=0.8, better=0, worse=0)
    assert found.scores["1"] == {"a": 0.7, "b": 0.8, "c": 0.6}
    assert (found.before, found.after) == (pytest.approx(1.9 / 3), pytest.approx(1.95 / 3))


def test_structures_are_tried_after_the_foreground_where_that_helps() -> None:
    cases = {"1": tried([0.5, 0.8], [0.6, 0.8], [0.9, 0.9], [0.6, 0.85])}
    found = choose(cases, present=CleanUp(largest=("a",), anchors=("b",), farthest_mm=9.0))
    assert found.rules == CleanUp(largest=("a", "b"), anchors=("b",), farthest_mm=9.0, foreground="largest")
    assert found.scores == {"1": {"a": 0.6, "b": 0.85}}


def test_where_nothing_rises_nothing_is_added() -> None:
    same = [0.1 + 0.2, 0.8]
    found = choose({"1": tried(same, same, [0.3, 0.8], same)}, present=CleanUp(largest=("b",)))
    assert not found.helps and found.rules == CleanUp(largest=("b",)) and found.before == found.after


def test_a_structure_counts_in_the_cases_that_know_it() -> None:
    cases = {"1": tried([0.5], [0.5], [0.9], [0.9]), "2": tried([0.5, 0.4], [0.5, 0.4], [0.5, 0.6], [0.5, 0.6])}
    found = choose(cases, present=CleanUp())
    assert found.rules.largest == ("a", "b")
    assert found.gains["b"] == Gain(before=0.4, after=0.6, better=1, worse=0)


class Shown(torch.nn.Module):
    """The organ in the first slice and a crumb in the last corner, whatever the scan shows."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        score = torch.full_like(image, -1.0)
        score[:, :, 0] = score[:, :, 3, 7, 6:] = 1.0
        return [torch.cat([torch.zeros_like(score), score], dim=1)]


def test_a_case_is_segmented_without_the_models_own_rules_and_scored_with_them(
    tiny_store: Callable[..., Path],
) -> None:
    label = np.zeros((4, 8, 8), dtype=np.uint8)
    label[:2], label[3, 7, 7] = 1, 9
    labels = LabelSet(structures=("organ",))
    store = open_store(tiny_store("a", labels=labels, cases={"c": label}, ignore=9))
    task = Task(
        channels=("CT",), table=LabelTable(labels=labels, atoms=((), (0,))), head="softmax", patch_size=(4, 8, 8),
        spacing=(2.0, 1.0, 1.0), normalisation=(Normalisation(scheme="ct", low=-2000.0, high=2000.0),),
    )  # fmt: skip
    own = CleanUp(largest=("organ",))
    member = Member(model=Shown(), task=task, inference=Inference(overlap=0.0, clean_up=own))
    found = try_case(Predictor(members=(member,)), store=store, case_id="c")
    # Found: the organ's upper half (64 voxels), and a crumb of 2 in which one voxel is ignored; the truth has 128.
    plain, cleaned = 2 * 64 / (128 + 65), 2 * 64 / (128 + 64)
    assert found == {
        name: {"organ": pytest.approx(cleaned)} for name in ("present", "foreground", "structures", "both")
    }
    bare = Member(model=Shown(), task=task, inference=Inference(overlap=0.0))
    found = try_case(Predictor(members=(bare,)), store=store, case_id="c")
    assert found["present"] == {"organ": pytest.approx(plain)} and found["both"] == {"organ": pytest.approx(cleaned)}
