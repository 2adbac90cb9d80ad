from collections import Counter

import numpy as np
import pytest

from segsweep.learning.patches import TrainingCase
from segsweep.learning.sampling import Turn, case_shares, choose, source_order

# Cases of the datasets of MultiTalent's table, with the share of patches that it gives each.
MULTITALENT = {
    "TotalSegmentator": (1204, 0.193),
    "HepaticVessel": (303, 0.097),
    "AMOS": (300, 0.096),
    "Pancreas": (281, 0.093),
    "KiTS": (207, 0.080),
    "Liver": (131, 0.064),
    "Colon": (126, 0.062),
    "BTCV2": (90, 0.053),
    "NIH": (78, 0.049),
    "Lung": (62, 0.044),
    "StructSeg": (50, 0.039),
    "Spleen": (41, 0.036),
    "SegTHOR": (40, 0.035),
    "BTCV": (30, 0.030),
    "pelvis": (30, 0.030),
}


class NoGrid:
    shape, foreground = (8, 8, 8), {}

    def read_image(self, region):
        raise AssertionError(region)

    read_label = read_image


def cases(*sizes):
    return [
        TrainingCase(case_id=f"{source}.{index}", grid=NoGrid(), annotated=(True,), source=source)
        for source, size in enumerate(sizes)
        for index in range(size)
    ]


def drawn(sampling, *sizes, turns, iterations=10):
    """Sources of all samples of the turns, two a batch."""
    return [
        [
            case.source
            for case in choose(
                cases(*sizes), number=2, sampling=sampling, iterations=iterations, turn=turn, generator=turn.generator()
            )
        ]
        for turn in turns
    ]


def test_by_the_square_root_datasets_have_the_printed_shares():
    sources = [index for index, (size, _) in enumerate(MULTITALENT.values()) for _ in range(size)]
    shares = np.bincount(sources, weights=case_shares(sources))
    np.testing.assert_allclose(shares, [share for _, share in MULTITALENT.values()], atol=0.0006)


def test_draws_follow_the_shares():
    turns = [Turn(step=step) for step in range(1500)]
    for sampling, share in (("uniform", 0.9), ("sqrt", 0.75)):
        assert np.mean(np.array(drawn(sampling, 90, 10, turns=turns)) == 0) == pytest.approx(share, abs=0.03)


def test_cases_are_drawn_uniformly_with_replacement():
    generator = np.random.default_rng(2)
    chosen = choose(cases(4), number=2000, sampling="uniform", iterations=1, turn=Turn(), generator=generator)
    assert all(count == pytest.approx(500, abs=80) for count in Counter(case.case_id for case in chosen).values())


@pytest.mark.parametrize(("iterations", "counts"), [(30, {10}), (32, {10, 11}), (2, {0, 1})])
def test_by_quota_every_source_has_as_many_steps_of_an_epoch(iterations, counts):
    order = source_order((3, 5, 7), iterations=iterations, seed=0, epoch=4)
    assert len(order) == iterations
    assert {order.count(source) for source in (3, 5, 7)} == counts


def test_by_quota_a_source_is_drawn_evenly_among_those_with_steps_left():
    orders = [source_order((0, 1), iterations=4, seed=0, epoch=epoch) for epoch in range(2000)]
    seen = Counter(orders)
    # A shuffle would give all six orders 1/6; drawing among what is left ends after two equal draws.
    assert seen[(0, 0, 1, 1)] / 2000 == pytest.approx(1 / 4, abs=0.03)
    assert seen[(0, 1, 1, 0)] / 2000 == pytest.approx(1 / 8, abs=0.03)
    assert len(seen) == 6


def test_by_quota_a_batch_has_one_source_whatever_the_worker_and_epochs_differ():
    turns = [Turn(epoch=1, step=step) for step in range(10)]
    batches = drawn("quota", 5, 20, turns=turns)
    assert all(len(set(batch)) == 1 for batch in batches)
    assert sum(batch[0] for batch in batches) == 5
    others = [Turn(epoch=1, step=step, rank=1, ranks=2) for step in range(10)]
    assert [batch[0] for batch in drawn("quota", 5, 20, turns=others)] == [batch[0] for batch in batches]
    later = [Turn(epoch=2, step=step) for step in range(10)]
    assert [batch[0] for batch in drawn("quota", 5, 20, turns=later)] != [batch[0] for batch in batches]


def test_workers_draw_their_own():
    assert Turn(rank=0, ranks=2).generator().random() != Turn(rank=1, ranks=2).generator().random()
