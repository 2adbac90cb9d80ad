import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segsweep.cli import main
from segsweep.data.geometry import Geometry
from segsweep.data.readers import read_labels, read_scan
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import InputError
from segsweep.inference.joined import clean_up_of, outputs_of, task_of
from segsweep.inference.prediction import predict
from segsweep.inference.predictor import Member, Predictor
from segsweep.inference.scans import ScanCase
from segsweep.inference.writers import write_image
from segsweep.learning import checkpoint
from segsweep.learning.inference import CleanUp, Inference
from segsweep.learning.method import load_method
from segsweep.learning.task import Head, Normalisation, Task
from segsweep.recipes import params_json
from segsweep.run import Run

GRID = Geometry(shape=(8, 8, 8), spacing=(1.0, 1.0, 1.0), origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
# Two datasets with a liver each; `b` has a cancer inside its own, and a pair of kidneys.
JOINT = LabelTable(
    labels=LabelSet(
        structures=("a/liver", "a/spleen", "b/liver", "b/cancer", "b/kidney_L", "b/kidney_R"),
        pairs=(("b/kidney_L", "b/kidney_R"),),
    ),
    atoms=((), (0,), (1,), (2,), (4,), (5,), (2, 3)),
)


def task(head: Head = "sigmoid") -> Task:
    return Task(
        channels=("CT",),
        table=JOINT,
        head=head,
        patch_size=(8, 8, 8),
        spacing=(1.0, 1.0, 1.0),
        normalisation=(Normalisation(scheme="ct", low=-1024, high=3000),),
    )


class Bands(nn.Module):
    """Structure logits by a voxel's value: liver above 0, spleen below -50; b's liver above -20 and more certain, its cancer above 100."""

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        x = x_BCZYX[:, 0]
        return [torch.stack([x, -50 - x, 3 * (x + 20), x - 100, -9 - 0 * x, -9 - 0 * x], dim=1) / 100]


@pytest.fixture
def scan(tmp_path: Path) -> ScanCase:
    values = np.random.default_rng(0).integers(-200, 300, GRID.shape).astype(np.int16)
    values[np.isin(values, (-50, -20, 0, 100))] = 7  # at a border the argmax is a tie
    write_image(values, geometry=GRID, path=tmp_path / "scan.nii.gz")
    return ScanCase(case_id="scan", images=(tmp_path / "scan.nii.gz",))


def voxels(scan: ScanCase) -> np.ndarray:
    return scan.load().image[0]


def test_each_dataset_gets_its_own_label_map(scan: ScanCase, tmp_path: Path) -> None:
    predictor, x = Predictor(members=(Member(model=Bands(), task=task()),)), voxels(scan)
    expected = {
        "a": ({"liver": [1], "spleen": [2]}, np.select([x > 0, x < -50], [1, 2])),
        "b": (
            {"liver": [1, 4], "cancer": [4], "kidney_L": [2], "kidney_R": [3]},
            np.select([x > 100, x > -20], [4, 1]),
        ),
    }
    for dataset, (labels, label) in expected.items():
        out = tmp_path / dataset
        assert predict([scan], predictor=predictor, out=out, dataset=dataset).written == ("scan",)
        assert json.loads((out / "labels.json").read_text()) == labels
        assert np.array_equal(read_labels(out / "scan.nii.gz").voxels, label), dataset


def test_members_of_an_ensemble_keep_the_dataset_each(scan: ScanCase) -> None:
    members = (Member(model=Bands(), task=task()), Member(model=Bands(), task=task(), weight=2.0))
    both, one = Predictor(members=members).only("b"), Predictor(members=members[:1]).only("b")
    loaded = scan.load()
    labels = [each.segment(loaded.image, geometry=loaded.geometry) for each in (both, one)]
    assert np.array_equal(labels[0], labels[1])
    assert labels[0].any()


def test_a_dataset_has_to_be_named_where_outputs_do_not_exclude_each_other(scan: ScanCase, tmp_path: Path) -> None:
    predictor = Predictor(members=(Member(model=Bands(), task=task()),))
    failed = predict([scan], predictor=predictor, out=tmp_path / "out").failures["scan"]
    assert "2 datasets (a, b)" in failed and "--dataset" in failed
    with pytest.raises(InputError, match="no 'c' among datasets of the model"):
        predict([scan], predictor=predictor, out=tmp_path / "out", dataset="c")
    with pytest.raises(InputError, match="learned only one"):
        predict([scan], predictor=predictor.only("a"), out=tmp_path / "out", dataset="a")


def test_a_softmax_head_keeps_the_atoms_of_the_dataset() -> None:
    joint = task("softmax")
    assert outputs_of(joint, dataset="b") == (0, 3, 4, 5, 6)
    assert task_of(joint, dataset="b").outputs == 5


def test_pairs_stay_pairs() -> None:
    own = task_of(task(), dataset="b")
    assert own.table.labels.pairs == (("kidney_L", "kidney_R"),)
    assert own.mirrored_outputs == (0, 1, 3, 2)
    assert task_of(task(), dataset="a").table.labels.pairs == ()


def test_a_pretrained_model_predicts_from_the_command_line(
    scan: ScanCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = load_method("multitalent")
    params = method.params(
        {"part": "pretraining", "features": 4, "most_features": 8, "levels": 2, "patch_size": (8, 8, 8)}
    )
    own = dataclasses.replace(task(), patch_size=(8, 8, 8))
    document = {
        "run": Run(trainable="multitalent", store="s").to_json(),
        "task": own.to_json(),
        "params": params_json(params),
    }
    snapshot = checkpoint.Snapshot(weights=method.build(params, task=own).state_dict(), metrics={}, epoch=0)
    checkpoint.save(tmp_path / "model", snapshot=snapshot, run=document)
    command = ["predict", str(tmp_path / "model"), str(scan.images[0]), str(tmp_path / "out")]
    assert main(command) == 2
    assert "(a, b)" in capsys.readouterr().err
    assert main([*command, "--dataset", "b"]) == 0
    assert set(json.loads((tmp_path / "out" / "labels.json").read_text())) == {
        "liver",
        "cancer",
        "kidney_L",
        "kidney_R",
    }


def test_a_joint_models_clean_up_is_that_of_the_dataset_in_its_own_names() -> None:
    rules = CleanUp(largest=("a/liver", "b/liver", "b/cancer"), anchors=("b/liver",), farthest_mm=9.0)
    assert clean_up_of(rules, dataset="b") == CleanUp(largest=("liver", "cancer"), anchors=("liver",), farthest_mm=9.0)
    assert clean_up_of(rules, dataset="a") == CleanUp(largest=("liver",), farthest_mm=9.0)
    member = Member(model=Bands(), task=task(), inference=Inference(clean_up=rules))
    (alone,) = Predictor(members=(member,)).only("b").members
    assert alone.inference.clean_up == clean_up_of(rules, dataset="b")


def test_masks_of_a_joint_model_need_a_dataset_before_anything_is_segmented(scan: ScanCase, tmp_path: Path) -> None:
    predictor = Predictor(members=(Member(model=Bands(), task=task("softmax")),))
    with pytest.raises(InputError, match=r"structure 'a/liver' is no name for a file.*--dataset"):
        predict([scan], predictor=predictor, out=tmp_path / "out", kind="masks")
    assert not (tmp_path / "out").exists()
    predictor = Predictor(members=(Member(model=Bands(), task=task()),))
    assert predict([scan], predictor=predictor, out=tmp_path / "out", kind="masks", dataset="a").written == ("scan",)
    masks = {path.name for path in (tmp_path / "out" / "scan").iterdir()}
    assert masks == {"liver.nii.gz", "spleen.nii.gz"}
    assert (
        read_labels(tmp_path / "out" / "scan" / "liver.nii.gz").voxels == (read_scan(scan.images[0]).voxels > 0)
    ).all()
