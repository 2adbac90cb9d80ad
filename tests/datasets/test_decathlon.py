"""A Decathlon task is what its dataset.json says; paths in it are not trusted; the real hippocampus converts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segsweep.data.building import build_case
from segsweep.data.dataset import describe
from segsweep.errors import InputError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "msd_hippocampus"
JSON: dict[str, Any] = {
    "name": "KNEE",
    "licence": "CC-BY-SA 4.0",
    "tensorImageSize": "3D",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "10": "left meniscus", "2": "right meniscus"},
    "numTraining": 2,
    "training": [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in ("knee_001", "._knee_001", "knee_004")
    ],
    "test": ["./imagesTs/knee_002.nii.gz", "./imagesTs/._knee_002.nii.gz"],
}


def state(raw: Path, **changes: Any) -> None:
    content = {key: value for key, value in {**JSON, **changes}.items() if value is not None}
    (raw / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for name in ("knee_001", "knee_004"):
        write(f"imagesTr/{name}.nii.gz")
        write(f"labelsTr/{name}.nii.gz", 10, 2, 2)
    write("imagesTs/knee_002.nii.gz")
    junk("imagesTr", "labelsTr", "imagesTs")
    state(tmp_path)
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("decathlon", raw=raw)
    assert dataset.labels.structures == ("right meniscus", "left meniscus"), "by value"
    assert dataset.labels.pairs == (("left meniscus", "right meniscus"),)
    assert dataset.channels == ("MRI",)
    assert [(case.case_id, case.split) for case in dataset.cases] == [
        ("knee_001", "train"),
        ("knee_004", "train"),
        ("knee_002", "test"),
    ]
    assert dataset.cases[0].annotated == dataset.labels.structures
    assert (dataset.cases[2].labels, dataset.cases[2].annotated) == ((), ())
    assert voxels(dataset, "knee_004") == {"right meniscus": 2, "left meniscus": 1}


def test_test_scans_may_be_left_out_altogether_but_not_one_by_one(
    raw: Path, voxels: Callable[..., dict[str, int]]
) -> None:
    (raw / "imagesTs" / "knee_002.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case knee_002: knee_002\.nii\.gz is not there"):
        voxels(describe("decathlon", raw=raw), "knee_002")
    shutil.rmtree(raw / "imagesTs")
    assert [case.case_id for case in describe("decathlon", raw=raw).cases] == ["knee_001", "knee_004"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": {"0": "FLAIR", "1": "T1w"}}, r"2 modalities \(FLAIR, T1w\), which lie in one 4D file"),
        ({"modality": "MRI"}, "'modality' is"),
        ({"labels": {"liver": 1}}, "a number and a name"),
        ({"labels": {"0": "background", "1": "a", "01": "b"}}, "'01': 'b'"),
        ({"labels": {"0": "background", "9" * 5000: "a"}}, "a number and a name"),
        ({"labels": {"0": "background", "1": ["a"]}}, "a number and a name"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "hold a name twice"),
        ({"labels": {"0": "background", "1": "a\u202eb"}}, "cannot be a name"),
        ({"training": []}, "holds no cases"),
        ({"training": None}, "there is no 'training'"),
        ({"training": ["./imagesTr/knee_001.nii.gz"]}, "'training' holds"),
        ({"training": [{"image": "./imagesTr/knee_001.nii.gz"}]}, "there is no 'label'"),
        ({"training": [{"image": "../a.nii.gz", "label": "b.nii.gz"}]}, r"the name '\.\./a\.nii\.gz'"),
        ({"test": ["/etc/passwd"]}, "the name '/etc/passwd'"),
        ({"test": [7]}, "the name 7"),
        ({"test": ["./imagesTr/../imagesTr/knee_001.nii.gz"]}, "goes up"),
    ],
)
def test_a_dataset_json_that_does_not_fit(changes: dict[str, Any], message: str, raw: Path) -> None:
    state(raw, **{"test": [], **changes})
    with pytest.raises(InputError, match=message):
        describe("decathlon", raw=raw)


@pytest.mark.skipif(not DATA.is_dir(), reason="the Decathlon scans are not here")
@pytest.mark.parametrize("recipe", ("decathlon", "msd"))
def test_the_real_hippocampus(recipe: str, tmp_path: Path) -> None:
    """Ten of the real scans, whose files differ in type, with a dataset.json like the published one."""
    names = sorted(path.name for path in (DATA / "imagesTr").iterdir())[:10]
    for name in names:
        for folder in ("imagesTr", "labelsTr"):
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copy(DATA / folder / name, tmp_path / folder / name)
    rows = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    state(tmp_path, labels={"0": "background", "1": "Anterior", "2": "Posterior"}, training=rows, test=[])
    dataset = describe(recipe, raw=tmp_path)
    assert len(dataset.cases) == 10
    for case in dataset.cases:
        record = build_case(case, labels=dataset.labels, folder=tmp_path / "store" / case.case_id)
        assert [tuple(atom) for atom in record["atoms"]] == [(), (0,), (1,)]
        assert all(500 < count < 5000 for count in record["voxels"][1:])
