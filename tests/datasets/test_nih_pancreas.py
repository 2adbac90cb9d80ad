"""NIH Pancreas-CT: DICOM series and their numbered labels, the known misfits left out, and no label moved to fit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.case import Series
from segsweep.data.dataset import describe
from segsweep.data.geometry import Geometry
from segsweep.errors import InputError
from segsweep.inference.writers import write_label_map

LABELS = "TCIA_pancreas_labels-02-05-2017"


@pytest.fixture
def raw(
    tmp_path: Path, write: Callable[..., Path], write_series: Callable[..., None], junk: Callable[..., None]
) -> Path:
    for number in ("0001", "0007", "0082"):
        write_series(f"Pancreas-CT/PANCREAS_{number}/11-24-2015-PANCREAS{number}-Pancreas-18957/Pancreas-63502")
        write(f"{LABELS}/label{number}.nii.gz", 1, 1, 1)
    write(f"{LABELS}/label0025.nii.gz", 1)
    (tmp_path / "Pancreas-CT" / "LICENSE").touch()
    junk("Pancreas-CT/PANCREAS_0001", LABELS)
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("nih_pancreas", raw=raw)
    assert (dataset.labels.structures, dataset.channels) == (("pancreas",), ("CT",))
    assert [(case.case_id, case.group, case.annotated) for case in dataset.cases] == [
        ("nih_0001", "nih_0001", ("pancreas",)),
        ("nih_0082", "nih_0082", ("pancreas",)),
    ]
    series = dataset.cases[0].images[0]
    assert isinstance(series, Series) and len(series.files) == 4
    assert voxels(dataset, "nih_0082") == {"pancreas": 3}


def test_a_label_with_flipped_rows_is_refused_not_moved(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    rows_up = Geometry(
        shape=(4, 5, 6), spacing=(3.0, 1.5, 1.5), origin=(0.0, 0.0, 0.0), direction=(1, 0, 0, 0, -1, 0, 0, 0, 1)
    )
    label = np.zeros(rows_up.shape, dtype=np.uint8)
    label[1, 1, 1] = 1
    write_label_map(label, geometry=rows_up, path=raw / LABELS / "label0001.nii.gz")
    with pytest.raises(
        InputError, match=r"nih_0001: label0001\.nii\.gz lies on another grid than the image: .* mm away"
    ):
        voxels(describe("nih_pancreas", raw=raw), "nih_0001")


def test_a_missing_label_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / LABELS / "label0001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case nih_0001: label0001\.nii\.gz is not there"):
        voxels(describe("nih_pancreas", raw=raw), "nih_0001")


@pytest.mark.parametrize("number", (0, 2))
def test_not_one_series_is_named(
    number: int, raw: Path, write_series: Callable[..., None], voxels: Callable[..., dict[str, int]]
) -> None:
    if number:
        write_series("Pancreas-CT/PANCREAS_0082/again")
    else:
        for path in (raw / "Pancreas-CT" / "PANCREAS_0082").rglob("*.dcm"):
            path.unlink()
    with pytest.raises(InputError, match=r"case nih_0082: .*(series without files|several series)"):
        voxels(describe("nih_pancreas", raw=raw), "nih_0082")


@pytest.mark.parametrize("size", (0, 150, 200, 400))
def test_a_damaged_slice_fails_its_own_case_alone(size: int, raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    victim = sorted((raw / "Pancreas-CT" / "PANCREAS_0082").rglob("*.dcm"))[-1]
    victim.write_bytes(victim.read_bytes()[:size])
    dataset = describe("nih_pancreas", raw=raw)
    with pytest.raises(InputError, match=rf"case nih_0082: {victim.name}"):
        voxels(dataset, "nih_0082")
    assert voxels(dataset, "nih_0001")
