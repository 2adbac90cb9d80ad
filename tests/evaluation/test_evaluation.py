import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.geometry import Geometry
from segsweep.errors import InputError, RecipeError
from segsweep.evaluation import evaluation
from segsweep.evaluation.evaluation import Options, evaluate
from segsweep.evaluation.metrics import COLUMNS
from segsweep.inference.writers import write_label_map

GRID = Geometry(
    shape=(14, 16, 18), spacing=(3.0, 1.0, 1.5), origin=(0.0, 0.0, 0.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)
)
RAS = Geometry(
    shape=(14, 16, 18), spacing=(3.0, 1.0, 1.5), origin=(25.5, 15.0, 0.0), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)
)
LABELS = {"liver": [1, 3], "spleen": 2, "lesion": [3]}


def organs(*, shift=0, lesion=True):
    label = np.zeros(GRID.shape, dtype=np.uint8)
    label[2:9, 3 + shift : 11 + shift, 2:9] = 1
    label[3:9, 4:10, 11 : 16 - shift] = 2
    if lesion:
        label[4:6, 6:8, 4:6] = 3
    return label


def folder(path, *, maps, labels=LABELS):
    for case, label in maps.items():
        write_label_map(label, geometry=GRID, path=path / f"{case}.nii.gz")
    if labels is not None:
        (path / "labels.json").write_text(json.dumps(labels))
    return path


@pytest.fixture
def reference(tmp_path):
    return folder(tmp_path / "reference", maps={f"case{i}": organs() for i in range(3)})


