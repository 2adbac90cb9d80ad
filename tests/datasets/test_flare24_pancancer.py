"""FLARE24's parts: labelled, unlabelled, hidden and public validation, and healthy scans that are annotated and empty."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.building import build_case
from segsweep.data.dataset import describe
from segsweep.errors import InputError


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for name in ("KiTS23-488/KiTS23_0001_0000", "MSD-892/liver_0"):
        write(f"Train-Labeled/{name}.nii.gz")
    for name in ("KiTS23_0001", "liver_0", "LIDC_0007"):
        write(f"Train-Labeled/labelsTr/{name}.nii.gz", 1, 1)
    write("Train-Unlabeled/AMOS-image-Part1-750/amos_0600_0000.nii.gz")
    write("Validation-Hidden/FLARE24Val_0001_0000.nii.gz")
    write("Validation-Public/HealthyImages-noLesion/healthy_1_0000.nii.gz")
    write("Validation-Public/lesion-images/case_1_0000.nii.gz")
    write("Validation-Public/lesion-gts/case_1.nii.gz", 1)
    junk("Train-Labeled/labelsTr", "Train-Labeled/MSD-892", "Validation-Hidden")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("flare24_pancancer", raw=raw)
    assert dataset.labels.structures == ("lesion",)
    assert [(case.case_id, case.split, case.annotated, len(case.labels)) for case in dataset.cases] == [
        ("KiTS23_0001", "train", ("lesion",), 1),
        ("liver_0", "train", ("lesion",), 1),
        ("amos_0600", "train", (), 0),
        ("FLARE24Val_0001", "validation", (), 0),
        ("case_1", "validation", ("lesion",), 1),
        ("healthy_1", "validation", ("lesion",), 0),
    ]
    assert voxels(dataset, "KiTS23_0001") == {"lesion": 2}
    record = build_case(dataset.cases[-1], labels=dataset.labels, folder=raw / "store" / "healthy_1")
    assert (record["atoms"], record["annotated"]) == ([[]], ["lesion"])


def test_parts_may_be_left_out_but_no_label(
    raw: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]
) -> None:
    (raw / "Train-Labeled" / "labelsTr" / "liver_0.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case liver_0: liver_0\.nii\.gz is not there"):
        voxels(describe("flare24_pancancer", raw=raw), "liver_0")
    (raw / "Train-Labeled" / "MSD-892" / "liver_0.nii.gz").unlink()
    assert len(describe("flare24_pancancer", raw=raw).cases) == 5
    write("Train-Unlabeled/MSD-506/amos_0600_0000.nii.gz")
    with pytest.raises(InputError, match="amos_0600_0000 is there twice"):
        describe("flare24_pancancer", raw=raw)
