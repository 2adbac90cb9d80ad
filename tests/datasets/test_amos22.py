"""AMOS22's folder: CT alone, three sets, 15 organs by value."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.dataset import describe
from segsweep.errors import InputError


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for kind, numbers in {"Tr": (1, 499, 507), "Va": (8, 578), "Ts": (2, 600)}.items():
        for number in numbers:
            write(f"images{kind}/amos_{number:04d}.nii.gz")
            if kind != "Ts":
                write(f"labels{kind}/amos_{number:04d}.nii.gz", *range(1, 16))
    junk("imagesTr", "labelsTr", "imagesTs")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("amos22", raw=raw)
    assert len(dataset.labels.structures) == 15
    assert dataset.labels.pairs == (
        ("left_kidney", "right_kidney"),
        ("left_adrenal_gland", "right_adrenal_gland"),
    )
    assert [(case.case_id, case.split, len(case.annotated)) for case in dataset.cases] == [
        ("amos_0001", "train", 15),
        ("amos_0499", "train", 15),
        ("amos_0002", "test", 0),
        ("amos_0008", "validation", 15),
    ]
    assert voxels(dataset, "amos_0008") == dict.fromkeys(dataset.labels.structures, 1)
    label = dataset.cases[0].labels[0]
    assert [label.values[value] for value in (2, 3, 15)] == [("right_kidney",), ("left_kidney",), ("prostate_uterus",)]  # type: ignore[union-attr]


def test_a_missing_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "labelsVa" / "amos_0008.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case amos_0008: amos_0008\.nii\.gz is not there"):
        voxels(describe("amos22", raw=raw), "amos_0008")


def test_a_scan_that_is_not_there_beside_its_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "imagesVa/amos_0008.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case amos_0008: amos_0008\.nii\.gz is not there"):
        voxels(describe("amos22", raw=raw), "amos_0008")
