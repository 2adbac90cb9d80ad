"""Atoms lose nothing, whatever overlaps; tables turn left into right and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segsweep.data.structures import IGNORE, IGNORED, LabelSet, LabelTable, encode, join, lookup
from segsweep.errors import InputError

SHAPE = (2, 3, 4)
LABELS = LabelSet(structures=("Brain", "BrainStem", "Eye_L", "Eye_R"), pairs=(("Eye_L", "Eye_R"),))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.integers(0, 5), arrays(np.bool_, SHAPE), max_size=6))
def test_encode_equals_brute_force(masks: dict[int, np.ndarray]) -> None:
    coded = encode(masks, shape=SHAPE)
    for voxel in np.ndindex(SHAPE):
        assert coded.atoms[coded.label[voxel]] == tuple(sorted(index for index in masks if masks[index][voxel]))
    assert coded.atoms[0] == ()
    assert len(set(coded.atoms)) == len(coded.atoms)
    assert set(np.unique(coded.label)) | {0} == set(range(len(coded.atoms)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 3), arrays(np.bool_, SHAPE), max_size=4), min_size=1, max_size=3))
def test_join_and_lookup_keep_every_case(cases: list[dict[int, np.ndarray]]) -> None:
    coded = [encode(masks, shape=SHAPE) for masks in cases]
    table = LabelTable(labels=LABELS, atoms=join(case.atoms for case in coded))
    for masks, case in zip(cases, coded, strict=True):
        label = lookup(case.atoms, target=table.atoms)[case.label]
        for index, name in enumerate(LABELS.structures):
            np.testing.assert_array_equal(table.mask(label, structure=name), masks.get(index, np.zeros(SHAPE, bool)))


def test_many_atoms_need_two_bytes() -> None:
    bits = np.arange(512)
    masks = {index: (bits >> index & 1).astype(bool).reshape(8, 8, 8) for index in range(9)}
    coded = encode(masks, shape=(8, 8, 8))
    assert len(coded.atoms) == 512
    assert coded.label.dtype == np.uint16
    assert sorted(coded.label.ravel().tolist()) == list(range(512))


def test_membership_and_values() -> None:
    table = LabelTable(labels=LABELS, atoms=((), (0,), (2,), (0, 1)))
    assert table.membership.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]]
    assert table.values("Brain") == (1, 3)
    assert table.values("Eye_R") == ()


def test_mirroring_swaps_pairs_only() -> None:
    assert LABELS.mirrored == (0, 1, 3, 2)
    table = LabelTable(labels=LABELS, atoms=((), (0,), (2,), (3,), (0, 1), (0, 2), (0, 3)))
    mirrored = table.mirrored_atoms
    assert mirrored is not None
    assert mirrored == (0, 1, 3, 2, 4, 6, 5)
    assert [mirrored[value] for value in mirrored] == list(range(7))


def test_no_mirroring_without_the_counterpart() -> None:
    assert LabelTable(labels=LABELS, atoms=((), (2,))).mirrored_atoms is None


@pytest.mark.parametrize(
    ("structures", "pairs", "word"),
    [(("A", "A"), (), "twice"), (("A", "B"), (("A", "C"),), "'C'")],
)
def test_contradictions_are_refused(structures: tuple[str, ...], pairs: tuple[tuple[str, str], ...], word: str) -> None:
    with pytest.raises(InputError, match=word):
        LabelSet(structures=structures, pairs=pairs)


def test_a_table_starts_with_background() -> None:
    with pytest.raises(InputError, match="background"):
        LabelTable(labels=LABELS, atoms=((0,),))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from((IGNORE, 0, 1, 2, 3)), arrays(np.bool_, SHAPE), max_size=5),
        min_size=1,
        max_size=3,
    )
)
def test_ignored_voxels_belong_to_nothing_and_stand_outside_the_table(cases: list[dict[int, np.ndarray]]) -> None:
    coded = [encode(masks, shape=SHAPE) for masks in cases]
    table = LabelTable(labels=LABELS, atoms=join(case.atoms for case in coded))
    assert IGNORED not in table.atoms
    for masks, case in zip(cases, coded, strict=True):
        ignored = masks.get(IGNORE, np.zeros(SHAPE, bool))
        assert case.atoms.index(IGNORED) == len(case.atoms) - 1 if ignored.any() else IGNORED not in case.atoms
        label = lookup(case.atoms, target=table.atoms).astype(table.dtype)[case.label]
        np.testing.assert_array_equal(label == table.ignored, ignored)
        for index, name in enumerate(LABELS.structures):
            expected = masks.get(index, np.zeros(SHAPE, bool)) & ~ignored
            np.testing.assert_array_equal(table.mask(label, structure=name), expected)


@pytest.mark.parametrize(("num_atoms", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_the_value_of_ignored_voxels_fits_the_integers(num_atoms: int, dtype: type) -> None:
    structures = tuple(f"s{index}" for index in range(num_atoms - 1))
    atoms = ((), *((index,) for index in range(num_atoms - 1)))
    table = LabelTable(labels=LabelSet(structures=structures), atoms=atoms)
    label = lookup((*atoms, IGNORED), target=table.atoms).astype(table.dtype)
    assert table.dtype is dtype
    assert label.tolist() == [*range(num_atoms), table.ignored]


def test_a_table_refuses_the_ignored_atom() -> None:
    with pytest.raises(InputError, match="ignored"):
        LabelTable(labels=LABELS, atoms=((), IGNORED))
