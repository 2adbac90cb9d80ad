"""Counted by hand, and against a plain loop over lesions written from the two definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segsweep.evaluation.lesions import LESION_COLUMNS, lesion_score


def blobs(*boxes):
    mask = np.zeros((6, 12, 20), dtype=bool)
    for z, y, x in boxes:
        mask[slice(*z), slice(*y), slice(*x)] = True
    return mask


def scored(prediction, *, reference, **options):
    return lesion_score(prediction, reference=reference, case="a", structure="lesion", **options)


def test_columns():
    assert ",".join(LESION_COLUMNS) == (
        "case,structure,lesions_reference,lesions_prediction,found,missed,invented,f1,dice"
    )


def test_found_missed_and_invented():
    first, second, third = ((0, 2), (0, 2), (0, 4)), ((3, 5), (5, 8), (6, 10)), ((0, 6), (10, 12), (15, 20))
    stranger = ((0, 1), (5, 6), (12, 13))
    reference = blobs(first, second)
    # The first is found in two pieces of 4 voxels each, the second is missed, and two others are invented.
    prediction = blobs(((0, 2), (0, 2), (0, 1)), ((0, 2), (0, 2), (3, 4)), third, stranger)
    one = scored(prediction, reference=reference)
    assert (one.lesions_reference, one.lesions_prediction) == (2, 4)
    assert (one.found, one.missed, one.invented) == (1, 1, 2)
    assert one.f1 == pytest.approx(2 / (2 + 1 + 2))
    assert one.dice == pytest.approx((2 * 8 / (16 + 8)) / 4)


def test_a_corner_joins_two_voxels():
    reference = blobs(((0, 1), (0, 1), (0, 1)), ((1, 2), (1, 2), (1, 2)))
    assert scored(reference, reference=reference).lesions_reference == 1


@pytest.mark.parametrize("both_empty", [1.0, 0.0])
def test_no_lesion(both_empty):
    nothing, something = blobs(), blobs(((0, 2), (0, 2), (0, 4)))
    none = scored(nothing, reference=nothing, both_empty=both_empty)
    assert (none.f1, none.dice) == (both_empty, both_empty)
    for one in (scored(nothing, reference=something), scored(something, reference=nothing)):
        assert (one.f1, one.dice, one.found) == (0.0, 0.0, 0)


def components(mask):
    """Sets of voxels that touch, by growing each from its first voxel."""
    left = {tuple(place) for place in np.argwhere(mask).tolist()}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
    while left:
        found, fresh = set(), {left.pop()}
        while fresh:
            found |= fresh
            near = {tuple(a + b for a, b in zip(place, step, strict=True)) for place in fresh for step in steps}
            fresh = near & left
            left -= fresh
        yield found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.03, 0.1, 0.2]))
def test_agrees_with_a_loop_over_lesions(seed, share):
    reference, prediction = np.random.default_rng(seed).random((2, 5, 6, 7)) < share
    drawn, predicted = list(components(reference)), list(components(prediction))
    all_drawn = set().union(*drawn)
    touching = [[other for other in predicted if other & lesion] for lesion in drawn]
    dices = [
        2 * len(lesion & set().union(*others)) / (len(lesion) + len(set().union(*others))) if others else 0.0
        for lesion, others in zip(drawn, touching, strict=True)
    ]
    found, invented = sum(map(bool, touching)), sum(not other & all_drawn for other in predicted)
    one = scored(prediction, reference=reference)
    assert (one.lesions_reference, one.lesions_prediction) == (len(drawn), len(predicted))
    assert (one.found, one.missed, one.invented) == (found, len(drawn) - found, invented)
    total = len(drawn) + invented
    assert one.dice == pytest.approx(sum(dices) / total if total else 1.0)
    assert one.f1 == pytest.approx(found / (found + (one.missed + invented) / 2) if total else 1.0)
