"""A card says how good a model is and how sure that is, within what MLflow takes of a description."""

import pytest

from segsweep.models.cards import card, in_words, overall

SCORES = {"a": {"Eye": 1.0, "Brain": 0.5}, "b": {"Eye": 0.5}, "c": {}}


def test_means_are_those_of_a_result_with_intervals_over_cases() -> None:
    mean = overall(SCORES)
    assert (mean.mean, mean.cases) == (0.625, 2)
    assert mean.low <= 0.5 < mean.high
    assert in_words(SCORES) == f"{mean.low:.3f} to {mean.high:.3f} (95 %, 2 cases)"
    assert card(SCORES).startswith("**Dice 0.625** on 2 cases held out")
    assert "| Eye | &emsp;0.750 | &emsp;0.500 to 1.000 | &emsp;2 |" in card(SCORES)
    assert "| Brain | &emsp;0.500 | &emsp;0.500 to 0.500 | &emsp;1 |" in card(SCORES)


@pytest.mark.parametrize("scores", [{}, {"a": {}}])
def test_nothing_scored_is_nothing_said(scores: dict[str, dict[str, float]]) -> None:
    assert card(scores) == ""


def test_many_structures_fit_into_a_description() -> None:
    scores = {"a": {f"a structure with a long name {number}": 0.5 for number in range(120)}}
    text = card(scores)
    assert len(text) < 5000
    assert text.endswith("70 more are in the run's table `dice_per_structure.json`.")


def test_names_do_not_break_the_table() -> None:
    assert r"| left\|right | &emsp;0.500 |" in card({"a": {"left|right": 0.5}})
