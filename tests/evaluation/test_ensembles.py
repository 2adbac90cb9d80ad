"""Every mean is scored once, and what is kept is what would be scored again."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from segsweep.evaluation.contest import Contest
from segsweep.evaluation.contested import Reference, contest
from segsweep.evaluation.decision import Decision
from segsweep.evaluation.ensembles import Ensembles, one_hot, score, uniform
from segsweep.evaluation.measure import Measure

MEMBERSHIP = np.array([[0, 0], [1, 0], [0, 1]], dtype=bool)


@pytest.fixture
def contests() -> list[Contest]:
    """Three candidates on two cases."""
    found = []
    for seed in range(2):
        generator = np.random.default_rng(seed)
        scans = generator.integers(0, 256, (3, 3, 4, 6, 6)).astype(np.uint8)
        found.append(
            contest(
                f"case{seed}",
                candidates=[lambda part, scan=scan: scan[:, part] for scan in scans],
                decision=Decision(membership=MEMBERSHIP, channels="atoms"),
                reference=Reference(
                    label=generator.integers(0, 3, (4, 6, 6)),
                    spacing=(1.0, 1.0, 1.0),
                    membership=MEMBERSHIP,
                    ignored=3,
                    annotated=(0, 1),
                ),
                measure=Measure(),
            )
        )
    return found


def test_additions_are_tables_of_means(contests: list[Contest]) -> None:
    shares = np.array([2, 0, 1])
    found = Ensembles(contests).additions(shares, candidates=[2, 0])
    alone = [Ensembles(contests).table(shares + one_hot(index, count=3)) for index in (2, 0)]
    assert np.array_equal(found, alone)


def test_a_mean_is_scored_once(contests: list[Contest], monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[Sequence[int]] = []
    additions = Contest.additions

    def recorded(self: Contest, shares: np.ndarray, *, candidates: Sequence[int]) -> np.ndarray:
        scored.append(candidates)
        return additions(self, shares, candidates=candidates)

    monkeypatch.setattr(Contest, "additions", recorded)
    ensembles = Ensembles(contests)
    ensembles.table(np.array([4, 4, 0]))
    first = ensembles.additions(np.array([1, 0, 0]), candidates=[0, 1, 2])
    again = ensembles.additions(np.array([0, 0, 1]), candidates=[0, 1])
    assert scored == [[0, 2]] * 2 + [[1]] * 2, "(1, 1, 0) and (1, 0, 1) are known, by case"
    assert np.array_equal(first[2], again[0])


def test_score_is_the_mean_of_structures_means() -> None:
    table = np.array([[1.0, 0.5, math.nan], [math.nan, 0.0, math.nan]])
    assert score(table) == pytest.approx((1.0 + 0.25) / 2)


def test_uniform_is_a_plain_mean() -> None:
    assert uniform([2, 0], count=4).tolist() == [1, 0, 1, 0]
