"""A clean-up is recorded beside a model and comes back as it was; a model with none keeps its method's."""

import json
import math

import pytest

from segsweep.errors import ModelError
from segsweep.learning.inference import CleanUp, Inference, clean_up_from_json


@pytest.mark.parametrize(
    "rules",
    [
        CleanUp(),
        CleanUp(largest=("a/liver", "spleen"), foreground="largest"),
        CleanUp(anchors=("aorta",), farthest_mm=170.0, axes="z"),
        CleanUp(anchors=("aorta",), farthest_mm=math.inf),
    ],
)
def test_rules_come_back_from_strict_json(rules: CleanUp) -> None:
    assert clean_up_from_json(json.loads(json.dumps(rules.to_json(), allow_nan=False))) == rules


def test_what_a_document_records_takes_the_place_of_the_methods_own() -> None:
    own = Inference(overlap=0.25, clean_up=CleanUp(largest=("liver",)))
    assert own.recorded({"run": {}}) == own
    assert own.recorded({"clean_up": {"rules": {"foreground": "largest"}}}) == Inference(
        overlap=0.25, clean_up=CleanUp(foreground="largest")
    )


@pytest.mark.parametrize(
    "rules",
    [
        {"smallest": ["liver"]},
        {"largest": "liver"},
        {"largest": [1]},
        {"farthest_mm": "170"},
        {"axes": 3},
        {"foreground": "most"},
    ],
)
def test_rules_that_are_not_known_are_refused(rules: dict[str, object]) -> None:
    with pytest.raises(
        ModelError, match=f"records the clean-up {next(iter(rules))}; expected rules that this segsweep"
    ):
        Inference().recorded({"clean_up": {"rules": rules}})


@pytest.mark.parametrize("recorded", [{}, [], 5, {"rules": 3}, {"rules": ["largest"]}])
def test_a_record_that_holds_no_rules_is_refused(recorded: object) -> None:
    with pytest.raises(ModelError, match=r"the model's clean_up: cannot be used .*; use another checkpoint"):
        Inference().recorded({"clean_up": recorded})
