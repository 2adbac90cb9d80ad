"""FLARE22's files are known by name wherever the archives were unpacked: labelled, unlabelled, validation."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.dataset import describe
from segsweep.errors import InputError


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for number in (1, 50):
        write(f"FLARE22_LabeledCase50/images/FLARE22_Tr_{number:04d}_0000.nii.gz")
        write(f"FLARE22_LabeledCase50/labels/FLARE22_Tr_{number:04d}.nii.gz", *range(1, 14))
    write("FLARE22_UnlabeledCase1-1000/Case_00471_0000.nii.gz")
    write("pseudo/aladdin5/Case_00471.nii.gz", 1)
    write("pseudo/blackbean/Case_00471.nii.gz", 1)
    write("Validation/images/FLARETs_0001_0000.nii.gz")
    write("Validation/images/FLARETs_0002_0000.nii.gz")
    write("Validation/labels/FLARETs_0002.nii.gz", 1)
    junk("FLARE22_LabeledCase50/images", "FLARE22_LabeledCase50/labels")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("flare22", raw=raw)
    assert dataset.labels.structures[1::11] == ("right_kidney", "left_kidney")
    assert dataset.labels.pairs == (
        ("left_adrenal_gland", "right_adrenal_gland"),
        ("left_kidney", "right_kidney"),
    )
    assert [(case.case_id, case.split, len(case.annotated), len(case.labels)) for case in dataset.cases] == [
        ("Case_00471", "train", 0, 0),
        ("FLARE22_Tr_0001", "train", 13, 1),
        ("FLARE22_Tr_0050", "train", 13, 1),
        ("FLARETs_0001", "validation", 0, 0),
        ("FLARETs_0002", "validation", 13, 1),
    ]
    assert voxels(dataset, "FLARE22_Tr_0050") == dict.fromkeys(dataset.labels.structures, 1)


def test_missing_labels_and_doubles_are_named(
    raw: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]
) -> None:
    write("predictions/FLARETs_0002.nii.gz", 1)
    with pytest.raises(
        InputError, match=r"FLARETs_0002 is there twice, as labels/FLARETs_0002\.nii\.gz and predictions/FLARETs_0002"
    ):
        describe("flare22", raw=raw)
    (raw / "predictions" / "FLARETs_0002.nii.gz").unlink()
    (raw / "FLARE22_LabeledCase50" / "labels" / "FLARE22_Tr_0001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case FLARE22_Tr_0001: FLARE22_Tr_0001\.nii\.gz is not there"):
        voxels(describe("flare22", raw=raw), "FLARE22_Tr_0001")


def test_a_scan_that_is_not_there_beside_its_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case FLARE22_Tr_0001: FLARE22_Tr_0001_0000\.nii\.gz is not there"):
        voxels(describe("flare22", raw=raw), "FLARE22_Tr_0001")
