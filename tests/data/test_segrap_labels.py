"""The official 54 labels and the 45 organs say the same, both ways, and what the labels cannot say is counted."""

import itertools

import numpy as np
import pytest

from segsweep.data.segrap_labels import OFFICIAL, ORGANS, SMALLEST_FIRST, TUMOURS, official_value, to_official
from segsweep.data.structures import LabelSet, LabelTable, encode

# The organisers' merge of labels to organs (SegRap2023, post-processing code); for a pair, (left, right).
MERGE: dict[str, set[int] | tuple[set[int], set[int]]] = {
    **{"Brain": set(range(1, 10)), "BrainStem": {2}, "Chiasm": {3}, "TemporalLobe": ({4, 6}, {5, 7})},
    **{"Hippocampus": ({8, 6}, {9, 7}), "Eye": ({10, 12}, {11, 13}), "Lens": ({12}, {13}), "OpticNerve": ({14}, {15})},
    **{"MiddleEar": ({16, 18, 20, 24, 28, 30}, {17, 19, 21, 25, 29, 31}), "IAC": ({18}, {19})},
    **{"TympanicCavity": ({22, 20}, {23, 21}), "VestibulSemi": ({26, 24}, {27, 25}), "Cochlea": ({28}, {29})},
    **{"ETbone": ({32, 30}, {33, 31}), "Pituitary": {34}, "OralCavity": {35}, "Mandible": ({36}, {37})},
    **{"Submandibular": ({38}, {39}), "Parotid": ({40}, {41}), "Mastoid": ({42}, {43}), "TMjoint": ({44}, {45})},
    **{"SpinalCord": {46}, "Esophagus": {47}, "Larynx": {48, 49, 50, 51}, "Larynx_Glottic": {49}},
    **{"Larynx_Supraglot": {50}, "PharynxConst": {51, 52}, "Thyroid": {53}, "Trachea": {54}},
}
TABLE = LabelTable(
    labels=LabelSet(structures=(*ORGANS, *TUMOURS)),
    atoms=((), *(tuple(sorted(ORGANS.index(name) for name in names)) for names in OFFICIAL.values())),
)


def merged() -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, values in MERGE.items():
        if isinstance(values, tuple):
            found[f"{name}_L"], found[f"{name}_R"] = values
        else:
            found[name] = values
    return found


def test_the_table_is_the_organisers_merge_in_their_order() -> None:
    assert list(OFFICIAL) == list(range(1, 55))
    assert tuple(merged()) == ORGANS and len(ORGANS) == 45
    for organ, values in merged().items():
        assert {value for value, names in OFFICIAL.items() if organ in names} == values, organ


def test_sets_are_distinct_so_that_every_label_comes_back() -> None:
    assert len({frozenset(names) for names in OFFICIAL.values()}) == 54
    assert official_value(()) == 0
    for value, names in OFFICIAL.items():
        assert official_value(reversed(names)) == value


def test_45_masks_to_54_labels_to_45_masks() -> None:
    label = np.random.default_rng(0).integers(0, 55, size=(4, 20, 20)).astype(np.uint8)
    label.ravel()[:55] = range(55)
    masks = {ORGANS.index(organ): np.isin(label, sorted(values)) for organ, values in merged().items()}
    atoms = encode(masks, shape=(4, 20, 20))
    assert len(atoms.atoms) == 55, "our atoms are the official labels and the background"
    back = to_official(atoms.label, table=LabelTable(labels=TABLE.labels, atoms=atoms.atoms))
    assert np.array_equal(back.label, label) and back.label.dtype == np.uint8
    assert (back.changed, back.num_changed) == ({}, 0)


def test_the_nine_added_classes_are_the_overlaps_of_equals() -> None:
    """Labels whose organs each have a label without the other: the nine that the organisers added to the 45."""
    alone = {names for value, names in OFFICIAL.items() if len(names) == 1}
    added = [value for value, names in OFFICIAL.items() if len(names) == 2 and all((name,) in alone for name in names)]
    added += [value for value, names in OFFICIAL.items() if len(names) == 3]
    assert sorted(added) == [6, 7, 20, 21, 24, 25, 30, 31, 51]
    assert len(OFFICIAL) - len(added) == len(ORGANS)


def test_the_order_of_priority_names_every_organ_and_puts_parts_first() -> None:
    assert sorted(SMALLEST_FIRST) == sorted(ORGANS)
    found = merged()
    for part, whole in itertools.permutations(ORGANS, 2):
        if found[part] < found[whole]:
            assert SMALLEST_FIRST.index(part) < SMALLEST_FIRST.index(whole)


@pytest.mark.parametrize(
    ("organs", "value"),
    [
        (("IAC_L",), 18),
        (("Chiasm",), 3),
        (("Lens_R",), 13),
        (("Hippocampus_L",), 8),
        (("Hippocampus_L", "TemporalLobe_L"), 6),
        (("TemporalLobe_R",), 5),
        (("Mandible_L", "OralCavity"), 36),
        (("Brain", "Eye_L"), 10),
        (("MiddleEar_R", "Mastoid_R"), 17),
        (("MiddleEar_L", "Cochlea_L", "IAC_L"), 18),
        (("Larynx_Glottic", "PharynxConst"), 49),
        (("Brain", "Pituitary"), 34),
    ],
)
def test_a_set_outside_the_table_keeps_its_smallest_organ(organs: tuple[str, ...], value: int) -> None:
    assert official_value(organs) == value
    smallest = min(organs, key=SMALLEST_FIRST.index)
    assert smallest in OFFICIAL[value]


def test_changed_voxels_are_counted_by_their_organs() -> None:
    index = {name: i for i, name in enumerate(TABLE.labels.structures)}
    chiasm, tumour = (index["Chiasm"],), (index["Brain"], index["GTVp"])
    table = LabelTable(labels=TABLE.labels, atoms=((), (index["GTVp"],), (index["Larynx"],), chiasm, tumour))
    label = np.array([[[0, 1, 2, 3, 3, 4, table.ignored]]], dtype=np.uint8)
    found = to_official(label, table=table)
    assert found.label.tolist() == [[[0, 0, 48, 3, 3, 1, 0]]]
    assert found.changed == {("Chiasm",): 2}
    assert found.num_changed == 2
