"""NIH Pancreas-CT: DICOM series and their numbered labels, the known misfits left out, and labels that lie on the pancreas."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from segsweep.data.case import Series
from segsweep.data.dataset import describe
from segsweep.data.geometry import Geometry
from segsweep.data.reading import read_case, source_digests
from segsweep.errors import InputError
from segsweep.inference.writers import write_label_map

LABELS = "TCIA_pancreas_labels-02-05-2017"
LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


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


def organ(raw: Path) -> np.ndarray:
    """A pancreas of one HU in case 0001's scan of noise; its voxels as the DICOM stores them."""
    pancreas = np.zeros((4, 5, 6), dtype=np.uint8)
    pancreas[:2, :2, 1:4] = 1
    noise = np.random.default_rng(0).integers(0, 2000, pancreas.shape)
    for path in (raw / "Pancreas-CT" / "PANCREAS_0001").rglob("*.dcm"):
        item, index = pydicom.dcmread(path), int(path.stem)
        item.PixelData = np.where(pancreas[index], 1124, noise[index]).astype("<i2").tobytes()
        item.save_as(path)
    return pancreas


def test_labels_are_read_in_the_order_of_the_scans_voxels(raw: Path) -> None:
    pancreas = organ(raw)
    wrong = Geometry(
        shape=(4, 5, 6), spacing=(3.0, 1.5, 1.5), origin=(0.0, 0.0, 0.0), direction=(1, 0, 0, 0, -1, 0, 0, 0, 1)
    )
    write_label_map(pancreas, geometry=wrong, path=raw / LABELS / "label0001.nii.gz")
    dataset = describe("nih_pancreas", raw=raw)
    found = read_case(dataset.cases[0], labels=dataset.labels)
    np.testing.assert_array_equal(found.masks[0], pancreas > 0)
    assert float(found.images[0][found.masks[0]].std()) == 0


def test_labels_in_another_order_are_refused_until_it_is_stated(raw: Path) -> None:
    pancreas = organ(raw)
    wrong = Geometry(shape=(4, 5, 6), spacing=(3.0, 1.5, 1.5), origin=(9.0, 0.0, 0.0), direction=LPS)
    write_label_map(pancreas[::-1], geometry=wrong, path=raw / LABELS / "label0001.nii.gz")
    dataset = describe("nih_pancreas", raw=raw)
    with pytest.raises(InputError, match=r"nih_0001: label0001\.nii\.gz: with flip '' .* with 'z' by"):
        read_case(dataset.cases[0], labels=dataset.labels)
    before = source_digests(dataset.cases[0])
    (raw / "label_flip.json").write_text(json.dumps({"flip": "z"}))
    stated = describe("nih_pancreas", raw=raw)
    np.testing.assert_array_equal(read_case(stated.cases[0], labels=stated.labels).masks[0], pancreas > 0)
    assert source_digests(stated.cases[0]) != before


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
