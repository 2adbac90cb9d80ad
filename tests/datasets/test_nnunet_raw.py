"""nnU-Net's raw folder: channels, regions, the ignore label, test scans, version 1, and a dataset.json that is not to be trusted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segsweep.data.building import build_case
from segsweep.data.case import LabelFile
from segsweep.data.dataset import describe
from segsweep.errors import InputError

JSON: dict[str, Any] = {
    "channel_names": {"1": "PET", "0": "CT"},
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "Kidney_L": 4, "Kidney_R": 5, "ignore": 6},
    "regions_class_order": [1, 2, 4, 5],
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def state(raw: Path, **changes: Any) -> None:
    content = {key: value for key, value in {**JSON, **changes}.items() if value is not None}
    (raw / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for case_id in ("imagesTr/liver_001", "imagesTr/liver_002", "imagesTs/liver_003", "imagesTs/liver_004"):
        write(f"{case_id}_0000.nii.gz")
        write(f"{case_id}_0001.nii.gz", unit=0.5)
    write("labelsTr/liver_001.nii.gz", 1, 1, 2, 3, 4, 6)
    write("labelsTr/liver_002.nii.gz", 5)
    write("labelsTs/liver_003.nii.gz", 1)
    junk("imagesTr", "labelsTr", "imagesTs")
    state(tmp_path)
    return tmp_path


def test_suffixes_in_capitals_are_listed_too(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    for path in (raw / "imagesTr").glob("liver_00?_000?.nii.gz"):
        path.rename(path.with_name(path.name.replace("nii.gz", "NII.GZ")))
    dataset = describe("nnunet_raw", raw=raw)
    assert [case.case_id for case in dataset.cases] == ["liver_001", "liver_002", "liver_003", "liver_004"]
    assert voxels(dataset, "liver_002")["Kidney_R"] == 1


def test_layout(raw: Path) -> None:
    dataset = describe("nnunet_raw", raw=raw)
    assert dataset.labels.structures == ("whole", "core", "Kidney_L", "Kidney_R")
    assert dataset.labels.pairs == (("Kidney_L", "Kidney_R"),)
    assert dataset.channels == ("CT", "PET")
    first, second, third, fourth = dataset.cases
    assert [case.case_id for case in dataset.cases] == ["liver_001", "liver_002", "liver_003", "liver_004"]
    assert [case.split for case in dataset.cases] == ["train", "train", "test", "test"]
    assert [path.name for path in first.images if isinstance(path, Path)] == [
        "liver_001_0000.nii.gz",
        "liver_001_0001.nii.gz",
    ]
    assert first.labels == (
        LabelFile(
            path=raw / "labelsTr" / "liver_001.nii.gz",
            values={1: ("whole",), 2: ("whole", "core"), 3: ("whole", "core"), 4: ("Kidney_L",), 5: ("Kidney_R",)},
            ignore=6,
        ),
    )
    assert second.annotated == third.annotated == dataset.labels.structures
    assert (fourth.labels, fourth.annotated) == ((), ())


def test_regions_in_the_store(raw: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]) -> None:
    write("labelsTr/liver_001.nii.gz", 1, 1, 2, 3, 4)
    dataset = describe("nnunet_raw", raw=raw)
    assert voxels(dataset, "liver_001") == {"whole": 4, "core": 2, "Kidney_L": 1, "Kidney_R": 0, "ignored": 0}
    record = build_case(dataset.cases[0], labels=dataset.labels, folder=raw / "store" / "liver_001")
    assert [tuple(atom) for atom in record["atoms"]] == [(), (0,), (2,), (0, 1)]
    assert record["voxels"] == [115, 2, 1, 2]


def test_ignored_voxels_in_the_store(raw: Path) -> None:
    dataset = describe("nnunet_raw", raw=raw)
    record = build_case(dataset.cases[0], labels=dataset.labels, folder=raw / "store" / "liver_001")
    counts = {tuple(atom): count for atom, count in zip(record["atoms"], record["voxels"], strict=True)}
    assert counts == {(): 114, (0,): 2, (0, 1): 2, (2,): 1, (-1,): 1}


@pytest.mark.parametrize("nothing", ["background", "Background", "clear label"])
def test_version_one(nothing: str, raw: Path) -> None:
    state(
        raw,
        channel_names=None,
        file_ending=None,
        modality={"0": "CT", "1": "PET"},
        labels={"0": nothing, "1": "liver", "2": "tumour"},
    )
    dataset = describe("nnunet_raw", raw=raw)
    assert (dataset.labels.structures, dataset.channels) == (("liver", "tumour"), ("CT", "PET"))
    label = dataset.cases[0].labels[0]
    assert isinstance(label, LabelFile) and (label.values, label.ignore) == ({1: ("liver",), 2: ("tumour",)}, None)


def test_cases_listed_in_dataset_json(raw: Path, write: Callable[..., Path]) -> None:
    write("elsewhere/a.nii.gz")
    listed = {"a": {"images": ["elsewhere/a.nii.gz", "./elsewhere/a.nii.gz"], "label": "labelsTr/liver_001.nii.gz"}}
    state(raw, dataset=listed, numTraining=1)
    case, *tests = describe("nnunet_raw", raw=raw).cases
    assert (case.case_id, case.split, {test.split for test in tests}) == ("a", "train", {"test"})
    assert case.images == (raw / "elsewhere" / "a.nii.gz",) * 2
    assert case.labels[0].path == raw / "labelsTr" / "liver_001.nii.gz"


@pytest.mark.parametrize("name", ("../secret.nii.gz", "/etc/passwd", "C:\\x.nii", "a\0b", "link.nii.gz", "", 3, None))
@pytest.mark.parametrize("field", ("images", "label"))
def test_listed_paths_that_leave_the_folder(name: Any, field: str, raw: Path, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.nii.gz"
    outside.touch()
    (raw / "link.nii.gz").symlink_to(outside)
    row: dict[str, Any] = {"images": ["imagesTr/liver_001_0000.nii.gz"] * 2, "label": "labelsTr/liver_001.nii.gz"}
    row[field] = [name, row["images"][0]] if field == "images" else name
    state(raw, dataset={"a": row}, numTraining=1)
    with pytest.raises(InputError, match=r"the name|'label' is"):
        describe("nnunet_raw", raw=raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "there is no 'labels'"),
        ({"labels": {"background": 0, "a": "1"}}, "'a' has the value '1'"),
        ({"labels": {"background": 0, "a": []}}, "'a' has the value"),
        ({"labels": {"background": 0, "a": [1, True]}}, "'a' has the value"),
        ({"labels": {"background": 0, "a": 1.5}}, "'a' has the value '1.5'"),
        ({"labels": {"background": 0, "a": -1}}, "'a' has the value '-1'"),
        ({"labels": {"background": 0, "a": 70000}}, "'a' has the value '70000'"),
        ({"labels": {"background": 0, "a": 0}}, "'a' has the value '0'"),
        ({"labels": {"background": 1, "a": 2}}, "'background' is not 0"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "'ignore' is"),
        ({"labels": {"background": 0, "a": 1, "ignore": [2, 3]}}, "'ignore' is"),
        ({"labels": {"background": 0, "a\nb": 1}}, "cannot be a name"),
        ({"labels": {"background": 0, "a" * 200: 1}}, "cannot be a name"),
        ({"labels": []}, "'labels' is"),
        ({"channel_names": {"zero": "CT"}}, "a number and a name"),
        ({"channel_names": ["CT"]}, "'channel_names' is"),
        ({"channel_names": {"0": "CT"}}, r"liver_001: has channels \[0, 1\]; expected 0 to 0"),
        ({"file_ending": ".png"}, r"'file_ending' is '\.png'"),
        ({"numTraining": 3}, "numTraining is 3, and 2 training cases"),
        ({"dataset": {"../a": {"images": [], "label": "x"}}}, "lists 0 images"),
        ({"dataset": {"a": ["x"]}}, "'a' is"),
    ],
)
def test_a_dataset_json_that_does_not_fit(changes: dict[str, Any], message: str, raw: Path) -> None:
    state(raw, **changes)
    with pytest.raises(InputError, match=message):
        describe("nnunet_raw", raw=raw)


def test_missing_and_misnamed_files(
    raw: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]
) -> None:
    (raw / "labelsTr" / "liver_002.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case liver_002: liver_002\.nii\.gz is not there"):
        voxels(describe("nnunet_raw", raw=raw), "liver_002")
    (raw / "imagesTr" / "liver_001_0000.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case liver_001: liver_001_0000\.nii\.gz is not there"):
        voxels(describe("nnunet_raw", raw=raw), "liver_001")
    (raw / "imagesTr" / "liver_001_0001.nii.gz").unlink()
    assert [case.case_id for case in describe("nnunet_raw", raw=raw).cases][:2] == ["liver_001", "liver_002"]
    write("imagesTr/liver.nii.gz")
    with pytest.raises(InputError, match=r"liver\.nii\.gz has no channel number"):
        describe("nnunet_raw", raw=raw)
