"""What a sweep optimises: names are checked, and of several objectives the best trials are those that none beats."""

import pytest

from segsweep.sweeps.tuning_objectives import front, parse_objectives, worst


def test_names_of_objectives() -> None:
    assert parse_objectives("dice") == ("dice",)
    assert parse_objectives("dice,memory_gb,seconds_per_case") == ("dice", "memory_gb", "seconds_per_case")
    assert parse_objectives("nsd,dice") == ("nsd", "dice")
    with pytest.raises(ValueError, match=r"no 'second_per_case' among objectives .*did you mean 'seconds_per_case'"):
        parse_objectives("dice,second_per_case")
    for text in ("seconds_per_case", "seconds_per_case,dice", "dice,dice"):
        with pytest.raises(ValueError, match=f"objective={text} cannot be used: expected dice or nsd first"):
            parse_objectives(text)


def test_the_front_is_what_nothing_else_beats() -> None:
    values = [
        {"dice": 0.9, "seconds_per_case": 40.0},
        {"dice": 0.8, "seconds_per_case": 50.0},
        {"dice": 0.7, "seconds_per_case": 10.0},
        {"dice": 0.7, "seconds_per_case": 10.0},
        {"dice": 0.7, "seconds_per_case": 11.0},
    ]
    assert front(values, objectives=("dice", "seconds_per_case")) == [0, 2, 3], "equal trials do not beat each other"
    assert front(values, objectives=("dice",)) == [0]
    assert front([], objectives=("dice",)) == []


def test_the_worst_of_each_objective() -> None:
    objectives = ("dice", "seconds_per_case")
    assert worst([[0.9, 40.0], [0.7, 10.0]], objectives=objectives) == [0.7, 40.0]
    assert worst([], objectives=objectives) == [0.0, 0.0]
