"""TotalSegmentator's folders: classes are the files that are there, splits come from meta.csv."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segsweep.data.building import build_case
from segsweep.data.dataset import describe
from segsweep.errors import InputError

META = "\ufeffimage_id;age;split\ns0000;60;train\ns0001;61;val\ns0011;;test\ns1234;9;train\n"


@pytest.fixture
def raw(tmp_path: Path, write: Callable[..., Path], junk: Callable[..., None]) -> Path:
    for case_id in ("s0000", "s0001", "s0011"):
        write(f"{case_id}/ct.nii.gz")
        for name in ("rib_right_1", "rib_left_1", "spleen"):
            write(f"{case_id}/segmentations/{name}.nii.gz", 1, 0, 1)
    write("s0001/segmentations/liver.nii.gz", 0)
    junk("s0000", "s0000/segmentations")
    (tmp_path / "meta.csv").write_text(META, encoding="utf-8")
    return tmp_path


def test_layout(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    dataset = describe("totalsegmentator", raw=raw)
    assert dataset.labels.structures == ("liver", "rib_left_1", "rib_right_1", "spleen")
    assert dataset.labels.pairs == (("rib_left_1", "rib_right_1"),)
    assert [(case.case_id, case.split, len(case.annotated)) for case in dataset.cases] == [
        ("s0000", "train", 3),
        ("s0001", "validation", 4),
        ("s0011", "test", 3),
    ]
    assert voxels(dataset, "s0001") == {"liver": 0, "rib_left_1": 2, "rib_right_1": 2, "spleen": 2}
    record = build_case(dataset.cases[0], labels=dataset.labels, folder=raw / "store" / "s0000")
    assert [tuple(atom) for atom in record["atoms"]] == [(), (1, 2, 3)], "overlaps are kept"


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (None, r"meta\.csv cannot be used \(FileNotFoundError"),
        (b"image_id,split\ns0000,train\n", "KeyError: 'image_id'"),
        (b"image_id;split\ns0000;train\ns0001;val\n", "s0011: its split in meta.csv is ''"),
        (b"image_id;split\ns0000;train\ns0001;val\ns0011;fold\n", "s0011: its split in meta.csv is 'fold'"),
        (b"image_id;split\ns0000\n", "s0000: its split in meta.csv is ''"),
        (b"\xff\xfe\0", "cannot be used"),
    ],
)
def test_a_meta_csv_that_does_not_fit(meta: bytes | None, message: str, raw: Path) -> None:
    (raw / "meta.csv").unlink()
    if meta is not None:
        (raw / "meta.csv").write_bytes(meta)
    with pytest.raises(InputError, match=message):
        describe("totalsegmentator", raw=raw)


def test_a_mask_that_is_a_link_out_of_the_folder(
    raw: Path, tmp_path_factory: pytest.TempPathFactory, voxels: Callable[..., dict[str, int]]
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "x.nii.gz"
    outside.touch()
    (raw / "s0000" / "segmentations" / "aorta.nii.gz").symlink_to(outside)
    dataset = describe("totalsegmentator", raw=raw)
    with pytest.raises(InputError, match=r"case s0000: aorta\.nii\.gz is a link that leads out"):
        voxels(dataset, "s0000")
    assert voxels(dataset, "s0001")


def test_a_missing_ct_is_named(raw: Path, voxels: Callable[..., dict[str, int]]) -> None:
    (raw / "s0000" / "ct.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case s0000: ct\.nii\.gz is not there"):
        voxels(describe("totalsegmentator", raw=raw), "s0000")
