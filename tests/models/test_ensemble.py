"""An ensemble is a model of its own, pinned to the exact members that it was built from."""

import json
import math
from pathlib import Path

import pytest

from segsweep.errors import ModelError
from segsweep.inference.predictor import Predictor
from segsweep.learning import checkpoint
from segsweep.models import catalogue, registry
from segsweep.models.ensemble import (
    Ensemble,
    EnsembleMember,
    best_members,
    build,
    ensemble_from_json,
    fold_members,
    load_predictor,
    write,
)


def member(uri: str, weight: float = 1.0) -> EnsembleMember:
    return EnsembleMember(uri=uri, digest="0" * 64, weight=weight)


def test_ensemble_survives_json() -> None:
    ensemble = Ensemble(members=(member("models:/a/1"), member("models:/b/2", 0.5)))
    assert ensemble_from_json(json.loads(json.dumps(ensemble.to_json()))) == ensemble


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(ModelError, match=r"models:/b/2: weight .* cannot be used"):
        Ensemble(members=(member("models:/a/1"), member("models:/b/2", weight)))


def test_one_member_is_too_few(tracker, put) -> None:
    with pytest.raises(ModelError, match="ensemble of 1 cannot be built; expected at least 2"):
        build([put("alone")], name="too-small", tracker=tracker)


def test_built_twice_is_one_version_with_aliases_pinned(tracker, workspace, put) -> None:
    first, second = put("pin-a"), put("pin-b", threshold=1.0)
    catalogue.set_alias("pin-b", alias="champion", version=1, workspace=workspace)
    found = [build([first, "models:/pin-b@champion"], name="pinned", tracker=tracker) for _ in range(2)]
    assert found[0] == found[1]
    folder = registry.fetch(found[0].uri, workspace=workspace)
    stored = ensemble_from_json(json.loads((folder / "ensemble.json").read_text()))
    assert [entry.uri for entry in stored.members] == [first, second]
    version = tracker.client.get_model_version("pinned", "1")
    assert "* `models:/pin-b/1`, weight 1" in version.description
    assert version.tags["segsweep.kind"] == "ensemble"


def test_same_model_twice_is_refused(tracker, put) -> None:
    uri = put("double")
    with pytest.raises(ModelError, match="models:/double/1 is in the ensemble twice"):
        build([uri, "models:/double"], name="doubled", tracker=tracker)


@pytest.mark.parametrize(
    ("field", "values"), [("channels", {"channels": ("CT", "PET")}), ("structures", {"structures": ("kidney",)})]
)
def test_members_must_segment_the_same_thing(field: str, values, tracker, put) -> None:
    first, other = put(f"{field}-a"), put(f"{field}-b", **values)
    with pytest.raises(ModelError, match=rf"{other} has {field} .*, expected .* as in {first}"):
        build([first, other], name="mixed", tracker=tracker)


def test_ensemble_of_ensembles_is_refused(tracker, put) -> None:
    inner = build([put("nest-a"), put("nest-b", threshold=1.0)], name="inner", tracker=tracker)
    with pytest.raises(ModelError, match=r"models:/inner/1 holds no run\.json; expected a single trained model"):
        build([inner.uri, put("nest-c", threshold=2.0)], name="outer", tracker=tracker)


def test_predictor_of_an_ensemble_has_every_member(tracker, workspace, put) -> None:
    uris = [put("load-a", threshold=3.0), put("load-b", threshold=1.0)]
    found = build(uris, name="loaded", tracker=tracker)
    assert thresholds(load_predictor(found.uri, workspace=workspace)) == [3.0, 1.0]
    assert thresholds(load_predictor(uris[0], workspace=workspace)) == [3.0]


def test_weights_reach_the_predictor(workspace, put, tmp_path: Path) -> None:
    uris = [put("weight-a"), put("weight-b", threshold=1.0)]
    digests = [catalogue.resolve(uri, workspace=workspace).digest for uri in uris]
    shares = zip(uris, digests, (0.25, 4.0), strict=True)
    ensemble = Ensemble(members=tuple(EnsembleMember(uri=u, digest=d, weight=w) for u, d, w in shares))
    write(ensemble, folder=tmp_path / "weighted")
    predictor = load_predictor(tmp_path / "weighted", workspace=workspace)
    assert [member.weight for member in predictor.members] == [0.25, 4.0]


def test_best_members_are_of_this_store_and_by_dice(tracker, workspace, make_checkpoint) -> None:
    run_id = tracker.start("best")
    dice = {"best-a": "0.7100", "best-b": "0.9000", "best-c": "0.8000", "best-d": "0.0000", "best-x": "nan"}
    for number, (name, value) in enumerate(dice.items()):
        folder = make_checkpoint(name, threshold=10.0 + number)
        tags = {"segsweep.data": "this store", "segsweep.dice": value}
        registry.register(folder, name=name, tracker=tracker, run_id=run_id, tags=tags)
    other = {"segsweep.data": "another store", "segsweep.dice": "0.9900"}
    elsewhere = make_checkpoint("elsewhere", threshold=20.0)
    registry.register(elsewhere, name="elsewhere", tracker=tracker, run_id=run_id, tags=other)
    found = best_members("phantom", data="this store", workspace=workspace)
    assert found == ["models:/best-b/1", "models:/best-c/1", "models:/best-a/1"]
    every = best_members("phantom", data="this store", workspace=workspace, count=9)
    assert every == [*found, "models:/best-d/1"]
    with pytest.raises(ModelError, match="1 registered models were trained on this version of 'phantom'; expected at"):
        best_members("phantom", data="another store", workspace=workspace)


