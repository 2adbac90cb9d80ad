from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit, softmax

from segsweep.data.geometry import Geometry, Size
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import InputError, ModelError
from segsweep.inference import export
from segsweep.inference.export import Output, Scores, combine, label_on_grid, structure_probabilities
from segsweep.learning.task import Head, Normalisation, Task

TABLE = LabelTable(labels=LabelSet(structures=("brain", "stem", "eye")), atoms=((), (0,), (2,), (0, 1)))


def grid(shape: Size) -> Geometry:
    spacing = tuple(60.0 / n for n in shape)
    origin = tuple(step / 2 for step in spacing[::-1])
    return Geometry(
        shape=shape,
        spacing=(spacing[0], spacing[1], spacing[2]),
        origin=(origin[0], origin[1], origin[2]),
        direction=(1, 0, 0, 0, 1, 0, 0, 0, 1),
    )


def task(head: Head, *, table: LabelTable = TABLE) -> Task:
    return Task(
        channels=("CT",),
        table=table,
        head=head,
        patch_size=(8, 8, 8),
        spacing=(1.0, 1.0, 1.0),
        normalisation=(Normalisation(scheme="ct", low=-1, high=1),),
    )


def output(logits: NDArray, *, head: Head, table: LabelTable = TABLE, weight: float = 1.0) -> Output:
    return Output(planes=lambda: planes(logits), task=task(head, table=table), weight=weight)


def planes(values: NDArray) -> list[NDArray[np.float32]]:
    """The slices of (k, z, y, x)."""
    return list(np.moveaxis(values.astype(np.float32), 1, 0))


def values(scores: Scores) -> NDArray[np.float32]:
    """The whole of what comes slice by slice."""
    return np.stack(list(scores.planes), axis=1)


def smooth(count: int, *, shape: Size, seed: int) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(count, *shape))
    return ndimage.gaussian_filter(values, (0, 1, 1, 1)).astype(np.float32)


def whole_volume(scores: NDArray, *, shape: Size) -> NDArray[np.float64]:
    """The oracle: all scores on the target grid at once, in float64, by map_coordinates."""
    at = [(np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(scores.shape[1:], shape, strict=True)]
    index = np.meshgrid(*at, indexing="ij")
    return np.stack([ndimage.map_coordinates(one.astype(float), index, order=1, mode="nearest") for one in scores])


def assert_same_but_for_ties(label: NDArray, *, scores: NDArray) -> None:
    top = np.sort(scores, axis=0)
    clear = top[-1] - top[-2] > 1e-9
    assert clear.mean() > 0.95
    assert np.array_equal(label[clear], scores.argmax(axis=0)[clear])


def same_table(membership: NDArray | None) -> bool:
    return membership is not None and np.array_equal(membership, TABLE.membership)


sizes = st.tuples(*(st.integers(1, 9) for _ in range(3)))


@settings(max_examples=60, deadline=None)
@given(source=sizes, target=sizes, seed=st.integers(0, 99))
def test_equals_interpolating_the_whole_volume(source: Size, target: Size, seed: int):
    scores = np.random.default_rng(seed).normal(size=(5, *source)).astype(np.float32)
    label = label_on_grid(planes(scores), geometry_from=grid(source), geometry_to=grid(target))
    assert label.shape == target
    assert_same_but_for_ties(label, scores=whole_volume(scores, shape=target))


@pytest.mark.parametrize("target", [(21, 30, 19), (5, 7, 8), (12, 14, 16), (1, 40, 3)])
def test_large_regions_of_one_label_are_exact_too(target: Size):
    scores = 10 * smooth(6, shape=(12, 14, 16), seed=4)
    label = label_on_grid(planes(scores), geometry_from=grid((12, 14, 16)), geometry_to=grid(target))
    assert_same_but_for_ties(label, scores=whole_volume(scores, shape=target))


def test_structure_logits_become_atoms_after_interpolation():
    logits = smooth(3, shape=(7, 8, 9), seed=5)
    label = label_on_grid(
        planes(logits), geometry_from=grid((7, 8, 9)), geometry_to=grid((15, 12, 20)), membership=TABLE.membership
    )
    atoms = np.tensordot(TABLE.membership.astype(float), whole_volume(logits, shape=(15, 12, 20)), axes=1)
    assert_same_but_for_ties(label, scores=atoms)


def test_the_sigmoid_argmax_is_the_threshold_where_the_set_is_an_atom():
    logits = np.random.default_rng(6).normal(size=(3, 6, 6, 6)).astype(np.float32)
    label = label_on_grid(
        planes(logits), geometry_from=grid((6, 6, 6)), geometry_to=grid((6, 6, 6)), membership=TABLE.membership
    )
    chosen = [tuple(np.flatnonzero(one).tolist()) for one in (logits > 0).reshape(3, -1).T]
    known = [(atom, TABLE.atoms.index(atom)) for atom in chosen if atom in TABLE.atoms]
    assert len(known) > 50
    for atom, value in zip(chosen, label.ravel(), strict=True):
        assert atom not in TABLE.atoms or TABLE.atoms[value] == atom


def test_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch):
    scores = smooth(6, shape=(6, 7, 8), seed=7)
    source, target = grid((6, 7, 8)), grid((13, 15, 17))
    whole = label_on_grid(planes(scores), geometry_from=source, geometry_to=target)
    monkeypatch.setattr(export, "MOST_NUMBERS", 60)
    assert np.array_equal(label_on_grid(planes(scores), geometry_from=source, geometry_to=target), whole)


