"""StructSeg's chest folder: a numbered folder a case, six organs, lungs as a pair."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.dataset import describe
from segsweep.errors import InputError


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for number in (1, 2, 50):
        write(f"{number}/data.nii.gz")
        write(f"{number}/label.nii.gz", 1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 6, 6)
    junk("1", "50")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("structseg_oar", raw=raw)
    assert dataset.labels.pairs == (("left_lung", "right_lung"),)
    assert dataset.channels == ("CT",)
    assert [case.case_id for case in dataset.cases] == ["structseg_1", "structseg_2", "structseg_50"]
    assert all(case.annotated == dataset.labels.structures for case in dataset.cases)
    assert voxels(dataset, "structseg_50") == {
        "left_lung": 1,
        "right_lung": 2,
        "heart": 3,
        "esophagus": 4,
        "trachea": 1,
        "spinal_cord": 2,
    }


@pytest.mark.parametrize("name", ("data", "label"))
def test_a_missing_file_is_named(name: str, raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "2" / f"{name}.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"case structseg_2: {name}\.nii\.gz is not there"):
        voxels(describe("structseg_oar", raw=raw), "structseg_2")


def test_the_labels_of_another_task_are_refused(
    raw: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]
) -> None:
    write("1/label.nii.gz", 1, 22)
    with pytest.raises(InputError, match=r"structseg_1: label\.nii\.gz holds label value 22"):
        voxels(describe("structseg_oar", raw=raw), "structseg_1")
