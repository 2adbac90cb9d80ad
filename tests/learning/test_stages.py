"""The schedules' check values: nnU-Net's polynomial decay, a warm-up through stages, and steps."""

import pytest

from segsweep.learning.stages import Stage


@pytest.mark.parametrize(
    ("epochs", "epoch", "rate"),
    [
        (1000, 0, 0.01), (1000, 1, 0.009991), (1000, 100, 0.00909533), (1000, 500, 0.00535887), (1000, 900, 0.00125893),
        (1000, 999, 1.995e-5), (2000, 0, 0.01), (2000, 1000, 0.00535887), (2000, 1999, 1.069e-5),
    ],
)  # fmt: skip
def test_poly_rates_are_the_printed_ones(epochs: int, epoch: int, rate: float) -> None:
    assert Stage(name="train", epochs=epochs, learning_rate=0.01).rate(epoch) == pytest.approx(rate, rel=1e-3)


def test_fine_tuning_warms_up_heads_then_all_and_decays() -> None:
    """MultiTalent's fine-tuning to SegRap: 10 epochs of heads to 1e-3, 50 of everything to 1e-2, then nnU-Net's decay over the rest."""
    stages = (
        Stage(name="heads", epochs=10, learning_rate=1e-3, schedule="rise"),
        Stage(name="warm", epochs=50, learning_rate=1e-2, schedule="rise"),
        Stage(name="train", epochs=1940, learning_rate=1e-2),
    )
    rates = [stage.rate(epoch) for stage in stages for epoch in range(stage.epochs)]
    assert len(rates) == 2000
    expected = {0: 1e-4, 9: 1e-3, 10: 2e-4, 34: 5e-3, 59: 1e-2, 60: 1e-2, 61: 1e-2 * (1 - 1 / 1940) ** 0.9}
    assert {epoch: rates[epoch] for epoch in expected} == pytest.approx(expected)
    assert rates[1999] == pytest.approx(1e-2 * (1 / 1940) ** 0.9)


def test_a_later_stage_goes_on_with_a_longer_decay() -> None:
    whole = Stage(name="train", epochs=150, learning_rate=1e-3)
    first = Stage(name="train", epochs=140, learning_rate=1e-3, horizon=150)
    last = Stage(name="end", epochs=10, learning_rate=first.rate(140))
    rates = [stage.rate(epoch) for stage in (first, last) for epoch in range(stage.epochs)]
    assert rates == pytest.approx([whole.rate(epoch) for epoch in range(150)])


def test_steps_halve_after_every_period() -> None:
    stage = Stage(name="train", epochs=500, learning_rate=0.01, schedule="step", period=200)
    assert [stage.rate(epoch) for epoch in (0, 199, 200, 399, 400)] == [0.01, 0.01, 0.005, 0.005, 0.0025]
    never = Stage(name="train", epochs=150, learning_rate=0.01, schedule="step", period=150)
    assert {never.rate(epoch) for epoch in range(150)} == {0.01}


def test_a_constant_rate_stays() -> None:
    stage = Stage(name="train", epochs=9, learning_rate=0.3, schedule="constant")
    assert {stage.rate(epoch) for epoch in range(9)} == {0.3}