def test_many_atoms_need_16_bits():
    scores = np.zeros((300, 1, 1, 2), dtype=np.float32)
    scores[299, 0, 0, 1] = 1
    label = label_on_grid(planes(scores), geometry_from=grid((1, 1, 2)), geometry_to=grid((1, 1, 2)))
    assert label.dtype == np.uint16 and label.ravel().tolist() == [0, 299]


def test_another_extent_is_refused():
    elsewhere = replace(grid((4, 4, 4)), origin=(0.0, 0.0, 90.0))
    with pytest.raises(InputError, match="extent"):
        label_on_grid(planes(np.zeros((2, 4, 4, 4))), geometry_from=grid((4, 4, 4)), geometry_to=elsewhere)


def test_heads_give_structure_probabilities():
    logits = np.random.default_rng(8).normal(size=(4, 1, 1, 2)).astype(np.float32)
    p = softmax(logits, axis=0)
    found = structure_probabilities(logits, task=task("softmax"))
    assert np.allclose(found, [p[1] + p[3], p[3], p[2]], atol=1e-6)
    assert np.allclose(structure_probabilities(logits[:3], task=task("sigmoid")), expit(logits[:3]), atol=1e-6)


def test_one_member_keeps_its_logits():
    logits = smooth(3, shape=(2, 2, 2), seed=9)
    scores = combine([output(logits, head="sigmoid")])
    assert np.array_equal(values(scores), logits) and same_table(scores.membership)


def test_equal_softmax_members_average_probabilities_by_weight():
    first, second = smooth(4, shape=(3, 3, 3), seed=10), smooth(4, shape=(3, 3, 3), seed=11)
    scores = combine([output(first, head="softmax", weight=3.0), output(second, head="softmax")])
    expected = 0.75 * softmax(first, axis=0) + 0.25 * softmax(second, axis=0)
    assert scores.membership is None and np.allclose(values(scores), expected, atol=1e-6)


def test_different_heads_and_orders_meet_in_structures():
    first = smooth(4, shape=(3, 3, 3), seed=12)
    other = LabelTable(labels=LabelSet(structures=("eye", "brain", "stem")), atoms=((), (0,), (1,)))
    second = smooth(3, shape=(3, 3, 3), seed=13)
    scores = combine([output(first, head="softmax"), output(second, head="sigmoid", table=other)])
    p = softmax(first, axis=0)
    expected = (np.stack([p[1] + p[3], p[3], p[2]]) + expit(second)[[1, 2, 0]]) / 2
    assert same_table(scores.membership)
    assert np.allclose(expit(values(scores)), expected, atol=1e-5)


def test_certain_members_stay_finite():
    logits = np.full((3, 1, 1, 1), 500, dtype=np.float32)
    scores = combine([output(logits, head="sigmoid"), output(logits, head="sigmoid")])
    assert np.isfinite(values(scores)).all()


def test_members_of_other_structures_are_refused():
    other = LabelTable(labels=LabelSet(structures=("brain", "stem", "nose")), atoms=((), (0,), (1,)))
    logits = smooth(3, shape=(2, 2, 2), seed=14)
    with pytest.raises(ModelError, match="nose"):
        combine([output(logits, head="sigmoid"), output(logits, head="sigmoid", table=other)])
