"""A grid reads as it was written, whatever lies between: our reader, zarr-python, or an uncompressed copy."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segsweep.data import arrays
from segsweep.data.arrays import IMAGE, LABEL, GridData, GridReader, write_grid
from segsweep.data.geometry import Geometry
from segsweep.data.shards import open_shards
from segsweep.errors import StoreError

Region = tuple[slice, slice, slice]
SHAPE = (20, 70, 90)
REGION: Region = (slice(3, 19), slice(0, 66), slice(60, 90))


def grid_data(
    *, shape: tuple[int, int, int] = SHAPE, dtype: str = "int16", channels: int = 1, atoms: int = 5
) -> GridData:
    generator = np.random.default_rng(0)
    image = generator.normal(50, 20, (channels, *shape)).astype(dtype)
    label = np.zeros(shape, np.uint8 if atoms <= 256 else np.uint16)
    half = shape[0] // 2
    label[half:] = generator.integers(0, atoms, label[half:].shape)
    geometry = Geometry(
        shape=shape, spacing=(3.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)
    )
    return GridData(image=image, label=label, geometry=geometry)


def write(folder: Path, data: GridData, *, atoms: int = 5) -> Path:
    names = tuple(f"channel {index}" for index in range(len(data.image)))
    write_grid(folder, data=data, num_atoms=atoms, channels=names, seed=0)
    return folder


def reader(folder: Path, *, lookup: NDArray | None = None) -> GridReader:
    return GridReader(folder, name="case_1/native", lookup=np.arange(5, dtype=np.uint8) if lookup is None else lookup)


@pytest.fixture
def data() -> GridData:
    return grid_data()


@pytest.fixture
def grid(tmp_path: Path, data: GridData) -> Path:
    return write(tmp_path / "grid", data)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    ends = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in SHAPE]
    return slice(*ends[0]), slice(*ends[1]), slice(*ends[2])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", ["int16", "float32", "uint16", "uint8"])
@pytest.mark.parametrize("cached", [False, True])
def test_regions_are_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, channels: int, cached: bool
) -> None:
    if cached:
        monkeypatch.setenv("SEGSWEEP_CACHE", str(tmp_path / "cache"))
    data = grid_data(dtype=dtype, channels=channels, atoms=300 if dtype == "uint16" else 5)
    folder = write(tmp_path / "grid", data, atoms=300)
    opened = reader(folder, lookup=np.arange(300, dtype=np.uint16))
    peer = zarr.open_group(str(folder), mode="r")[IMAGE]
    assert isinstance(peer, zarr.Array)

    @settings(
        max_examples=30, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(region=regions())
    def check(region: Region) -> None:
        image, label = opened.read_image(region), opened.read_label(region)
        assert image.dtype == data.image.dtype
        assert np.array_equal(image, data.image[(slice(None), *region)])
        assert np.array_equal(image, np.asarray(peer[(slice(None), *region)]))
        assert np.array_equal(label, data.label[region])

    check()
    assert np.array_equal(opened.read_image(), data.image)
    assert np.array_equal(opened.read_label(), data.label)
    assert cached == (tmp_path / "cache").exists()


def test_what_is_written_is_read_by_our_own_reader(grid: Path) -> None:
    assert open_shards(grid / IMAGE, name="x") is not None
    assert open_shards(grid / LABEL, name="x") is not None


def test_every_chunk_is_written(tmp_path: Path, data: GridData) -> None:
    nothing = GridData(image=np.zeros_like(data.image), label=np.zeros_like(data.label), geometry=data.geometry)
    opened = reader(write(tmp_path / "grid", nothing))
    assert not opened.read_image().any()
    assert not opened.read_label().any()


@pytest.mark.parametrize("path", [IMAGE, LABEL])
def test_foreign_layouts_are_read_by_zarr_python(grid: Path, data: GridData, path: str) -> None:
    values = data.image if path == IMAGE else data.label
    shutil.rmtree(grid / path)
    foreign = zarr.create_array(str(grid / path), shape=values.shape, dtype=values.dtype, chunks=values.shape)
    foreign[...] = values
    opened = reader(grid)
    assert np.array_equal(opened.read_image(REGION), data.image[(slice(None), *REGION)])
    assert np.array_equal(opened.read_label(REGION), data.label[REGION])
    (victim,) = [file for file in (grid / path / "c").rglob("*") if file.is_file()]
    victim.write_bytes(b"nonsense")
    with pytest.raises(StoreError, match=rf"^case_1/native, {path} is damaged"):
        reader(grid).read_image() if path == IMAGE else reader(grid).read_label()


@pytest.mark.parametrize("source", ["uint8", "uint16"])
@pytest.mark.parametrize("target", ["uint8", "uint16"])
def test_atom_values_are_those_of_the_lookup(tmp_path: Path, source: str, target: str) -> None:
    data = grid_data()
    data = GridData(image=data.image, label=data.label.astype(source), geometry=data.geometry)
    folder = write(tmp_path / "grid", data)
    for values in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [0, 9, 4, 200, 7]):
        lookup = np.asarray(values, target)
        label = reader(folder, lookup=lookup).read_label(REGION)
        assert label.dtype == lookup.dtype
        assert np.array_equal(label, lookup[data.label[REGION]])
        label += 1


def test_an_array_that_is_gone_is_named(grid: Path) -> None:
    shutil.rmtree(grid / IMAGE)
    (grid / "foreground" / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"^case_1/native, image: no readable zarr\.json"):
        reader(grid).read_image()
    with pytest.raises(StoreError, match=r"^case_1/native, foreground cannot be opened"):
        _ = reader(grid).foreground
    (grid / "zarr.json").write_text("{}")
    with pytest.raises(StoreError, match=r"^case_1/native cannot be opened"):
        _ = reader(grid).shape


def test_foreground_samples_are_voxels_of_their_atom(
    tmp_path: Path, data: GridData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MOST_SAMPLES", 100)
    lookup = np.asarray([0, 3, 2, 1, 7], np.uint8)
    opened = reader(write(tmp_path / "grid", data), lookup=lookup)
    assert set(opened.foreground) == {3, 2, 1, 7}
    for local, value in enumerate(lookup.tolist()):
        if local:
            voxels = opened.foreground[value]
            assert len(voxels) == max(100, int(np.ceil(0.01 * (data.label == local).sum())))
            assert len(np.unique(voxels, axis=0)) == len(voxels)
            assert (data.label[tuple(voxels.T)] == local).all()