def rows_of(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_three_files_with_a_comparison(tmp_path, reference):
    predictions = folder(tmp_path / "ensemble", maps={f"case{i}": organs(shift=i) for i in range(3)})
    single = folder(tmp_path / "single", maps={f"case{i}": organs(shift=2) for i in range(3)})
    calls = []
    options = Options(compare={"single": single}, progress=lambda done, total: calls.append((done, total)))
    found = evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out", options=options)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["report.html", "scores.csv", "scores_single.csv", "summary.json"]
    assert calls == [(1, 3), (2, 3), (3, 3)]

    rows = rows_of(tmp_path / "out" / "scores.csv")
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 9
    perfect = next(row for row in rows if row["case"] == "case0" and row["structure"] == "liver")
    assert (float(perfect["dice"]), float(perfect["hd95_mm"])) == (1.0, 0.0)
    # "liver" holds its lesion: 7 x 8 x 7 voxels of 4.5 microlitres.
    assert float(perfect["volume_reference_ml"]) == pytest.approx(7 * 8 * 7 * 4.5e-3)

    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    difference = summary["differences"]["single"]["dice"]["overall"]
    assert difference["mean"] > 0
    assert summary["mean_rank"]["ensemble"] < summary["mean_rank"]["single"]
    assert summary["ranking"]["models"]["ensemble"]["place"] == 1
    assert summary["ranking"]["models"]["ensemble"]["mean_rank"]["structures"] == summary["mean_rank"]["ensemble"]
    assert "<h2>Ranking</h2>" in (tmp_path / "out" / "report.html").read_text()
    assert [row[0] for row in found.rows()] == ["liver", "spleen", "lesion", "all"]
    assert found.lines()[0].startswith("ensemble: Dice ")


def test_report_is_self_contained(tmp_path, reference):
    predictions = folder(tmp_path / "a<b>", maps={f"case{i}": organs(shift=i) for i in range(3)})
    evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "url(" not in text
    assert text.count('src="data:image/png;base64,') == 6, "at most two pictures of each of three structures"
    assert "<h1>a&lt;b&gt;</h1>" in text
    assert text.count("<svg") == text.count("</svg>") == 6, "a row a structure for Dice and for NSD"
    assert "default-src 'none'" in text


def test_cases_of_the_viewer_are_chosen_before_anything_is_scored(tmp_path, reference):
    predictions = folder(tmp_path / "some", maps={f"case{i}": organs(shift=i) for i in range(3)})
    with pytest.raises(InputError, match=r"view=case7: no 'case7' .*case0, case1, case2.*; or give a number"):
        evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out", options=Options(view="case7"))
    assert not (tmp_path / "out").exists()
    (predictions / "case2.nii.gz").unlink()
    options = Options(view="case1,case2")
    evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out", options=options)
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count('class="volume"') == 1 and '"case":"case1"' in text
    assert "Not shown, for want of a prediction or reference, or for more than 255 label values: case2." in text


def test_a_case_that_is_to_be_viewed_may_have_a_damaged_reference(tmp_path, reference):
    predictions = folder(tmp_path / "some", maps={f"case{i}": organs(shift=i) for i in range(3)})
    (reference / "case1.nii.gz").write_bytes(b"")
    options = Options(view="case1,case2")
    found = evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out", options=options)
    assert len(found.failures) == 1 and {score.case for score in found.scores["some"]} == {"case0", "case2"}
    text = (tmp_path / "out" / "report.html").read_text()
    assert '"case":"case2"' in text and "label values: case1." in text


def test_scores_are_written_before_the_report_is_made(tmp_path, reference, monkeypatch):
    predictions = folder(tmp_path / "p", maps={"case0": organs()})
    monkeypatch.setattr(evaluation, "render", lambda _: (predictions / "case0.nii.gz").read_text())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("of earlier scores")
    with pytest.raises(ValueError, match="codec"):
        evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scores.csv", "summary.json"]


def test_the_folder_that_one_is_in_has_its_own_name(tmp_path, reference, monkeypatch):
    predictions = folder(tmp_path / "mine", maps={"case0": organs()})
    monkeypatch.chdir(predictions)
    found = evaluate(Path(), reference=reference, profile="plain", out=tmp_path / "out")
    assert list(found.summary["models"]) == ["mine"]
    assert "<h1>mine</h1>" in (tmp_path / "out" / "report.html").read_text()


def test_axis_order_of_the_file_does_not_matter(tmp_path, reference):
    path = tmp_path / "turned"
    write_label_map(organs(shift=1)[:, ::-1, ::-1], geometry=RAS, path=path / "case0.nii.gz")
    (path / "labels.json").write_text(json.dumps(LABELS))
    straight = folder(tmp_path / "straight", maps={"case0": organs(shift=1)})
    found = [evaluate(one, reference=reference, profile="plain", out=tmp_path / "out") for one in (path, straight)]
    assert found[0].scores["turned"] == found[1].scores["straight"]


def test_missing_cases_follow_the_profile(tmp_path, reference):
    predictions = folder(tmp_path / "some", maps={"case0": organs()})
    plain = evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "plain")
    assert {score.case for score in plain.scores["some"]} == {"case0"}
    assert plain.summary["missing_cases"] == {"some": ["case1", "case2"]}
    flare = evaluate(predictions, reference=reference, profile="flare22", out=tmp_path / "flare")
    assert flare.summary["models"]["some"]["structures"]["liver"]["dice"]["mean"] == pytest.approx(1 / 3)
    assert flare.summary["structures_outside_profile"] == ["lesion"]


def test_structure_that_is_not_predicted(tmp_path, reference):
    labels = {"liver": [1, 3]}
    predictions = folder(tmp_path / "few", maps={f"case{i}": organs() for i in range(3)}, labels=labels)
    plain = evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out")
    assert plain.summary["structures"] == ["liver"]
    assert plain.summary["structures_not_predicted"] == {"few": ["spleen", "lesion"]}
    flare = evaluate(predictions, reference=reference, profile="flare22", out=tmp_path / "out")
    assert flare.summary["models"]["few"]["structures"]["spleen"]["dice"]["mean"] == 0.0


