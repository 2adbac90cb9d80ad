"""AutoPET22: CT and float SUV of a study, patients as groups, no dates in case names, and negative studies that count as annotated."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.arrays import GridReader
from segsweep.data.building import build_case
from segsweep.data.dataset import describe
from segsweep.errors import InputError

STUDIES = (
    ("PETCT_0011f3deaf", "03-23-2003-NA-PET-CT Ganzkoerper  primaer mit KM-58133", (1, 1)),
    ("PETCT_0117d7f11f", "09-12-2001-NA-Unspecified CT ABDOMEN-91121", (0,)),
    ("PETCT_0117d7f11f", "11-02-2004-NA-PET-CT Teilkoerper  primaer mit KM-45245", (1,)),
)


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for patient, study, lesion in STUDIES:
        folder = f"{patient}/{study}"
        for kind in ("CT", "CTres", "PET"):
            write(f"{folder}/{kind}.nii.gz")
        write(f"{folder}/SUV.nii.gz", unit=0.0625)
        write(f"{folder}/SEG.nii.gz", *lesion)
        junk(patient, folder)
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("autopet22", raw=raw)
    assert dataset.labels.structures == ("lesion",)
    assert dataset.channels == ("CT", "PET")
    assert [(case.case_id, case.group) for case in dataset.cases] == [
        ("PETCT_0011f3deaf_0", "PETCT_0011f3deaf"),
        ("PETCT_0117d7f11f_0", "PETCT_0117d7f11f"),
        ("PETCT_0117d7f11f_1", "PETCT_0117d7f11f"),
    ]
    assert [path.name for path in dataset.cases[0].images if isinstance(path, Path)] == ["CTres.nii.gz", "SUV.nii.gz"]
    assert all(case.annotated == ("lesion",) for case in dataset.cases)
    assert [voxels(dataset, case.case_id) for case in dataset.cases] == [{"lesion": 2}, {"lesion": 0}, {"lesion": 1}]


def test_a_case_in_the_store(raw: Path, tmp_path: Path) -> None:
    dataset = describe("autopet22", raw=raw)
    folder = tmp_path / "store" / "PETCT_0011f3deaf_0"
    record = build_case(dataset.cases[0], labels=dataset.labels, folder=folder)
    assert (record["group"], record["voxels"]) == ("PETCT_0011f3deaf", [118, 2])
    image = GridReader(folder / "grids" / "native", name="native", lookup=np.arange(2, dtype=np.uint16)).read_image()
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[1], image[0] * np.float32(0.0625))


def test_a_negative_study_in_the_store(raw: Path, tmp_path: Path) -> None:
    dataset = describe("autopet22", raw=raw)
    record = build_case(dataset.cases[1], labels=dataset.labels, folder=tmp_path / "store" / "negative")
    assert (record["annotated"], record["atoms"], record["voxels"]) == (["lesion"], [[]], [120])


@pytest.mark.parametrize("kind", ("CTres", "SUV", "SEG"))
def test_a_missing_file_is_named(kind: str, raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / STUDIES[2][0] / STUDIES[2][1] / f"{kind}.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"case PETCT_0117d7f11f_1: {kind}\.nii\.gz is not there"):
        voxels(describe("autopet22", raw=raw), "PETCT_0117d7f11f_1")
