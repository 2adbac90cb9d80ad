"""VerSe20: three folders that are the splits, every vertebra one structure, several scans of a patient in one group."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.dataset import describe
from segsweep.errors import InputError

SCANS = (
    ("dataset-01training", "sub-verse500", "sub-verse500_dir-ax"),
    ("dataset-01training", "sub-gl003", "sub-gl003_dir-ax"),
    ("dataset-02validation", "sub-verse401", "sub-verse401_split-verse253"),
    ("dataset-02validation", "sub-verse401", "sub-verse401_split-verse260"),
    ("dataset-03test", "sub-verse563", "sub-verse563_dir-iso"),
)


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for part, subject, name in SCANS:
        write(f"{part}/rawdata/{subject}/{name}_ct.nii.gz")
        write(f"{part}/derivatives/{subject}/{name}_seg-vert_msk.nii.gz", 1, 7, 25, 28)
        (tmp_path / part / "derivatives" / subject / f"{name}_seg-subreg_ctd.json").write_text("[]")
        junk(f"{part}/rawdata/{subject}")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("verse20", raw=raw)
    assert dataset.labels.structures == ("vertebrae",)
    assert dataset.channels == ("CT",)
    assert {(case.case_id, case.group, case.split) for case in dataset.cases} == {
        ("sub-verse500_dir-ax", "sub-verse500", "train"),
        ("sub-gl003_dir-ax", "sub-gl003", "train"),
        ("sub-verse401_split-verse253", "sub-verse401", "validation"),
        ("sub-verse401_split-verse260", "sub-verse401", "validation"),
        ("sub-verse563_dir-iso", "sub-verse563", "test"),
    }
    assert voxels(dataset, "sub-verse563_dir-iso") == {"vertebrae": 4}


def test_a_value_that_is_no_vertebra_is_refused(
    raw: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]
) -> None:
    write("dataset-01training/derivatives/sub-gl003/sub-gl003_dir-ax_seg-vert_msk.nii.gz", 1, 26)
    with pytest.raises(InputError, match=r"sub-gl003_dir-ax: .* holds label value 26"):
        voxels(describe("verse20", raw=raw), "sub-gl003_dir-ax")


def test_a_missing_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "dataset-03test/derivatives/sub-verse563/sub-verse563_dir-iso_seg-vert_msk.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case sub-verse563_dir-iso: .*_seg-vert_msk\.nii\.gz is not there"):
        voxels(describe("verse20", raw=raw), "sub-verse563_dir-iso")
