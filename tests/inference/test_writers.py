"""Label maps come back exactly, on every kind of grid; a failed write leaves the old file."""

import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.geometry import Geometry
from segsweep.data.readers import read_labels, read_scan
from segsweep.errors import InputError
from segsweep.inference.writers import write_image, write_label_map

COS, SIN = float(np.cos(0.3)), float(np.sin(0.3))
DIRECTIONS = {
    "LPS": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "RAS": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    "PIR": (0, 0, -1, 1, 0, 0, 0, -1, 0),
    "left-handed": (1, 0, 0, 0, 1, 0, 0, 0, -1),
    "oblique": (COS, -SIN, 0, SIN, COS, 0, 0, 0, 1),
    "oblique PIR": (0, -SIN, -COS, 1, 0, 0, 0, -COS, SIN),
}


def grid(kind: str) -> Geometry:
    direction = tuple(float(value) for value in DIRECTIONS[kind])
    return Geometry(shape=(3, 4, 5), spacing=(2.5, 0.98, 1.17), origin=(-254.39, 181.61, -19.5), direction=direction)


@pytest.mark.parametrize("kind", DIRECTIONS)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_round_trip(kind: str, suffix: str, tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 9, size=(3, 4, 5))
    path = tmp_path / "new" / f"case{suffix}"
    write_label_map(label, geometry=grid(kind), path=path)
    scan = read_labels(path)
    np.testing.assert_array_equal(scan.voxels, label)
    assert scan.geometry.same_grid(grid(kind))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("top", "size"), [(1, 1), (255, 1), (256, 2), (70000, 4)])
def test_smallest_type(top: int, size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_label_map(np.full((3, 4, 5), top), geometry=grid("LPS"), path=path)
    assert path.stat().st_size == 352 + 60 * size


def test_images_keep_their_type(tmp_path: Path) -> None:
    voxels = np.linspace(-3024, 3000.5, 60, dtype=np.float32).reshape(3, 4, 5)
    write_image(voxels, geometry=grid("PIR"), path=tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.nii.gz").voxels, voxels)
    with pytest.raises(InputError, match="float64"):
        write_image(voxels.astype(float), geometry=grid("PIR"), path=tmp_path / "b.nii.gz")


@pytest.mark.parametrize(
    ("label", "name", "word"),
    [
        (np.zeros((3, 4, 5)), "a.nii.gz", "float64"),
        (np.full((3, 4, 5), -1), "a.nii.gz", "from 0"),
        (np.full((3, 4, 5), 2**40), "a.nii.gz", "2\\^32"),
        (np.zeros((5, 4, 3), dtype=int), "a.nii.gz", "shape|grid"),
        (np.zeros((3, 4, 5), dtype=int), "a.png", "a.png"),
    ],
)
def test_refusals_leave_the_old_file(label: np.ndarray, name: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=word):
        write_label_map(label, geometry=grid("LPS"), path=path)
    assert path.read_bytes() == b"old"


def test_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a\.nii\.gz") as caught:
        write_label_map(np.zeros((3, 4, 5), dtype=int), geometry=grid("LPS"), path=tmp_path / "file" / "a.nii.gz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_full_disk_leaves_the_old_file(suffix: str, tmp_path: Path) -> None:
    """ITK says nothing when a NIfTI file does not fit."""
    label = np.random.default_rng(0).integers(0, 255, size=(20, 64, 64)).astype(np.uint8)
    large = replace(grid("LPS"), shape=label.shape)
    path = tmp_path / f"case{suffix}"
    write_label_map(np.zeros_like(label), geometry=large, path=path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(InputError, match=f"case{suffix} cannot be written .* with space left"):
            write_label_map(label, geometry=large, path=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not read_labels(path).voxels.any()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
