"""Our own reader of the Zarr v3 arrays of a store: synchronous, by memory map, each chunk's checksum verified at its first touch.

It knows two layouts, both with one shard a channel and crc32c behind the index and behind every chunk: Blosc-compressed
chunks (the store) and uncompressed slices (the cached copy). zarr-python reads whatever it does not know. Every chunk is
written, also those of nothing but fill value, so that a missing one is damage and not a piece of background.
"""

import ctypes
import errno
import json
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc  # type: ignore[attr-defined]
from numpy.typing import NDArray

from segsweep.data.manifest import REPAIR
from segsweep.errors import StoreError

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
_CHECKSUM, _INDEX_ENTRY = 4, 16
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C = {"name": "crc32c"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an array of shape ([c,] z, y, x) lies on disk: one shard a channel, cut into chunks (z, y, x)."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    compressed: bool

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks of a shard along z, y and x."""
        return tuple(-(-size // step) for size, step in zip(self.shape[-3:], self.chunk, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Size of an uncompressed chunk."""
        return math.prod(self.chunk) * self.dtype.itemsize


def known_layout(metadata: Mapping[str, Any]) -> Layout | None:
    """The layout that a zarr.json describes, None unless it is one of ours. Raises KeyError or TypeError on nonsense."""
    if [codec["name"] for codec in metadata["codecs"]] != ["sharding_indexed"] or metadata["data_type"] not in DTYPES:
        return None
    sharding = metadata["codecs"][0]["configuration"]
    shape, chunk = tuple(metadata["shape"]), tuple(sharding["chunk_shape"][-3:])
    if len(shape) not in (3, 4) or min(*shape, *chunk) < 1:
        return None
    dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
    blosc_codec = [codec for codec in sharding["codecs"] if codec["name"] == "blosc"]
    layout = Layout(shape=shape, dtype=dtype, chunk=chunk, compressed=bool(blosc_codec))
    lead, shard = [1] * (len(shape) - 3), [n * step for n, step in zip(layout.grid, chunk, strict=True)]
    codecs = [_LITTLE if dtype.itemsize > 1 else {"name": "bytes"}, *blosc_codec, _CRC32C]
    inner = {
        "chunk_shape": [*lead, *chunk],
        "codecs": codecs,
        "index_codecs": [_LITTLE, _CRC32C],
        "index_location": "end",
    }
    expected = {
        "zarr_format": 3,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*lead, *shard]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        "storage_transformers": [],
    }
    ours = all(metadata[key] == value for key, value in expected.items())
    return layout if ours and (layout.compressed or chunk == (1, *shape[-2:])) else None


