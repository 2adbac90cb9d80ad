"""Our reader of shards says what zarr-python says, or says which chunk is damaged."""

import importlib
import json
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec

from segsweep.data.shards import DTYPES, Shards, open_shards
from segsweep.errors import StoreError

Kind = Literal["compressed", "plain"]
INDEX_ENTRY, CHECKSUM = 16, 4


def array(shape: tuple[int, ...], *, dtype: str, seed: int = 0) -> NDArray:
    """Values of few bits, with whole blocks of zeros."""
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 100, shape).astype(dtype)
    values[..., : shape[-2] // 2, :] = 0
    return values


def write(folder: Path, values: NDArray, *, chunk: tuple[int, ...], kind: Kind = "compressed", **changes: Any) -> Path:
    lead = (1,) * (values.ndim - 3)
    if kind == "plain":
        chunk = (1, *values.shape[-2:])
    blosc = BloscCodec(cname="lz4hc", clevel=5, shuffle="shuffle", typesize=values.dtype.itemsize)
    options: dict[str, Any] = {
        "chunks": (*lead, *chunk),
        "shards": (*lead, *(-(-n // c) * c for n, c in zip(values.shape[-len(chunk) :], chunk, strict=True))),
        "compressors": [blosc, Crc32cCodec()] if kind == "compressed" else [Crc32cCodec()],
        "config": {"write_empty_chunks": True},
        "overwrite": True,
    }
    stored = zarr.create_array(str(folder), shape=values.shape, dtype=values.dtype, **(options | changes))
    stored[...] = values
    return folder


def opened(folder: Path) -> Shards:
    shards = open_shards(folder, name="case_1/native, image")
    assert shards is not None
    return shards


def whole(ndim: int = 3) -> tuple[slice, ...]:
    return (slice(None),) * ndim


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], str, Kind, list[tuple[slice, ...]]]:
    spatial = draw(st.tuples(*[st.integers(1, 9)] * 3))
    shape = (*draw(st.sampled_from([(), (1,), (3,)])), *spatial)
    chunk = tuple(draw(st.integers(1, size)) for size in spatial)
    ends = st.tuples(*(st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted) for size in shape))
    regions = draw(st.lists(ends, min_size=1, max_size=5))
    slices = [tuple(slice(*pair) for pair in region) for region in regions]
    kind: Kind = draw(st.sampled_from(["compressed", "plain"]))
    return shape, chunk, draw(st.sampled_from(DTYPES)), kind, [*slices, whole(len(shape))]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_any_region_of_any_array_is_what_zarr_python_reads(tmp_path: Path, case: Any) -> None:
    shape, chunk, dtype, kind, regions = case
    values = array(shape, dtype=dtype)
    folder = write(tmp_path / "array", values, chunk=chunk, kind=kind)
    shards, peer = opened(folder), zarr.open_array(str(folder), mode="r")
    assert shards.shape == shape
    for region in regions:
        found, expected = shards.read(region), np.asarray(peer[region])
        assert found.dtype == shards.dtype == expected.dtype
        assert np.array_equal(found, expected)
        assert np.array_equal(found, values[region])


@pytest.mark.parametrize("kind", ["compressed", "plain"])
def test_tensorstore_reads_the_same(tmp_path: Path, kind: Kind) -> None:
    try:
        tensorstore = importlib.import_module("tensorstore")
    except ImportError:
        pytest.skip("tensorstore is not installed")
    values = array((2, 9, 20, 30), dtype="int16")
    folder = write(tmp_path / "array", values, chunk=(4, 8, 16), kind=kind)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    peer = tensorstore.open(spec, open=True, read=True).result()
    region = (slice(0, 2), slice(1, 8), slice(3, 20), slice(5, 30))
    assert np.array_equal(opened(folder).read(region), peer[region].read().result())


def test_a_region_is_the_callers_own(tmp_path: Path) -> None:
    for kind in ("compressed", "plain"):
        folder = write(tmp_path / kind, array((4, 6, 8), dtype="uint8"), chunk=(2, 3, 4), kind=kind)
        shards = opened(folder)
        before = folder.joinpath("c/0/0/0").read_bytes()
        first = shards.read(whole())
        first += 1
        assert np.array_equal(shards.read(whole()) + 1, first)
        assert folder.joinpath("c/0/0/0").read_bytes() == before


def test_negative_and_missing_bounds_mean_what_they_mean_in_numpy(tmp_path: Path) -> None:
    values = array((4, 6, 8), dtype="int16")
    shards = opened(write(tmp_path / "array", values, chunk=(2, 3, 4)))
    for region in [
        (slice(-2, None), slice(None, -1), slice(0, 100)),
        (slice(3, 1), slice(None), slice(None)),
    ]:
        assert np.array_equal(shards.read(region), values[region])
    with pytest.raises(ValueError, match="has steps"):
        shards.read((slice(None, None, 2), slice(None), slice(None)))


@pytest.mark.parametrize("kind", ["compressed", "plain"])
def test_every_flipped_bit_of_a_shard_is_noticed(tmp_path: Path, kind: Kind) -> None:
    folder = write(tmp_path / "array", array((5, 20, 30), dtype="int16"), chunk=(2, 8, 16), kind=kind)
    victim = folder / "c/0/0/0"
    original = victim.read_bytes()
    generator = np.random.default_rng(0)
    last = range(len(original) - 20, len(original))
    for position in (*generator.integers(0, len(original), 200), *last):
        data = bytearray(original)
        data[position] ^= 1 << int(generator.integers(8))
        victim.write_bytes(data)
        with pytest.raises(StoreError, match=r"^case_1/native, image, shard c/0/0/0 has .*not match its checksum"):
            opened(folder).read(whole())


def test_the_chunk_that_is_damaged_is_named_and_others_are_read(tmp_path: Path) -> None:
    values = array((4, 6, 8), dtype="int16")
    folder = write(tmp_path / "array", values, chunk=(2, 3, 4))
    victim = folder / "c/0/0/0"
    data = bytearray(victim.read_bytes())
    start, size = np.frombuffer(data[-8 * INDEX_ENTRY - CHECKSUM : -CHECKSUM], "<u8").reshape(2, 2, 2, 2)[1, 0, 1]
    data[start + size // 2] ^= 1
    victim.write_bytes(data)
    shards = opened(folder)
    with pytest.raises(StoreError, match=r"shard c/0/0/0 has a chunk \(1, 0, 1\) that does not match its checksum"):
        shards.read(whole())
    assert np.array_equal(shards.read((slice(0, 2), slice(None), slice(None))), values[:2])
    with pytest.raises(StoreError, match=r"chunk \(1, 0, 1\)"):
        shards.read((slice(3, 4), slice(0, 1), slice(7, 8)))


@pytest.mark.parametrize("length", [0, 1, 3, 100, -1])
def test_a_cut_shard_is_named(tmp_path: Path, length: int) -> None:
    folder = write(tmp_path / "array", array((4, 6, 8), dtype="int16"), chunk=(2, 3, 4))
    victim = folder / "c/0/0/0"
    victim.write_bytes(victim.read_bytes()[:length])
    with pytest.raises(StoreError, match=r"^case_1/native, image, shard c/0/0/0 (cannot be read|has no index)"):
        opened(folder).read(whole())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "array", array((2, 4, 6, 8), dtype="int16"), chunk=(2, 3, 4))
    (folder / "c/1/0/0/0").unlink()
    with pytest.raises(StoreError, match=r"image, shard c/1/0/0/0 cannot be read \(No such file or directory\)"):
        opened(folder).read(whole(4))


def rewrite_index(shard: Path, entry: int, *, start: int, size: int, chunks: int) -> None:
    """Let an index entry say something else, under a checksum that is right."""
    data = shard.read_bytes()
    index = np.frombuffer(data[-chunks * INDEX_ENTRY - CHECKSUM : -CHECKSUM], "<u8").reshape(chunks, 2).copy()
    index[entry] = start, size
    body = index.tobytes()
    checksum = google_crc32c.value(body).to_bytes(CHECKSUM, "little")
    shard.write_bytes(data[: -len(body) - CHECKSUM] + body + checksum)


@pytest.mark.parametrize(
    ("start", "size"), [(2**64 - 1, 2**64 - 1), (2**40, 10), (0, 2**40), (0, 0), (0, 3), (2**64 - 1, 1), (0, 2**64 - 1)]
)
def test_a_chunk_that_is_not_there_is_no_background(tmp_path: Path, start: int, size: int) -> None:
    folder = write(tmp_path / "array", array((4, 6, 8), dtype="int16"), chunk=(2, 3, 4))
    rewrite_index(folder / "c/0/0/0", 3, start=start, size=size, chunks=8)
    with pytest.raises(StoreError, match=r"image, shard c/0/0/0 lacks chunk \(0, 1, 1\); "):
        opened(folder).read(whole())


def test_an_unwritten_chunk_is_no_background(tmp_path: Path) -> None:
    values = array((4, 6, 8), dtype="int16")
    values[:2, :3, :4] = 0
    folder = write(tmp_path / "array", values, chunk=(2, 3, 4), config={"write_empty_chunks": False})
    with pytest.raises(StoreError, match=r"lacks chunk \(0, 0, 0\)"):
        opened(folder).read(whole())


def test_an_intact_chunk_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "array", array((2, 3, 4), dtype="int16"), chunk=(2, 3, 4))
    other = write(tmp_path / "other", array((2, 3, 3), dtype="int16"), chunk=(2, 3, 3))
    (folder / "c/0/0/0").write_bytes((other / "c/0/0/0").read_bytes())
    with pytest.raises(StoreError, match=r"chunk \(0, 0, 0\) that does not match its checksum"):
        opened(folder).read(whole())
    slices = write(tmp_path / "slices", array((2, 3, 4), dtype="int16"), chunk=(1, 3, 4), kind="plain")
    data = (slices / "c/0/0/0").read_bytes()
    (first_start, size), (second_start, _) = np.frombuffer(
        data[-2 * INDEX_ENTRY - CHECKSUM : -CHECKSUM], "<u8"
    ).reshape(2, 2)
    rewrite_index(slices / "c/0/0/0", 0, start=int(second_start), size=int(size), chunks=2)
    assert first_start != second_start
    with pytest.raises(StoreError, match=r"chunk \(0, 0, 0\) that does not match its checksum"):
        opened(slices).read(whole())


