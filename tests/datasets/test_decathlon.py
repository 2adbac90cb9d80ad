"""A Decathlon task is what its dataset.json says; paths in it are not trusted; the real hippocampus converts."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from segsweep.data.arrays import GridReader
from segsweep.data.building import build_case, current_case
from segsweep.data.case import ChannelFile
from segsweep.data.dataset import describe
from segsweep.data.reading import read_case, source_digests
from segsweep.data.store import NATIVE
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


def test_scans_for_validation_and_labels_of_held_out_scans_are_not_lost(
    raw: Path, voxels: Callable[..., dict[str, int]]
) -> None:
    knee_001, _, knee_004 = JSON["training"]
    state(raw, training=[knee_001], validation=[knee_004], test=[{"image": "./imagesTs/knee_002.nii.gz"}])
    dataset = describe("decathlon", raw=raw)
    assert [(case.case_id, case.split) for case in dataset.cases] == [
        ("knee_001", "train"),
        ("knee_004", "validation"),
        ("knee_002", "test"),
    ]
    assert [bool(case.annotated) for case in dataset.cases] == [True, True, False]
    assert voxels(dataset, "knee_004") == {"right meniscus": 2, "left meniscus": 1}


def write_channels(path: Path, *, num_channels: int) -> list[np.ndarray]:
    """A 4D file of the grid of `write`, and what its channels hold: whole numbers, but halves in the second one."""
    one = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(np.float32)
    channels = [one * (channel + 1) + (channel == 1) / 2 for channel in range(num_channels)]
    images = [sitk.GetImageFromArray(channel) for channel in channels]
    for image in images:
        image.SetSpacing((1.5, 1.5, 3.0))
    sitk.WriteImage(sitk.JoinSeries(images), str(path))
    return channels


MODALITIES = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}


def test_several_modalities_are_the_channels_of_one_4d_file(raw: Path) -> None:
    expected = write_channels(raw / "imagesTr" / "knee_001.nii.gz", num_channels=4)
    state(raw, modality=MODALITIES)
    dataset = describe("decathlon", raw=raw)
    assert dataset.channels == ("FLAIR", "T1w", "t1gd", "T2w")
    case = dataset.cases[0]
    read = read_case(case, labels=dataset.labels)
    np.testing.assert_array_equal(np.stack(read.images), np.stack(expected))
    assert [image.dtype for image in read.images] == [np.int16, np.float32, np.int16, np.int16]
    assert read.geometry.shape == (4, 5, 6)
    assert read.geometry.spacing == pytest.approx((3.0, 1.5, 1.5))
    assert read.digests == source_digests(case)
    assert len(read.digests) == 2, "the image's file once, and the label's"


def test_a_case_of_several_channels_converts(raw: Path) -> None:
    expected = write_channels(raw / "imagesTr" / "knee_001.nii.gz", num_channels=2)
    state(raw, modality={"0": "T2", "1": "ADC"}, test=[])
    dataset = describe("decathlon", raw=raw)
    store = raw / "store" / "knee_001"
    record = build_case(dataset.cases[0], labels=dataset.labels, folder=store)
    stored = GridReader(store / "grids" / NATIVE, name="knee_001", lookup=np.arange(3, dtype=np.uint16)).read_image()
    np.testing.assert_array_equal(stored, np.stack(expected))
    assert current_case(store, source=dataset.cases[0], labels=dataset.labels) == record


@pytest.mark.parametrize("stored", (1, 3, 5))
def test_another_number_of_channels_than_modalities_fails_its_case_alone(stored: int, raw: Path) -> None:
    write_channels(raw / "imagesTr" / "knee_001.nii.gz", num_channels=stored)
    write_channels(raw / "imagesTr" / "knee_004.nii.gz", num_channels=4)
    state(raw, modality=MODALITIES)
    dataset = describe("decathlon", raw=raw)
    with pytest.raises(
        InputError, match=rf"case knee_001: knee_001\.nii\.gz: dim is .* x {stored}; expected a fourth axis of 4"
    ):
        read_case(dataset.cases[0], labels=dataset.labels)
    assert len(read_case(dataset.cases[1], labels=dataset.labels).images) == 4


def test_a_3d_file_is_not_taken_for_four_channels_nor_a_4d_one_for_one(raw: Path) -> None:
    state(raw, modality=MODALITIES)
    four = describe("decathlon", raw=raw).cases[1]
    with pytest.raises(InputError, match=r"dim is 3D of 6 x 5 x 4; expected a fourth axis of 4, one for each channel"):
        read_case(four, labels=describe("decathlon", raw=raw).labels)
    write_channels(raw / "imagesTr" / "knee_001.nii.gz", num_channels=4)
    state(raw)
    dataset = describe("decathlon", raw=raw)
    with pytest.raises(InputError, match=r"dim is 4D of 6 x 5 x 4 x 4; expected one 3D scan"):
        read_case(dataset.cases[0], labels=dataset.labels)


def test_a_label_map_or_another_format_has_no_channels(raw: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        write_channels(raw / folder / "knee_001.nii.gz", num_channels=4)
    rows = [*JSON["training"], {"image": "imagesTr/b.mha", "label": "labelsTr/knee_004.nii.gz"}]
    state(raw, modality=MODALITIES, training=rows)
    dataset = describe("decathlon", raw=raw)
    with pytest.raises(InputError, match=r"dim is 4D of 6 x 5 x 4 x 4; expected one 3D scan"):
        read_case(dataset.cases[0], labels=dataset.labels)
    with pytest.raises(InputError, match=r"case b: b\.mha: is to hold 4 channels; expected a NIfTI file"):
        read_case(dataset.cases[2], labels=dataset.labels)


def test_channels_cut_off_or_empty_are_refused(raw: Path) -> None:
    state(raw, modality=MODALITIES)
    dataset = describe("decathlon", raw=raw)
    path = raw / "imagesTr" / "knee_001.nii"
    channels = write_channels(path, num_channels=4)
    case = replace(dataset.cases[0], images=(ChannelFile(path=path, num_channels=4),))
    content = path.read_bytes()
    path.write_bytes(content[: -channels[3].nbytes])
    with pytest.raises(InputError, match="the unpacked size is"):
        read_case(case, labels=dataset.labels)
    path.write_bytes(content[: -channels[3].nbytes] + bytes(channels[3].nbytes))
    with pytest.raises(InputError, match=r"knee_001\.nii \(channel 3\): all voxels are 0"):
        read_case(case, labels=dataset.labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": {}}, "'modality' names no channel"),
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
