"""What models can be chosen by, and what cannot be."""

import math

import pytest

from segsweep.errors import RecipeError
from segsweep.evaluation.measure import Measure


def test_a_measure_is_named_with_its_tolerance() -> None:
    assert (str(Measure()), str(Measure(metric="nsd")), str(Measure(metric="nsd", nsd_tolerance=1.5))) == (
        "Dice",
        "NSD at 2 mm",
        "NSD at 1.5 mm",
    )


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no 'ncd' among metrics \(there are: dice, nsd\); did you mean 'nsd'"):
        Measure(metric="ncd")


@pytest.mark.parametrize("tolerance", [0, -1.0, math.inf, math.nan])
def test_a_tolerance_is_a_length(tolerance: float) -> None:
    with pytest.raises(RecipeError, match=f"nsd_tolerance={tolerance} cannot be used: expected a length in mm above 0"):
        Measure(metric="nsd", nsd_tolerance=tolerance)