def test_a_chunk_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "array", array((2, 3, 4), dtype="int16"), chunk=(2, 3, 4))
    victim = folder / "c/0/0/0"
    data = bytearray(victim.read_bytes())
    size = len(data) - INDEX_ENTRY - 2 * CHECKSUM
    data[8:size] = bytes(size - 8)
    data[size : size + CHECKSUM] = google_crc32c.value(bytes(data[:size])).to_bytes(CHECKSUM, "little")
    victim.write_bytes(data)
    with pytest.raises(StoreError, match=r"shard c/0/0/0 has a chunk \(0, 0, 0\) that cannot be decoded"):
        opened(folder).read(whole())


FOREIGN: dict[str, dict[str, Any]] = {
    "unsharded": {"shards": None},
    "another compressor": {"compressors": [GzipCodec(), Crc32cCodec()]},
    "no checksum": {"compressors": BloscCodec()},
    "several shards": {"chunks": (2, 3, 4), "shards": (2, 6, 8)},
    "index first": {"shards": {"shape": (4, 6, 8), "index_location": "start"}},
    "big endian": {"serializer": BytesCodec(endian="big")},
    "other keys": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
}


@pytest.mark.parametrize("changes", FOREIGN.values(), ids=FOREIGN)
def test_foreign_layouts_are_left_to_zarr_python(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = write(tmp_path / "array", array((4, 6, 8), dtype="int16"), chunk=(2, 3, 4), **changes)
    assert open_shards(folder, name="x") is None


def test_types_that_we_do_not_write_are_left_to_zarr_python(tmp_path: Path) -> None:
    for dtype in ("float64", "int64", "complex64", "bool"):
        folder = write(tmp_path / dtype, np.zeros((4, 6, 8), dtype), chunk=(2, 3, 4))
        assert open_shards(folder, name="x") is None
    folder = write(tmp_path / "flat", np.zeros((6, 8), "int16"), chunk=(3, 4), chunks=(3, 4), shards=(6, 8))
    assert open_shards(folder, name="x") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"codecs": 3}', '{"codecs": [3]}', "\xff"])
