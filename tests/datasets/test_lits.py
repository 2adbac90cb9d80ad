"""LiTS: pairs of volume and segmentation in any folder, a liver that includes its tumours, and the Decathlon's names as groups."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.dataset import describe
from segsweep.errors import InputError


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for folder, number in (("Training Batch 1", 0), ("Training Batch 1", 9), ("Training Batch 2", 28)):
        write(f"{folder}/volume-{number}.nii")
        write(f"{folder}/segmentation-{number}.nii", 1, 1, 2)
    write("LiTS Test/test-volume-0.nii")
    junk("Training Batch 1")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("lits", raw=raw)
    assert dataset.labels.structures == ("liver", "liver_cancer")
    assert dataset.channels == ("CT",)
    assert {case.case_id: (case.group, case.split) for case in dataset.cases} == {
        "volume-0": ("liver_0", "train"),
        "volume-9": ("liver_9", "train"),
        "volume-28": ("liver_28", "train"),
        "test-volume-0": ("", "test"),
    }
    assert [bool(case.annotated) for case in dataset.cases] == [case.split == "train" for case in dataset.cases]
    assert voxels(dataset, "volume-28") == {"liver": 3, "liver_cancer": 1}


def test_a_missing_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "Training Batch 1" / "segmentation-9.nii").unlink()
    with pytest.raises(InputError, match=r"case volume-9: segmentation-9\.nii is not there"):
        voxels(describe("lits", raw=raw), "volume-9")


def test_a_volume_that_is_there_twice(raw: Path, write: Callable[..., Path]) -> None:
    write("copy/volume-0.nii")
    with pytest.raises(InputError, match="volume-0 is there twice"):
        describe("lits", raw=raw)


def test_a_scan_that_is_not_there_beside_its_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "Training Batch 1/volume-9.nii").unlink()
    with pytest.raises(InputError, match=r"case volume-9: volume-9\.nii is not there"):
        voxels(describe("lits", raw=raw), "volume-9")