def thresholds(predictor: Predictor) -> list[float]:
    """The intensities above which the members paint."""
    return [-float(member.model.state_dict()["conv.bias"][1]) for member in predictor.members]


def test_changed_member_is_refused(workspace, put, tmp_path: Path) -> None:
    uri = put("changed")
    real = checkpoint.verify(registry.fetch(uri, workspace=workspace))
    ensemble = Ensemble(members=(EnsembleMember(uri=uri, digest=real), member(uri)))
    write(ensemble, folder=tmp_path / "ensemble")
    with pytest.raises(ModelError, match=rf"member {uri} has digest {real[:12]}, expected 000000000000"):
        load_predictor(tmp_path / "ensemble", workspace=workspace)


PAIR = [{"uri": "models:/a/1", "digest": "0"}, {"uri": "models:/b/1", "digest": "0"}]


@pytest.mark.parametrize(
    "document",
    [
        "[]", "{}", "[" * 100_000, " " * (checkpoint.MOST_BYTES + 1), json.dumps({"members": 5, "rule": "mean"}),
        json.dumps({"members": [{"uri": "models:/a/1"}] * 2, "rule": "mean"}),
        json.dumps({"members": [*PAIR, {**PAIR[0], "run": "rm"}], "rule": "mean"}),
        json.dumps({"members": [*PAIR, {**PAIR[0], "uri": "../../../etc"}], "rule": "mean"}),
        json.dumps({"members": [*PAIR, {**PAIR[0], "uri": ["models:/a/1"]}], "rule": "mean"}),
        json.dumps({"members": [*PAIR, {**PAIR[0], "weight": "much"}], "rule": "mean"}),
        json.dumps({"members": [*PAIR, {**PAIR[0], "weight": math.inf}], "rule": "mean"}),
        json.dumps({"members": PAIR, "rule": ["mean"]}),
    ],
    ids=lambda text: text[:60],
)  # fmt: skip
def test_a_hostile_ensemble_is_one_sentence(workspace, tmp_path: Path, document: str) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "ensemble.json").write_text(document)
    checkpoint.write_manifest(tmp_path / "e")
    with pytest.raises(ModelError) as raised:
        load_predictor(tmp_path / "e", workspace=workspace)
    assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)


def test_damaged_ensemble_is_refused(workspace, tmp_path: Path) -> None:
    write(Ensemble(members=(member("models:/a/1"), member("models:/b/1"))), folder=tmp_path / "e")
    (tmp_path / "e" / "ensemble.json").write_text("{}")
    with pytest.raises(ModelError, match=r"ensemble\.json.*damaged"):
        load_predictor(tmp_path / "e", workspace=workspace)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no 'fold' among rules of ensembles .*; did you mean 'folds'"):
        ensemble_from_json({"members": [{"uri": "models:/a/1", "digest": "0"}] * 2, "rule": "fold"})


def test_weights_rule_and_record_are_registered(tracker, workspace, put) -> None:
    uris = [put("kept-a", threshold=41.0), put("kept-b", threshold=42.0)]
    record = {"notes.json": "{}"}
    found = build(uris, name="kept", tracker=tracker, rule="greedy", weights=(0.25, 0.75), record=record)
    folder = registry.fetch(found.uri, workspace=workspace)
    assert (folder / "notes.json").read_text() == "{}"
    stored = ensemble_from_json(json.loads((folder / "ensemble.json").read_text()))
    assert (stored.rule, [entry.weight for entry in stored.members]) == ("greedy", [0.25, 0.75])
    alone = build(uris[:1], name="kept-alone", tracker=tracker, rule="greedy")
    assert len(load_predictor(alone.uri, workspace=workspace).members) == 1


def test_folds_of_one_run_are_found(tracker, workspace, make_checkpoint) -> None:
    run_id = tracker.start("folds")

    def put_fold(threshold: float, fold: int | str, data: str = "store") -> str:
        folder = make_checkpoint(f"fold-{threshold}", threshold=threshold, fold=fold)
        return registry.register(folder, name="folds", tracker=tracker, run_id=run_id, tags={"segsweep.data": data}).uri

    second, older, newer = put_fold(31.0, 1), put_fold(32.0, 0), put_fold(33.0, 0)
    put_fold(34.0, "all")
    other = put_fold(35.0, 2, data="another store")
    assert fold_members(second, workspace=workspace) == [newer, second]
    assert fold_members(older, workspace=workspace) == [newer, second]
    with pytest.raises(
        ModelError, match=r"models:/folds/5 was trained on 1 fold\(s\) alone \(2\); expected at least 2"
    ):
        fold_members(other, workspace=workspace)


def test_folds_with_other_parameters_are_no_siblings(tracker, workspace, make_checkpoint) -> None:
    run_id = tracker.start("siblings")
    uris = []
    for fold in (0, 1):
        folder = make_checkpoint(f"sibling-{fold}", threshold=50.0 + fold, fold=fold)
        document = json.loads((folder / "run.json").read_text())
        document["run"]["params"] = {"epochs": 10 + fold}
        (folder / "run.json").write_text(json.dumps(document))
        checkpoint.write_manifest(folder)
        uris.append(registry.register(folder, name="siblings", tracker=tracker, run_id=run_id).uri)
    with pytest.raises(ModelError, match="trained on 1 fold"):
        fold_members(uris[0], workspace=workspace)
