"""SegRap2023 from the masks and from the one-hot label set: the same structures, voxel by voxel, and the same atoms."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.building import build_case
from segsweep.data.dataset import Dataset, describe
from segsweep.data.fingerprint import CT_WORD
from segsweep.data.geometry import Geometry
from segsweep.data.reading import read_case
from segsweep.data.segrap_labels import OFFICIAL, ORGANS, TUMOURS
from segsweep.errors import InputError
from segsweep.inference.writers import write_image, write_label_map

SET = "SegRap2023_Training_Set_120cases"
GRID = Geometry(shape=(3, 8, 10), spacing=(3.0, 0.5, 0.5), origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
VOXELS = np.arange(240).reshape(GRID.shape)
# Every official label four times, and 24 voxels of background; tumours lie over them and over the background.
ONE_HOT = np.where(VOXELS < 216, VOXELS // 4 + 1, 0).astype(np.uint8)
GTVS = np.where(VOXELS % 7 == 0, 1, np.where(VOXELS > 220, 2, 0)).astype(np.uint8)


def images(folder: Path) -> None:
    for name in ("image", "image_contrast"):
        write_image(VOXELS.astype(np.int16), geometry=GRID, path=folder / f"{name}.nii.gz")


def masks(folder: Path, *names: str) -> None:
    for name in names:
        values = [value for value, organs in OFFICIAL.items() if name in organs]
        mask = np.isin(ONE_HOT, values) if name in ORGANS else np.isin(GTVS, TUMOURS.index(name) + 1)
        write_label_map(mask.astype(np.uint8), geometry=GRID, path=folder / f"{name}.nii.gz")


@pytest.fixture
def by_mask(tmp_path: Path, junk: Callable[..., None]) -> Path:
    folder = tmp_path / SET / "segrap_0000"
    images(folder)
    masks(folder, *ORGANS, *TUMOURS)
    junk(f"{SET}/segrap_0000")
    return tmp_path


@pytest.fixture
def one_hot(tmp_path: Path) -> Path:
    """The label set beside the images, as published: two tasks, one of them in small letters."""
    images(tmp_path / SET / "segrap_0000")
    for task, label in (("Task001", ONE_HOT), ("task002", GTVS)):
        write_label_map(label, geometry=GRID, path=tmp_path / f"{SET}_OneHot_Labels" / task / "segrap_0000.nii.gz")
    return tmp_path


def built(raw: Path) -> tuple[Dataset, dict]:
    dataset = describe("segrap2023", raw=raw)
    return dataset, build_case(dataset.cases[0], labels=dataset.labels, folder=raw / "store" / "segrap_0000")


def test_masks_give_all_structures_and_the_54_labels(by_mask: Path) -> None:
    dataset, record = built(by_mask)
    assert dataset.labels.structures == (*ORGANS, *TUMOURS)
    assert len(dataset.labels.pairs) == 16
    assert all(left[:-1] == right[:-1] and left[-1] + right[-1] == "LR" for left, right in dataset.labels.pairs)
    assert dataset.cases[0].annotated == dataset.labels.structures
    tumours = {len(ORGANS), len(ORGANS) + 1}
    without = {tuple(i for i in atom if i not in tumours) for atom in record["atoms"]}
    official = {tuple(sorted(ORGANS.index(name) for name in names)) for names in OFFICIAL.values()}
    assert without == official | {()}


def test_both_layouts_give_the_same_atoms(by_mask: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("one_hot")
    _, first = built(by_mask)
    images(other / "segrap_0000")
    for task, label in (("Task001", ONE_HOT), ("task002", GTVS)):
        write_label_map(label, geometry=GRID, path=other / "labels" / task / "segrap_0000.nii.gz")
    dataset, second = built(other)
    for key in ("atoms", "voxels", "annotated", "geometry", "labels"):
        assert first[key] == second[key], key
    assert dataset.cases[0].annotated == dataset.labels.structures
    found = [
        read_case(describe("segrap2023", raw=raw).cases[0], labels=dataset.labels).masks for raw in (by_mask, other)
    ]
    assert set(found[0]) == set(found[1]) == set(range(47))
    assert all(np.array_equal(found[0][index], found[1][index]) for index in range(47))


def test_the_published_one_hot_folders(one_hot: Path) -> None:
    case = describe("segrap2023", raw=one_hot).cases[0]
    assert [file.path.parent.name for file in case.labels] == ["Task001", "task002"]
    masks(one_hot / SET / "segrap_0000", "GTVp")
    case = describe("segrap2023", raw=one_hot).cases[0]
    assert [file.path.name for file in case.labels] == ["segrap_0000.nii.gz", "GTVp.nii.gz"], "masks are preferred"
    assert case.annotated == (*ORGANS, "GTVp"), "GTVnd has no mask, so nobody looked for it"


def test_a_mask_that_is_not_there_is_not_annotated(by_mask: Path) -> None:
    (by_mask / SET / "segrap_0000" / "ETbone_R.nii.gz").unlink()
    case = describe("segrap2023", raw=by_mask).cases[0]
    assert {*ORGANS, *TUMOURS} - set(case.annotated) == {"ETbone_R"}


def test_splits_by_id(by_mask: Path) -> None:
    for number in (119, 120, 139, 140, 199):
        images(by_mask / "more" / f"segrap_{number:04d}")
    masks(by_mask / "more" / "segrap_0119", "Brain")
    found = describe("segrap2023", raw=by_mask).cases
    assert [(case.case_id[-3:], case.split, len(case.annotated)) for case in found] == [
        ("000", "train", 47),
        ("119", "train", 1),
        ("120", "validation", 0),
        ("139", "validation", 0),
        ("140", "test", 0),
        ("199", "test", 0),
    ]


def test_both_channels_are_normalised_as_ct(by_mask: Path) -> None:
    dataset = describe("segrap2023", raw=by_mask)
    assert dataset.channels == ("non_contrast_CT", "contrast_CT")
    assert all(CT_WORD.search(name) for name in dataset.channels)
    assert [path.name for path in dataset.cases[0].images if isinstance(path, Path)] == [
        "image.nii.gz",
        "image_contrast.nii.gz",
    ]


def test_what_is_missing_or_there_twice_is_named(by_mask: Path, voxels: Callable[..., dict[str, int]]) -> None:
    images(by_mask / "copy" / "segrap_0000")
    with pytest.raises(InputError, match="segrap_0000 is there twice"):
        describe("segrap2023", raw=by_mask)
    (by_mask / "copy" / "segrap_0000").rename(by_mask / "copy" / "segrap_0001")
    with pytest.raises(InputError, match=r"case segrap_0001: \w+\.nii\.gz is not there"):
        voxels(describe("segrap2023", raw=by_mask), "segrap_0001")
    (by_mask / "copy" / "segrap_0001" / "image_contrast.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case segrap_0001: image_contrast\.nii\.gz is not there"):
        voxels(describe("segrap2023", raw=by_mask), "segrap_0001")
    (by_mask / "copy" / "segrap_0001").rename(by_mask / "copy" / "segrap_x")
    with pytest.raises(InputError, match="segrap_x is no case of SegRap2023"):
        describe("segrap2023", raw=by_mask)
