"""BraTS21: four sequences in their order, three regions whose values are 2, 1 and 4."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.building import build_case
from segsweep.data.dataset import describe
from segsweep.errors import InputError

KINDS = ("t1", "t1ce", "t2", "flair")


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for case_id in ("BraTS2021_00000", "BraTS2021_01666"):
        for kind in KINDS:
            write(f"{case_id}/{case_id}_{kind}.nii.gz")
        write(f"{case_id}/{case_id}_seg.nii.gz", 1, 2, 2, 4, 4, 4)
        junk(case_id)
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("brats21", raw=raw)
    assert dataset.labels.structures == ("edema", "non-enhancing", "enhancing")
    assert dataset.channels == ("T1", "T1ce", "T2", "FLAIR")
    first, second = dataset.cases
    assert (first.case_id, second.case_id) == ("BraTS2021_00000", "BraTS2021_01666")
    assert first.images == tuple(raw / "BraTS2021_00000" / f"BraTS2021_00000_{kind}.nii.gz" for kind in KINDS)
    assert voxels(dataset, "BraTS2021_01666") == {"edema": 2, "non-enhancing": 1, "enhancing": 3}


def test_a_case_in_the_store(raw: Path, tmp_path: Path) -> None:
    dataset = describe("brats21", raw=raw)
    record = build_case(dataset.cases[0], labels=dataset.labels, folder=tmp_path / "store" / "BraTS2021_00000")
    found = dict(zip((tuple(atom) for atom in record["atoms"]), record["voxels"], strict=True))
    assert found == {(): 114, (0,): 2, (1,): 1, (2,): 3}
    assert len(record["source_digests"]) == 5


def test_value_3_is_refused(raw: Path, write: Callable[..., Path], voxels: Callable[..., dict[str, int]]) -> None:
    write("BraTS2021_00000/BraTS2021_00000_seg.nii.gz", 1, 2, 3)
    with pytest.raises(InputError, match=r"BraTS2021_00000_seg\.nii\.gz holds label value 3"):
        voxels(describe("brats21", raw=raw), "BraTS2021_00000")


@pytest.mark.parametrize("kind", (*KINDS, "seg"))
def test_a_missing_file_is_named(kind: str, raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "BraTS2021_01666" / f"BraTS2021_01666_{kind}.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"case BraTS2021_01666: .*_{kind}\.nii\.gz is not there"):
        voxels(describe("brats21", raw=raw), "BraTS2021_01666")