def open_shards(folder: Path, *, name: str, lasting: bool = True) -> "Shards | None":
    """The array in a folder, None when its layout is not one of ours. `name` (case, grid, array) begins every error.

    Files that are not `lasting` may be deleted between two reads: they stay mapped, and hold their disk, until `let_go`.
    Raises StoreError when there is no readable zarr.json.
    """
    try:
        layout = known_layout(json.loads((folder / "zarr.json").read_bytes()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{name}: no readable zarr.json ({type(error).__name__}); {REPAIR}") from None
    return None if layout is None else Shards(folder, layout=layout, name=name, lasting=lasting)


def let_go() -> None:
    """Unmap all files of this process that do not last; whoever reads one maps it anew."""
    with _passing_lock:
        for shard in _passing:
            shard.let_go()


class Shards:
    """An array of one of our layouts. Its files are mapped at the first read and hold no file descriptor afterwards."""

    def __init__(self, folder: Path, *, layout: Layout, name: str, lasting: bool) -> None:
        self._folder, self._layout, self._name, self._lasting = folder, layout, name, lasting

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels ([c,] z, y, x)."""
        return self._layout.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of a voxel."""
        return self._layout.dtype

    def read(self, region: Sequence[slice]) -> NDArray:
        """A new array of the voxels of a region ([c,] z, y, x) without steps. Raises StoreError that names a damaged chunk."""
        spans = [range(*part.indices(size)) for part, size in zip(region, self.shape, strict=True)]
        if any(span.step != 1 for span in spans):
            raise ValueError(f"region {region} has steps; expected neighbouring voxels")
        result = np.empty([len(span) for span in spans], self.dtype)
        if result.size:
            lead = [tuple(map(str, channel)) for channel in product(*spans[:-3])]
            for channel, out in zip(lead, [result] if len(spans) == 3 else result, strict=True):
                self._shards[channel].read_into(out, spans=spans[-3:])
        return result

    @cached_property
    def _shards(self) -> "dict[tuple[str, ...], _Shard]":
        channels = [tuple(map(str, channel)) for channel in product(*map(range, self.shape[:-3]))]
        keys = {channel: "/".join(("c", *channel, "0", "0", "0")) for channel in channels}
        return {
            channel: _Shard(
                self._folder / key, layout=self._layout, name=f"{self._name}, shard {key}", lasting=self._lasting
            )
            for channel, key in keys.items()
        }


class _Shard:
    """One channel: its file, its index, and which of its chunks have been verified."""

    def __init__(self, path: Path, *, layout: Layout, name: str, lasting: bool) -> None:
        self._path, self._layout, self._name = path, layout, name
        data = self._mapped()
        count = math.prod(layout.grid)
        self._end = len(data) - count * _INDEX_ENTRY - _CHECKSUM
        if self._end < 0 or not _intact(data[self._end :]):
            raise self._damage("has no index, or one that does not match its checksum")
        # Python integers: a chunk that was never written has 2**64 - 1 for both, which lies behind every end.
        entries = data[self._end : -_CHECKSUM].view("<u8").reshape(count, 2).tolist()
        self._chunks = [(start, start + size - _CHECKSUM) for start, size in entries]
        self._unverified = bytearray(b"\1") * count
        self._kept: NDArray[np.uint8] | None = data
        if not lasting:
            with _passing_lock:
                _passing.add(self)

    def let_go(self) -> None:
        """Unmap the file, once those who read it now have done so."""
        self._kept = None

    def read_into(self, out: NDArray, *, spans: Sequence[range]) -> None:
        """Fill `out` with the voxels of a region (z, y, x), which is not empty."""
        data = self._kept
        if data is None:
            data = self._kept = self._mapped()
        if self._layout.compressed:
            self._decode_into(out, spans=spans, data=data)
        else:
            self._copy_into(out, spans=spans, data=data)

    def _mapped(self) -> NDArray[np.uint8]:
        try:
            return _mapped(self._path)
        except OSError as error:
            raise self._damage(f"cannot be read ({error.strerror})") from None

    def _decode_into(self, out: NDArray, *, spans: Sequence[range], data: NDArray[np.uint8]) -> None:
        decoded = np.empty(self._layout.chunk, self._layout.dtype)
        _, rows, columns = self._layout.grid
        axes = [list(_overlaps(span, step=step)) for span, step in zip(spans, self._layout.chunk, strict=True)]
        for (z, out_z, in_z), (y, out_y, in_y), (x, out_x, in_x) in product(*axes):
            position = (z * rows + y) * columns + x
            if self._unverified[position]:
                self._verify(position, data=data)
            start, end = self._chunks[position]
            try:
                blosc.decompress(data[start:end], decoded)
            except (RuntimeError, ValueError):
                raise self._damage(f"has a chunk {self._where(position)} that cannot be decoded") from None
            out[out_z, out_y, out_x] = decoded[in_z, in_y, in_x]

    def _copy_into(self, out: NDArray, *, spans: Sequence[range], data: NDArray[np.uint8]) -> None:
        slices = spans[0]
        if any(self._unverified[slices.start : slices.stop]):
            for position in slices:
                self._verify(position, data=data)
        # The uncompressed slices where they lie in the file, each with its checksum behind it.
        item = self._layout.dtype.itemsize
        strides = (self._layout.chunk_bytes + _CHECKSUM, self._layout.chunk[2] * item, item)
        voxels = np.ndarray(self._layout.shape[-3:], self._layout.dtype, buffer=data, strides=strides)
        out[...] = voxels[tuple(slice(span.start, span.stop) for span in spans)]

    def _verify(self, position: int, *, data: NDArray[np.uint8]) -> None:
        start, end = self._chunks[position]
        where = self._where(position)
        if not start < end <= self._end - _CHECKSUM:
            raise self._damage(f"lacks chunk {where}")
        if not _intact(data[start : end + _CHECKSUM]) or not self._fits(position, data=data):
            raise self._damage(f"has a chunk {where} that does not match its checksum")
        self._unverified[position] = 0

    def _fits(self, position: int, *, data: NDArray[np.uint8]) -> bool:
        """Whether an intact chunk holds as many bytes as its voxels need, where they are looked for."""
        start, end = self._chunks[position]
        size = self._layout.chunk_bytes
        if self._layout.compressed:
            # Bytes 4 to 8 of a Blosc frame are the size of what was compressed.
            return end - start >= 16 and int(data[start + 4 : start + 8].view("<u4")[0]) == size
        return (start, end - start) == (position * (size + _CHECKSUM), size)

    def _where(self, position: int) -> tuple[int, ...]:
        return tuple(map(int, np.unravel_index(position, self._layout.grid)))

    def _damage(self, what: str) -> StoreError:
        return StoreError(f"{self._name} {what}; {REPAIR}")


def _overlaps(span: range, *, step: int) -> Iterator[tuple[int, slice, slice]]:
    """Chunks that a span meets along one axis: number, where the part lies in the span, where in the chunk."""
    for number in range(span.start // step, (span.stop - 1) // step + 1):
        origin = number * step
        low, high = max(span.start, origin), min(span.stop, origin + step)
        yield number, slice(low - span.start, high - span.start), slice(low - origin, high - origin)


def _intact(data: NDArray[np.uint8]) -> bool:
    """Whether the last four bytes are the crc32c of those before."""
    return google_crc32c.value(data[:-_CHECKSUM]) == int.from_bytes(data[-_CHECKSUM:].tobytes(), "little")


def _mapped(path: Path) -> NDArray[np.uint8]:
    """A file's bytes, read-only, until the last view of them is gone; a file that is replaced meanwhile stays as it was.

    Not `mmap.mmap`: it keeps a descriptor of every file, and the arrays of 2,000 cases are more than a process may have.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise OSError(errno.ENODATA, "it is empty")
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == ctypes.c_void_p(-1).value:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)
    block = (ctypes.c_ubyte * size).from_address(address)
    # Not at exit: loader threads may still read then.
    weakref.finalize(block, _libc.munmap, address, size).atexit = False
    view = np.frombuffer(memoryview(block), np.uint8)
    view.flags.writeable = False
    return view


_passing, _passing_lock = weakref.WeakSet[_Shard](), threading.Lock()
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
