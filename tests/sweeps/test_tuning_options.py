"""What a sweep may be asked for: words and numbers that mean nothing are refused."""

from typing import Any

import pytest

from segsweep.sweeps.tuning_options import SweepOptions


def test_options_that_do_not_exist_are_refused() -> None:
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"sampler": "tpa"}, "no 'tpa' among values of sampler .*did you mean 'tpe'"),
        ({"stop": "never"}, "no 'never' among values of stop"),
        ({"stop": "hyperband"}, "stop=hyperband cannot be used with grace=0"),
        ({"objective": "dice,speed"}, "no 'speed' among objectives"),
        ({"gpus": 2.0}, r"gpus=2\.0 cannot be used: expected a share above 0, at most 1"),
    )
    for options, words in refused:
        with pytest.raises(ValueError, match=words):
            SweepOptions(**options)
    assert SweepOptions(stop="hyperband", grace=1, warm="a,b").earlier == ("a", "b")
    assert SweepOptions().earlier == ()