def test_pancancer_refuses_a_second_label(tmp_path):
    lesions = (organs() == 1).astype(np.uint8)
    reference = folder(tmp_path / "reference", maps={"a": lesions, "b": lesions}, labels={"lesion": 1})
    bad = lesions.copy()
    bad[0, 0, 0] = 2
    predictions = folder(tmp_path / "p", maps={"a": lesions, "b": bad}, labels={"lesion": 1})
    found = evaluate(predictions, reference=reference, profile="flare24_pancancer", out=tmp_path / "out")
    assert [(score.dice, score.nsd) for score in found.scores["p"]] == [(1.0, 1.0), (0.0, 0.0)]
    assert found.summary["cases_with_forbidden_values"] == {"p": ["b"]}


def test_sub_folders_of_masks_may_overlap(tmp_path):
    masks = tmp_path / "masks" / "case0"
    for name, values in {"liver": (1, 3), "lesion": (3,)}.items():
        write_label_map(np.isin(organs(), values).astype(np.uint8), geometry=GRID, path=masks / f"{name}.nii.gz")
    predictions = folder(tmp_path / "p", maps={"case0": organs()})
    found = evaluate(predictions, reference=tmp_path / "masks", profile="plain", out=tmp_path / "out")
    assert {score.structure: score.dice for score in found.scores["p"]} == {"lesion": 1.0, "liver": 1.0}


def test_ids_are_names_without_labels(tmp_path):
    maps = {"case0": organs()}
    reference = folder(tmp_path / "r", maps=maps, labels=None)
    found = evaluate(
        folder(tmp_path / "p", maps=maps, labels=None), reference=reference, profile="nnunet", out=tmp_path / "out"
    )
    assert found.summary["structures"] == ["1", "2", "3"]


def test_another_grid_is_refused_by_case(tmp_path, reference):
    path = tmp_path / "p"
    shorter = replace(GRID, shape=(13, 16, 18))
    write_label_map(organs()[1:], geometry=shorter, path=path / "case1.nii.gz")
    (path / "labels.json").write_text(json.dumps(LABELS))
    with pytest.raises(InputError, match=r"case1: the prediction lies on a grid of \(13, 16, 18\)"):
        evaluate(path, reference=reference, profile="plain", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refusals(tmp_path, reference):
    predictions = folder(tmp_path / "p", maps={"other": organs()})
    with pytest.raises(InputError, match="no prediction has a reference"):
        evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out")
    with pytest.raises(RecipeError, match="evaluation profiles"):
        evaluate(predictions, reference=reference, profile="flare", out=tmp_path / "out")
    with pytest.raises(InputError, match="holds no label map"):
        (tmp_path / "empty").mkdir()
        evaluate(tmp_path / "empty", reference=reference, profile="plain", out=tmp_path / "out")
    with pytest.raises(InputError, match=r"'runs/a', which becomes part of a file's name"):
        options = Options(compare={"runs/a": predictions})
        evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out", options=options)
    (predictions / "labels.json").write_text('{"liver": [1, "2"]}')
    with pytest.raises(InputError, match="'liver' has"):
        evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out")


def test_named_predictions_need_a_named_reference(tmp_path):
    reference = folder(tmp_path / "plain", maps={"a": organs()}, labels=None)
    predictions = folder(tmp_path / "named", maps={"a": organs()})
    with pytest.raises(InputError, match=r"the reference has no labels\.json; expected names for both; pass --labels"):
        evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out")
    table = tmp_path / "named" / "labels.json"
    found = evaluate(
        predictions, reference=reference, profile="plain", out=tmp_path / "out", options=Options(labels=table)
    )
    assert found.rows()[-1][1].startswith("1.000")


def test_hidden_files_are_no_cases_and_a_name_is_no_two_files(tmp_path, reference):
    predictions = folder(tmp_path / "named", maps={"case0": organs(), ".12.case0": organs()})
    found = evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out")
    assert {row.case for row in found.scores["named"]} == {"case0"}
    write_label_map(organs(), geometry=GRID, path=predictions / "case0.nrrd")
    with pytest.raises(InputError, match=r"case0\.nii\.gz and case0\.nrrd"):
        evaluate(predictions, reference=reference, profile="plain", out=tmp_path / "out")
