"""BTCV cervix: images and masks that share a number, four organs, unlabelled test scans."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.dataset import describe
from segsweep.errors import InputError


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for number in ("0507688", "0759564"):
        write(f"RawData/Training/img/{number}-Image.nii.gz")
        write(f"RawData/Training/label/{number}-Mask.nii.gz", 1, 2, 2, 3, 3, 3, 4, 4, 4, 4)
    write("RawData/Testing/img/0940011-Image.nii.gz")
    junk("RawData/Training/img", "RawData/Training/label")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("btcv_cervix", raw=raw)
    assert dataset.channels == ("CT",)
    assert [(case.case_id, case.split, len(case.annotated)) for case in dataset.cases] == [
        ("cervix_0507688", "train", 4),
        ("cervix_0759564", "train", 4),
        ("cervix_0940011", "test", 0),
    ]
    assert voxels(dataset, "cervix_0759564") == {"bladder": 1, "uterus": 2, "rectum": 3, "small_bowel": 4}


def test_a_missing_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "RawData/Training/label/0507688-Mask.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case cervix_0507688: 0507688-Mask\.nii\.gz is not there"):
        voxels(describe("btcv_cervix", raw=raw), "cervix_0507688")


def test_a_scan_that_is_not_there_beside_its_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "RawData/Training/img/0507688-Image.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case cervix_0507688: 0507688-Image\.nii\.gz is not there"):
        voxels(describe("btcv_cervix", raw=raw), "cervix_0507688")
