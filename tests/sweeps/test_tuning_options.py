"""What a sweep may be asked for: words and numbers that mean nothing are refused."""

from typing import Any

import pytest

from segsweep.sweeps.tuning_options import SweepOptions, parse_folds


def test_options_that_do_not_exist_are_refused() -> None:
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"sampler": "tpa"}, "no 'tpa' among values of sampler .*did you mean 'tpe'"),
        ({"stop": "never"}, "no 'never' among values of stop"),
        ({"stop": "asha", "grace": 0}, "stop=asha cannot be used with grace=0"),
        ({"stop": "hyperband", "grace": 0}, "stop=hyperband cannot be used with grace=0"),
        ({"grace": 20}, "grace=20 cannot be used: expected a share of a trial's epochs"),
        ({"objective": "dice,speed"}, "no 'speed' among objectives"),
        *(
            ({"folds": text}, f"folds={text} cannot be used: expected all, or numbers")
            for text in ("0,0", "-1", "0,all", "")
        ),
        *(
            ({"name": name}, "cannot be used: expected a letter or digit, then")
            for name in ("/tmp/x", "..", ".", "a/b", "-x")
        ),
        ({"gpus": 2.0}, r"gpus=2\.0 cannot be used: expected a share above 0, at most 1"),
    )
    for options, words in refused:
        with pytest.raises(ValueError, match=words):
            SweepOptions(**options)
    assert SweepOptions(stop="hyperband", grace=0.5, warm="a,b").earlier == ("a", "b")
    assert SweepOptions(name="second try.2").earlier == ()


def test_folds_are_numbers_in_the_given_order_or_all() -> None:
    assert [parse_folds(text) for text in ("0", "2,0,10", "all")] == [(0,), (2, 0, 10), ()]
