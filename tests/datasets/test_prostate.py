"""The six prostate sites: cases named by site, two spellings of the label's name, everything above 0 is prostate."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.building import build_case
from segsweep.data.case import MaskFile
from segsweep.data.dataset import describe
from segsweep.errors import InputError

SITES = ("BIDMC", "BMC", "HK", "I2CVB", "RUNMC", "UCL")


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for site in SITES:
        word = "Segmentation" if site == "BMC" else "segmentation"
        for number in (0, 12):
            write(f"{site}/Case{number:02d}.nii.gz")
            write(f"{site}/Case{number:02d}_{word}.nii.gz", 1, 2, 2)
        junk(site)
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("prostate", raw=raw)
    assert dataset.labels.structures == ("prostate",)
    assert dataset.channels == ("T2",)
    assert [case.case_id for case in dataset.cases] == [
        f"{site}_Case{number}" for site in SITES for number in ("00", "12")
    ]
    assert all(isinstance(case.labels[0], MaskFile) and case.split == "train" for case in dataset.cases)
    assert dataset.cases[2].images == (raw / "BMC" / "Case00.nii.gz",)
    assert voxels(dataset, "BMC_Case12") == voxels(dataset, "UCL_Case00") == {"prostate": 3}


def test_some_sites_are_enough(tmp_path: Path, write: Callable[..., Path]) -> None:
    write("HK/Case03.nii.gz")
    write("HK/Case03_segmentation.nii.gz", 1)
    assert [case.case_id for case in describe("prostate", raw=tmp_path).cases] == ["HK_Case03"]


def test_a_case_in_the_store(raw: Path, tmp_path: Path) -> None:
    dataset = describe("prostate", raw=raw)
    record = build_case(dataset.cases[3], labels=dataset.labels, folder=tmp_path / "store" / "BMC_Case12")
    assert (record["case_id"], record["voxels"]) == ("BMC_Case12", [117, 3])


def test_a_label_that_lies_elsewhere_is_refused(
    raw: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]
) -> None:
    write("UCL/Case00_segmentation.nii.gz", 1, x0=20.0)
    with pytest.raises(InputError, match=r"UCL_Case00: Case00_segmentation\.nii\.gz lies on another grid .* 20\.00 mm"):
        voxels(describe("prostate", raw=raw), "UCL_Case00")


def test_a_missing_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "RUNMC" / "Case12_segmentation.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case RUNMC_Case12: Case12_segmentation\.nii\.gz is not there"):
        voxels(describe("prostate", raw=raw), "RUNMC_Case12")


def test_a_scan_that_is_not_there_beside_its_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "RUNMC/Case12.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case RUNMC_Case12: Case12\.nii\.gz is not there"):
        voxels(describe("prostate", raw=raw), "RUNMC_Case12")