def test_an_unreadable_description_is_named(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "array", array((4, 6, 8), dtype="int16"), chunk=(2, 3, 4))
    (folder / "zarr.json").write_text(text, encoding="latin-1")
    with pytest.raises(StoreError, match=r"^case_1/native, image: no readable zarr\.json"):
        open_shards(folder, name="case_1/native, image")


def test_a_nonsensical_description_is_never_read_as_voxels(tmp_path: Path) -> None:
    values = array((4, 6, 8), dtype="int16")
    folder = write(tmp_path / "array", values, chunk=(2, 3, 4))
    good = json.loads((folder / "zarr.json").read_text())
    for shape in ([0, 6, 8], [4, 6, -8], ["4", 6, 8], [4.5, 6, 8], None, [10**9, 10**9, 10**9], [4, 6]):
        (folder / "zarr.json").write_text(json.dumps(good | {"shape": shape}))
        try:
            assert open_shards(folder, name="x") is None
        except StoreError as error:
            assert "no readable zarr.json" in str(error)


def test_open_arrays_hold_no_descriptors_and_unmap_when_gone(tmp_path: Path) -> None:
    descriptors, maps = Path("/proc/self/fd"), Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system has no /proc")
    folder = write(tmp_path / "array", array((2, 4, 6, 8), dtype="int16"), chunk=(2, 3, 4))
    before = len(list(descriptors.iterdir()))
    every = [opened(folder) for _ in range(100)]
    assert all(shards.read(whole(4)).any() for shards in every)
    assert len(list(descriptors.iterdir())) == before
    assert maps.read_text().count(str(folder)) > 0
    every.clear()
    assert maps.read_text().count(str(folder)) == 0


def test_an_open_array_stays_as_it_was_when_its_files_are_replaced(tmp_path: Path) -> None:
    values = array((4, 6, 8), dtype="int16")
    shards = opened(write(tmp_path / "array", values, chunk=(2, 3, 4)))
    shards.read((slice(0, 1),) * 3)
    (tmp_path / "array").rename(tmp_path / "old")
    write(tmp_path / "array", values + 1, chunk=(2, 3, 4))
    for file in (tmp_path / "old" / "c/0/0").iterdir():
        file.unlink()
    assert np.array_equal(shards.read(whole()), values)
