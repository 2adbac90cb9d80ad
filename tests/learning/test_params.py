"""Values that cannot train are refused when they are given, by name."""

import pytest

from segsweep.learning.params import TrainingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("iterations", 0), ("accumulate", 0), ("batch_size", 0), ("learning_rate", -1.0),
        ("learning_rate", float("inf")), ("weight_decay", float("nan")), ("foreground", 1.01), ("ema", 1.0), ("ema", -0.1),
        ("scan_validation_every", -1), ("validation_iterations", -1), ("patch_size", (7, 8, 8)),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.* cannot be used: expected"):
        TrainingParams(**{name: value})  # type: ignore[arg-type]


def test_limits_are_allowed() -> None:
    TrainingParams(epochs=1, accumulate=1, ema=0.0, scan_validation_every=0, foreground=1.0, patch_size=(8, 8, 8))
    TrainingParams(ema=0.9999, scan_validation_every=1, validation_iterations=0, foreground=0.0, learning_rate=0.0)
