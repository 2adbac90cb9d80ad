"""VS-SEG: a folder a patient with the T1 and its segmentation; T2 files beside them are left alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.dataset import describe
from segsweep.errors import InputError


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for number in (1, 2, 250):
        write(f"vs_gk_{number}/vs_gk_t1_refT1.nii.gz")
        write(f"vs_gk_{number}/vs_gk_seg_refT1.nii.gz", 1, 1)
        write(f"vs_gk_{number}/vs_gk_t2_refT2.nii.gz")
    junk("vs_gk_1", "vs_gk_250")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("vs_seg", raw=raw)
    assert (dataset.labels.structures, dataset.channels) == (("tumour",), ("T1",))
    assert [case.case_id for case in dataset.cases] == ["vs_gk_1", "vs_gk_2", "vs_gk_250"]
    assert all(case.annotated == ("tumour",) and case.split == "train" for case in dataset.cases)
    assert dataset.cases[1].images == (raw / "vs_gk_2" / "vs_gk_t1_refT1.nii.gz",)
    assert voxels(dataset, "vs_gk_250") == {"tumour": 2}


@pytest.mark.parametrize("name", ("vs_gk_t1_refT1", "vs_gk_seg_refT1"))
def test_a_missing_file_is_named(name: str, raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "vs_gk_2" / f"{name}.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"case vs_gk_2: {name}\.nii\.gz is not there"):
        voxels(describe("vs_seg", raw=raw), "vs_gk_2")
