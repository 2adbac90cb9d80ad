import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.store import open_store
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError
from segsweep.evaluation.evaluation import Options, evaluate
from segsweep.evaluation.sources import open_folder, read_values
from segsweep.inference.writers import write_label_map


def test_a_store_scored_against_its_own_labels(tmp_path: Path, phantom_store: Path) -> None:
    """Written on the scans' own grids and orientations, the store's labels score 1 in the annotated structures."""
    store = open_store(phantom_store)
    chosen = sorted(store.cases)[:4]
    for case in chosen:
        geometry = store.cases[case].source_geometry
        label = geometry.reorientation.invert(store.grid(case).read_label())
        write_label_map(label, geometry=geometry, path=tmp_path / "p" / f"{case}.nii.gz")
    names = {name: list(store.table.values(name)) for name in store.table.labels.structures}
    (tmp_path / "p" / "labels.json").write_text(json.dumps(names))
    found = evaluate(tmp_path / "p", reference=store, profile="plain", out=tmp_path / "out")
    assert (
        found.scores == evaluate(tmp_path / "p", reference=phantom_store, profile="plain", out=tmp_path / "out").scores
    )
    assert {score.dice for score in found.scores["p"]} == {1.0}
    expected = {(case, name) for case in chosen for name in store.cases[case].annotated}
    assert {(score.case, score.structure) for score in found.scores["p"]} == expected
    (tmp_path / "p" / f"{chosen[0]}.nii.gz").rename(tmp_path / "p" / "phantom_999.nii.gz")
    with pytest.raises(InputError, match="no 'phantom_999' among cases of the reference"):
        evaluate(tmp_path / "p", reference=store, profile="plain", out=tmp_path / "out")


def test_a_held_out_case_without_prediction_is_missing(tmp_path: Path, phantom_store: Path) -> None:
    store = open_store(phantom_store)
    first, *others = [case for case in store.cases if store.cases[case].split != "train"]
    geometry = store.cases[first].source_geometry
    label = geometry.reorientation.invert(store.grid(first).read_label())
    write_label_map(label, geometry=geometry, path=tmp_path / "p" / f"{first}.nii.gz")
    names = {name: list(store.table.values(name)) for name in store.table.labels.structures}
    (tmp_path / "p" / "labels.json").write_text(json.dumps(names))
    expected = [case for case in others if store.cases[case].split == store.cases[first].split]
    assert expected
    found = evaluate(tmp_path / "p", reference=store, profile="plain", out=tmp_path / "out")
    assert found.summary["missing_cases"] == {"p": expected}
    assert {score.case for score in found.scores["p"]} == {first}


def test_values_of_labels_json(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"background": 0, "a": 1, "b": [1, 2]}')
    assert read_values(path) == {"a": (1,), "b": (1, 2)}
    for text in ("{", "[]", "{}", '{"a": -1}', '{"a": true}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"labels\.json"):
            read_values(path)


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        open_folder(tmp_path / "absent")


def test_boxes_and_masks_of_values_that_are_shared(tmp_path: Path, phantom_store: Path) -> None:
    store = open_store(phantom_store)
    case = sorted(store.cases)[0]
    geometry = store.cases[case].geometry
    label = np.zeros(geometry.shape, dtype=np.uint8)
    label[1, 2, 3], label[4, 5, 6] = 1, 2
    write_label_map(label, geometry=geometry, path=tmp_path / "a.nii.gz")
    (tmp_path / "labels.json").write_text('{"x": 1, "both": [1, 2], "none": 7}')
    found = open_folder(tmp_path).read("a")
    one, both = (slice(1, 2), slice(2, 3), slice(3, 4)), (slice(1, 5), slice(2, 6), slice(3, 7))
    assert found.boxes() == {"x": one, "both": both}
    assert found.mask("both").sum() == 2
    assert found.mask("none").sum() == 0


def test_what_the_reference_ignores_is_scored_on_neither_side(tmp_path: Path, tiny_store: Callable[..., Path]) -> None:
    truth = np.zeros((8, 16, 16), dtype=np.uint8)
    truth[2:6, 4:12, 4:12] = 1
    truth[4:] = 9
    store = open_store(tiny_store("s", labels=LabelSet(structures=("liver",)), cases={"a": truth}, ignore=9))
    predicted = np.zeros_like(truth)
    predicted[2:4, 4:12, 4:12] = 1
    predicted[4:, 2:] = 1
    geometry = store.cases["a"].source_geometry
    write_label_map(predicted, geometry=geometry, path=tmp_path / "p" / "a.nii.gz")
    with pytest.raises(InputError, match=r"p has no labels\.json.*pass --labels FILE"):
        evaluate(tmp_path / "p", reference=store, profile="plain", out=tmp_path / "out")
    (tmp_path / "names.json").write_text('{"liver": [1]}')
    options = Options(labels=tmp_path / "names.json")
    found = evaluate(tmp_path / "p", reference=store, profile="plain", out=tmp_path / "out", options=options)
    (score,) = found.scores["p"]
    assert (score.dice, score.hd95_mm) == (1.0, 0.0)
    assert score.volume_prediction_ml == score.volume_reference_ml


def test_a_joint_store_is_a_reference(tmp_path: Path, tiny_store: Callable[..., Path]) -> None:
    label = np.zeros((8, 16, 16), dtype=np.uint8)
    label[2:6, 4:12, 4:12] = 1
    liver = LabelSet(structures=("liver",))
    pair = ",".join(str(tiny_store(name, labels=liver, cases={"c": label})) for name in ("a", "b"))
    store = open_store(tmp_path / "b")
    write_label_map(label * 2, geometry=store.cases["c"].source_geometry, path=tmp_path / "p" / "b.c.nii.gz")
    (tmp_path / "p" / "labels.json").write_text('{"a/liver": [1], "b/liver": [2]}')
    found = evaluate(tmp_path / "p", reference=Path(pair), profile="plain", out=tmp_path / "out")
    assert [(score.case, score.structure, score.dice) for score in found.scores["p"]] == [("b.c", "b/liver", 1.0)]
