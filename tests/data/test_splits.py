import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segsweep.data.splits import NUM_FOLDS, Candidate, demand_fitting, draw_folds, read_folds
from segsweep.errors import InputError


def candidates(**structures: str) -> dict[str, Candidate]:
    return {case_id: Candidate(group="", structures=tuple(names)) for case_id, names in structures.items()}


PLAIN = {f"case{index:02}": Candidate(group="", structures=("liver",)) for index in range(23)}


def test_every_case_is_held_out_once_and_folds_have_even_sizes() -> None:
    folds = draw_folds(PLAIN)
    assert sorted(case_id for fold in folds for case_id in fold) == sorted(PLAIN)
    assert sorted(map(len, folds)) == [4, 4, 5, 5, 5]
    assert folds == draw_folds(dict(reversed(PLAIN.items())))
    assert folds[0] != tuple(sorted(PLAIN)[:5]), "not shuffled"


def test_a_rare_structure_is_spread_over_all_folds() -> None:
    """Five of forty cases hold a tumour: by chance alone all folds would rarely get one each."""
    cases = {f"{index:02}": Candidate(group="", structures=("liver",)) for index in range(40)}
    for index in (3, 4, 5, 21, 39):
        cases[f"{index:02}"] = Candidate(group="", structures=("liver", "tumour"))
    for fold in draw_folds(cases):
        assert sum("tumour" in cases[case_id].structures for case_id in fold) == 1
        assert len(fold) == 8


class CountedId(str):
    """A case id that counts how often ids are compared."""

    __slots__ = ()
    __hash__ = str.__hash__
    compared = 0

    def __eq__(self, other: object) -> bool:
        CountedId.compared += 1
        return str.__eq__(self, other)


def test_ids_are_compared_about_once_a_case() -> None:
    """A hundred thousand cases times the half of them that wait would take minutes."""
    names = [CountedId(f"{index:03}") for index in range(400)]
    cases: dict[str, Candidate] = {
        name: Candidate(group="", structures=("liver", *["tumour"][: int(name) % 2])) for name in names
    }
    CountedId.compared = 0
    draw_folds(cases)
    assert CountedId.compared <= 2 * len(names)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text("abcdefgh", min_size=1), st.tuples(st.sampled_from("pqrst"), st.sets(st.sampled_from("XYZ")))
    )
)
def test_patients_are_never_divided(drawn: dict[str, tuple[str, set[str]]]) -> None:
    cases = {name: Candidate(group=group, structures=sorted(found)) for name, (group, found) in drawn.items()}
    folds = draw_folds(cases)
    assert len(folds) == NUM_FOLDS
    assert Counter(case_id for fold in folds for case_id in fold) == Counter(dict.fromkeys(cases, 1))
    for group in {case.group for case in cases.values()}:
        assert len({number for number, fold in enumerate(folds) for c in fold if cases[c].group == group}) == 1


@pytest.mark.parametrize(
    "content",
    [[["a"], ["b", "c"]], [{"train": ["b", "c", "d"], "val": ["a"]}, {"train": ["a", "d"], "val": ["c", "b"]}]],
)
def test_folds_of_a_file(tmp_path: Path, content: object) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(content))
    assert read_folds(path) == (("a",), ("b", "c"))
    demand_fitting(read_folds(path), cases=candidates(a="X", b="X", c="", d="X"), name=path.name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([["a"], ["e"]], r"splits\.json: no 'e' among annotated training cases"),
        ([["a"], ["a"]], r"splits\.json: a is held out 2 times"),
        ([["c"]], r"fold 0 holds out other cases of d's patient but trains on it"),
        ([["a"], []], "an empty fold"),
        ([], "an empty fold"),
        ([3], "cannot be read as folds"),
        ([{"train": ["a"]}], "cannot be read as folds"),
        ("{", "cannot be read as folds"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    cases = {**candidates(a="", b=""), **{name: Candidate(group="p", structures=()) for name in ("c", "d")}}
    with pytest.raises(InputError, match=message):
        demand_fitting(read_folds(path), cases=cases, name=path.name)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_folds(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\); expected a JSON file"):
        read_folds(tmp_path)
