import pytest

from segsweep.errors import InputError
from segsweep.evaluation.metrics import Score
from segsweep.evaluation.worst import NUM_PICTURES, _some, view_of


def score(structure, *, dice):
    return Score(
        case="a", structure=structure, dice=dice, iou=dice, nsd=dice, tolerance_mm=1, volume_reference_ml=1, volume_prediction_ml=1
    )  # fmt: skip


def test_a_number_or_names_choose_the_viewers_cases():
    assert view_of("3", cases=("a", "b")) == 3
    assert view_of("7,a", cases=("a", "7")) == ("7", "a")
    assert view_of("7", cases=("a", "7")) == ("7",), "a case of that name goes before"
    for words in ("", "a,", "-1", "b"):
        with pytest.raises(InputError, match=f"^view={words}: "):
            view_of(words, cases=("a",))


def test_a_structure_that_always_fails_leaves_room_for_others():
    ranked = [score("lens", dice=0.0)] * 5 + [score(f"organ{i}", dice=0.1 + i / 100) for i in range(20)]
    shown = [one.structure for one in _some(ranked)]
    assert shown == ["lens", "lens", *(f"organ{i}" for i in range(NUM_PICTURES - 2))]
