"""KiTS19's folder: 210 annotated cases, unlabelled ones behind them, and kidneys that include their tumours."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.building import build_case
from segsweep.data.dataset import describe
from segsweep.errors import InputError


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for number in (0, 1, 209, 210):
        write(f"case_{number:05d}/imaging.nii.gz")
        if number < 210:
            write(f"case_{number:05d}/segmentation.nii.gz", 1, 1, 1, 2, 2)
    junk("case_00000", "case_00210")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("kits19", raw=raw)
    assert dataset.labels.structures == ("kidneys", "tumour")
    assert dataset.channels == ("CT",)
    assert [case.case_id for case in dataset.cases] == ["case_00000", "case_00001", "case_00209", "case_00210"]
    assert [case.split for case in dataset.cases] == ["train", "train", "train", "test"]
    assert [len(case.annotated) for case in dataset.cases] == [2, 2, 2, 0]
    assert voxels(dataset, "case_00001") == {"kidneys": 5, "tumour": 2}


def test_a_case_in_the_store(raw: Path, tmp_path: Path) -> None:
    dataset = describe("kits19", raw=raw)
    record = build_case(dataset.cases[0], labels=dataset.labels, folder=tmp_path / "store" / "case_00000")
    assert [tuple(atom) for atom in record["atoms"]] == [(), (0,), (0, 1)]
    assert record["voxels"] == [115, 3, 2]


@pytest.mark.parametrize("name", ("imaging", "segmentation"))
def test_a_missing_file_is_named(name: str, raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "case_00001" / f"{name}.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"case case_00001: {name}\.nii\.gz is not there"):
        voxels(describe("kits19", raw=raw), "case_00001")
