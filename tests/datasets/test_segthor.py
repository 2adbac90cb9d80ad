"""SegTHOR: a folder a patient with its own name in it, four organs, unlabelled test scans."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.dataset import describe
from segsweep.errors import InputError


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for number in (1, 40):
        write(f"train/Patient_{number:02d}/Patient_{number:02d}.nii.gz")
        write(f"train/Patient_{number:02d}/GT.nii.gz", 1, 2, 2, 3, 3, 3, 4, 4, 4, 4)
    write("test/Patient_41.nii.gz")
    junk("train/Patient_01", "test")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("segthor", raw=raw)
    assert dataset.channels == ("CT",)
    assert [(case.case_id, case.split, len(case.annotated)) for case in dataset.cases] == [
        ("Patient_01", "train", 4),
        ("Patient_40", "train", 4),
        ("Patient_41", "test", 0),
    ]
    assert voxels(dataset, "Patient_40") == {"esophagus": 1, "heart": 2, "trachea": 3, "aorta": 4}


@pytest.mark.parametrize("name", ("GT", "Patient_01"))
def test_a_missing_file_is_named(name: str, raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "train" / "Patient_01" / f"{name}.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"case Patient_01: {name}\.nii\.gz is not there"):
        voxels(describe("segthor", raw=raw), "Patient_01")
