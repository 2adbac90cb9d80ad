"""BTCV2: two sources of scans under one set of labels, eight organs, and the groups of the two sets that it overlaps with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.case import Series
from segsweep.data.dataset import describe
from segsweep.errors import InputError
from segsweep.recipes import load

cases = load("datasets", name="multiorgan_btcv2").cases


@pytest.fixture
def raw(
    tmp_path: Path, write: Callable[..., Path], write_series: Callable[..., None], junk: Callable[..., None]
) -> Path:
    for part, number in (("Training", "0001"), ("Training", "0002"), ("Testing", "0061")):
        write(f"RawData/{part}/img/img{number}.nii.gz")
        write(f"RawData/{part}/label/label{number}.nii.gz", 1)
    for number in ("0001", "0061"):
        write(f"label_btcv_multiorgan/label{number}.nii.gz", *range(1, 15), 14, 3, 3)
    for number in ("0001", "0025"):
        write(f"label_tcia_multiorgan/label{number}.nii.gz", 1, 3, 4, 5, 6, 7, 11, 14, 11)
    write_series("Pancreas-CT/PANCREAS_0001/11-24-2015-PANCREAS0001-Pancreas-18957/Pancreas-63502")
    write("TCIA_pancreas_labels-02-05-2017/label0001.nii.gz", 1)
    junk("label_btcv_multiorgan", "label_tcia_multiorgan", "RawData/Training/img")
    return tmp_path


def test_layout(raw: Path) -> None:
    dataset = describe("multiorgan_btcv2", raw=raw)
    assert len(dataset.labels.structures) == 8
    assert dataset.channels == ("CT",)
    assert [case.case_id for case in dataset.cases] == ["btcv_0001", "btcv_0061", "nih_0001"]
    assert all(case.annotated == dataset.labels.structures and case.split == "train" for case in dataset.cases)
    assert dataset.cases[1].images == (raw / "RawData/Testing/img/img0061.nii.gz",)
    assert isinstance(dataset.cases[2].images[0], Series)


def test_what_the_values_mean(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("multiorgan_btcv2", raw=raw)
    singles = dict.fromkeys(("spleen", "gallbladder", "esophagus", "liver", "stomach"), 1)
    assert voxels(dataset, "btcv_0061") == singles | {"left_kidney": 3, "pancreas": 1, "duodenum": 2}
    assert voxels(dataset, "nih_0001") == singles | {"left_kidney": 1, "pancreas": 2, "duodenum": 1}


def test_the_labels_of_one_source_run_against_the_rows(raw: Path) -> None:
    """Case by case the scan decides whether that is right; BTCV's own labels are read by their headers alone."""
    flips = {case.case_id: [getattr(file, "flip", "") for file in case.labels] for case in cases(raw)}
    assert flips == {"btcv_0001": [None], "btcv_0061": [None], "nih_0001": ["y"]}
    (raw / "label_flip.json").write_text('{"flip": ""}')
    assert [getattr(file, "flip", None) for file in cases(raw)[-1].labels] == [""]


def test_copies_of_a_scan_share_a_group(raw: Path) -> None:
    groups = {
        name: {case.group for case in describe(name, raw=raw).cases}
        for name in ("multiorgan_btcv2", "btcv_abdomen", "nih_pancreas")
    }
    assert groups["multiorgan_btcv2"] & groups["btcv_abdomen"] == {"btcv_0001", "btcv_0061"}
    assert groups["multiorgan_btcv2"] & groups["nih_pancreas"] == {"nih_0001"}


def test_a_missing_scan_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "RawData/Testing/img/img0061.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case btcv_0061: img0061\.nii\.gz is not there"):
        voxels(describe("multiorgan_btcv2", raw=raw), "btcv_0061")


def test_a_missing_series_is_named(
    raw: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]
) -> None:
    write("label_tcia_multiorgan/label0002.nii.gz", 1)
    with pytest.raises(InputError, match="case nih_0002: a series without files"):
        voxels(describe("multiorgan_btcv2", raw=raw), "nih_0002")
