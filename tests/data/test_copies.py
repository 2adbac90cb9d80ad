"""An uncompressed copy is made when it pays, says what the store says, and is thrown away when it does not."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from segsweep.data.arrays import IMAGE, LABEL, GridData, GridReader, write_grid
from segsweep.data.copies import COPIED_AT, TOUCHED_EVERY
from segsweep.data.geometry import Geometry
from segsweep.errors import StoreError

Region = tuple[slice, slice, slice]
SHAPE = (20, 70, 90)
REGION: Region = (slice(3, 19), slice(0, 66), slice(60, 90))


def write(folder: Path, data: GridData) -> Path:
    write_grid(folder, data=data, num_atoms=5, channels=("CT",), seed=0)
    return folder


def reader(folder: Path) -> GridReader:
    return GridReader(folder, name="case_1/native", lookup=np.arange(5, dtype=np.uint8))


@pytest.fixture
def data() -> GridData:
    generator = np.random.default_rng(0)
    axes = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return GridData(
        image=generator.normal(50, 20, (1, *SHAPE)).astype(np.int16),
        label=generator.integers(0, 5, SHAPE).astype(np.uint8),
        geometry=Geometry(shape=SHAPE, spacing=(3.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=axes),
    )


@pytest.fixture
def grid(tmp_path: Path, data: GridData) -> Path:
    return write(tmp_path / "grid", data)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


def read_patches(opened: GridReader, *, times: int = COPIED_AT) -> None:
    for _ in range(times):
        opened.read_image(REGION)
        opened.read_label(REGION)


def test_a_copy_is_made_when_a_grid_is_read_again_and_again(grid: Path, data: GridData, cache: Path) -> None:
    for _ in range(5):
        reader(grid).read_image()
        reader(grid).read_image(REGION)
        reader(grid).read_label(REGION)
    assert entries(cache) == []
    read_patches(reader(grid))
    (copy,) = entries(cache)
    before = copy.stat().st_ino
    read_patches(reader(grid))
    assert [path.stat().st_ino for path in entries(cache)] == [before]
    group = zarr.open_group(str(copy), mode="r")
    for path, values in ((IMAGE, data.image), (LABEL, data.label)):
        stored = group[path]
        assert isinstance(stored, zarr.Array)
        assert np.array_equal(np.asarray(stored[...]), values)
        assert values.nbytes < sum(file.stat().st_size for file in (copy / path).rglob("*") if file.is_file())


def test_a_copy_serves_when_the_store_is_out_of_reach(grid: Path, data: GridData, cache: Path) -> None:
    opened = reader(grid)
    read_patches(opened)
    for file in (grid / IMAGE / "c").rglob("*"):
        if file.is_file():
            file.write_bytes(bytes(file.stat().st_size))
    assert np.array_equal(opened.read_image(REGION), data.image[(slice(None), *REGION)])
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("harm", ["flip", "cut", "delete", "describe"])
@pytest.mark.parametrize("opened_before", [True, False])
def test_a_damaged_copy_is_dropped_and_the_store_read(
    grid: Path, data: GridData, cache: Path, harm: str, opened_before: bool
) -> None:
    first = reader(grid)
    first.read_image(REGION)
    read_patches(reader(grid))
    (copy,) = entries(cache)
    shard = copy / IMAGE / "c/0/0/0/0"
    content = bytearray(shard.read_bytes())
    content[data.image[0, 0].nbytes * 10] ^= 1
    if harm == "describe":
        (copy / IMAGE / "zarr.json").write_text("{}")
    elif harm == "delete":
        shard.unlink()
    else:
        shard.write_bytes(content if harm == "flip" else content[:1000])
    opened = first if opened_before else reader(grid)
    for _ in range(2 * COPIED_AT):
        assert np.array_equal(opened.read_image(REGION), data.image[(slice(None), *REGION)])
        assert np.array_equal(opened.read_label(REGION), data.label[REGION])
    assert entries(cache) == []
    read_patches(reader(grid))
    assert len(entries(cache)) == 1


def test_damage_in_the_store_is_never_copied(grid: Path, cache: Path) -> None:
    shard = grid / LABEL / "c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    opened = reader(grid)
    for _ in range(COPIED_AT):
        opened.read_image(REGION)
        with pytest.raises(
            StoreError, match=r"^case_1/native, labels/atoms/values, shard c/0/0/0 has a chunk \(0, 0, 0\)"
        ):
            opened.read_label((slice(0, 4), slice(0, 4), slice(0, 4)))
    assert entries(cache) == []


def test_a_case_that_was_converted_again_is_copied_again(grid: Path, data: GridData, cache: Path) -> None:
    read_patches(reader(grid))
    shutil.rmtree(grid)
    time.sleep(0.01)
    other = GridData(image=data.image + 1, label=data.label, geometry=data.geometry)
    opened = reader(write(grid, other))
    read_patches(opened)
    assert np.array_equal(opened.read_image(REGION), other.image[(slice(None), *REGION)])
    assert len(entries(cache)) == 2


def test_a_cache_without_room_changes_nothing(
    grid: Path, data: GridData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSWEEP_CACHE_GB", str(data.image.nbytes / 1e9))
    opened = reader(grid)
    read_patches(opened)
    assert np.array_equal(opened.read_image(REGION), data.image[(slice(None), *REGION)])
    assert entries(cache) == []


def test_a_copy_that_was_dropped_is_closed(grid: Path, data: GridData, cache: Path) -> None:
    opened = reader(grid)
    read_patches(opened)
    (copy,) = entries(cache)
    assert str(copy) in Path("/proc/self/maps").read_text()
    shutil.rmtree(copy)
    read_patches(opened, times=TOUCHED_EVERY)
    assert str(copy) not in Path("/proc/self/maps").read_text(), "its mapping would hold the disk"
    assert np.array_equal(opened.read_label(REGION), data.label[REGION])


def test_copies_in_recent_use_are_not_traded_for_others(
    tmp_path: Path, data: GridData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSWEEP_CACHE_GB", str(2.5 * (data.image.nbytes + data.label.nbytes) / 1e9))
    grids = [write(tmp_path / f"grid_{index}", data) for index in range(3)]
    read_patches(reader(grids[0]))
    read_patches(reader(grids[1]))
    before = entries(cache)
    read_patches(reader(grids[2]))
    assert entries(cache) == before
    assert len(before) == 2
