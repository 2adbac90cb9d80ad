"""BTCV abdomen: 13 organs by number, unlabelled test scans, and groups that name the scan."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.dataset import describe
from segsweep.errors import InputError


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for number in (1, 21):
        write(f"RawData/Training/img/img{number:04d}.nii.gz")
        write(f"RawData/Training/label/label{number:04d}.nii.gz", *range(1, 14), 9, 13)
    write("RawData/Testing/img/img0061.nii.gz")
    junk("RawData/Training/img", "RawData/Training/label", "RawData/Testing/img")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("btcv_abdomen", raw=raw)
    assert len(dataset.labels.structures) == 13
    assert dataset.labels.pairs == (
        ("left_kidney", "right_kidney"),
        ("left_adrenal_gland", "right_adrenal_gland"),
    )
    assert dataset.channels == ("CT",)
    assert [(case.case_id, case.group, case.split) for case in dataset.cases] == [
        ("btcv_0001", "btcv_0001", "train"),
        ("btcv_0021", "btcv_0021", "train"),
        ("btcv_0061", "btcv_0061", "test"),
    ]
    assert dataset.cases[2].annotated == ()
    found = voxels(dataset, "btcv_0021")
    assert found.pop("inf_vena_cava") == found.pop("left_adrenal_gland") == 2
    assert set(found.values()) == {1} and len(found) == 11


def test_what_the_values_mean(raw: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]) -> None:
    write("RawData/Training/label/label0001.nii.gz", 2, 3, 3, 6, 6, 6)
    found = voxels(describe("btcv_abdomen", raw=raw), "btcv_0001")
    assert {name: count for name, count in found.items() if count} == {"right_kidney": 1, "left_kidney": 2, "liver": 3}


def test_a_missing_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "RawData/Training/label/label0021.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case btcv_0021: label0021\.nii\.gz is not there"):
        voxels(describe("btcv_abdomen", raw=raw), "btcv_0021")


def test_a_scan_that_is_not_there_beside_its_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "RawData/Training/img/img0021.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case btcv_0021: img0021\.nii\.gz is not there"):
        voxels(describe("btcv_abdomen", raw=raw), "btcv_0021")
