"""Checks a NIfTI file before any library is trusted with it: broken files come back as wrong voxels or a wrong grid.

Nothing is allocated from what the header claims: the file is unpacked in small pieces, counted, and thrown away.
"""

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from segsweep.errors import InputError

MAX_VOXELS_AN_AXIS = 4096
SPACING_MM = (0.05, 20.0)
# A whole-body CT of 1024 x 1024 x 2000 voxels in 32 bits; more than that is not a scan.
MAX_BYTES = 8 * 2**30
# Header extensions of real files hold kilobytes.
MAX_OFFSET = 2**24
# Cosines and lengths in a header are 32-bit floats, often rounded to 4 digits by the program that wrote them.
ORTHONORMAL_WITHIN = 1e-3
# Where there is no qform to fall back on, ITK takes an sform only if its cosines times their transpose are the identity so well.
ALONE_WITHIN = 1e-4
SPACING_WITHIN = 1e-3
PLACED_WITHIN_MM = 0.5

_HEADER_BYTES = 348
_PIECE = 2**20
_DATATYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_UNITS = {0: "unknown", 1: "metre", 2: "millimetre", 3: "micrometre"}
_FIELDS = [
    ("sizeof_hdr", "i4"), ("unused", "S36"), ("dim", "i2", 8), ("intent", "S14"), ("datatype", "i2"), ("bitpix", "i2"),
    ("slice_start", "i2"), ("pixdim", "f4", 8), ("vox_offset", "f4"), ("scl_slope", "f4"), ("scl_inter", "f4"),
    ("slice_end", "S3"), ("xyzt_units", "u1"), ("text", "S128"), ("qform_code", "i2"), ("sform_code", "i2"),
    ("quatern", "f4", 3), ("qoffset", "f4", 3), ("srow", "f4", (3, 4)), ("intent_name", "S16"), ("magic", "S4"),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Header:
    fields: np.void
    voxels: np.dtype  # one stored voxel, with its byte order
    offset: int  # of the first voxel
    total: int  # bytes, header included


def check_nifti(path: Path, *, num_channels: int = 1) -> None:
    """Refuse a .nii or .nii.gz file that is damaged, is no single 3D scan, or does not place its voxels in millimetres.

    A file of several channels is a 4D one, with as many 3D scans one after the other. Reads the whole file once, in a few MB of
    memory. Raises InputError that names file and field.
    """
    name = path.name
    pieces = _pieces(path)
    start = b""
    for piece in pieces:
        start += piece
        if len(start) >= _HEADER_BYTES:
            break
    with np.errstate(all="ignore"):  # fields may be NaN of any kind; what matters is judged below
        header = _parse(start, name=name, num_channels=num_channels)
    _check_voxels(start, pieces, header=header, name=name)


def refuse(name: str, *, field: str, found: object, expected: str, do: str) -> InputError:
    """The error for a file whose field is not as it should be."""
    return InputError(f"{name}: {field} is {found}; expected {expected}; {do}")


def _pieces(path: Path) -> Iterator[bytes]:
    """The file's contents, unpacked when its name ends with .gz, at most 1 MiB at a time."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed != path.name.lower().endswith(".gz"):
                found = "gzip data" if packed else "not gzip data"
                raise refuse(
                    path.name,
                    field="the content",
                    found=found,
                    expected="what the suffix says",
                    do="rename the file or pack it again",
                )
            yield from unpacked(file, name=path.name) if packed else iter(lambda: file.read(_PIECE), b"")
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read ({error.strerror}); expected a readable NIfTI file; check path and rights"
        ) from None


def unpacked(
    file: BinaryIO, *, name: str, wbits: int = 31, members: Literal["one", "many"] = "many"
) -> Iterator[bytes]:
    """What the members of a gzip file hold (`wbits` 47: gzip or zlib), at most 1 MiB at a time.

    zlib verifies checksum and length at the end of each. Raises InputError for a damaged stream, and for more than one member where
    one is expected.
    """
    waiting = file.read(_PIECE)
    while waiting:
        unpack = zlib.decompressobj(wbits=wbits)
        while not unpack.eof:
            piece = _inflate(unpack, waiting, name=name)
            if piece:
                yield piece
            elif not waiting:
                raise refuse(
                    name,
                    field="the compressed stream",
                    found="cut off",
                    expected="a whole file",
                    do="copy the file again",
                )
            if not unpack.eof:
                waiting = unpack.unconsumed_tail or file.read(_PIECE)
        # Some archivers pad the last member with zeros.
        waiting = (unpack.unused_data or file.read(_PIECE)).lstrip(b"\0")
        if waiting and members == "one":
            raise refuse(
                name, field="the stream", found="followed by more", expected="one stream", do="export the file again"
            )


def _inflate(unpack: "zlib._Decompress", packed: bytes, *, name: str) -> bytes:
    try:
        return unpack.decompress(packed, _PIECE)
    except zlib.error as error:
        found = f"damaged ({str(error).rpartition(': ')[2]})"
        raise refuse(
            name, field="the compressed stream", found=found, expected="an intact file", do="copy the file again"
        ) from None


def _parse(start: bytes, *, name: str, num_channels: int) -> _Header:
    if len(start) < _HEADER_BYTES:
        raise refuse(
            name,
            field="the size",
            found=f"{len(start)} bytes",
            expected=f"a NIfTI header of {_HEADER_BYTES} bytes and voxels",
            do="copy the file again",
        )
    order = ">" if start[:2] == b"\0\0" else "<"
    fields = np.frombuffer(start, dtype=np.dtype(_FIELDS).newbyteorder(order), count=1)[0]
    if fields["sizeof_hdr"] != _HEADER_BYTES or fields["magic"] != b"n+1":
        raise refuse(
            name,
            field="sizeof_hdr, magic",
            found="540 (NIfTI-2)"
            if fields["sizeof_hdr"] == 540
            else f"{fields['sizeof_hdr']}, {bytes(fields['magic'])!r}",
            expected=f"{_HEADER_BYTES}, b'n+1' (one NIfTI-1 file)",
            do="convert the file to NIfTI-1",
        )
    shape = _checked_shape(fields, name=name, num_channels=num_channels)
    voxels = _checked_type(fields, name=name).newbyteorder(order)
    _check_scaling(fields, name=name)
    _check_grid(fields, shape=shape, name=name)
    offset = _checked_offset(fields, name=name)
    total = offset + int(np.prod(shape, dtype=object)) * num_channels * voxels.itemsize
    if total > MAX_BYTES:
        raise refuse(
            name, field="dim", found=f"{total} bytes", expected=f"at most {MAX_BYTES}", do="crop or resample the scan"
        )
    return _Header(fields=fields, voxels=voxels, offset=offset, total=total)


def _checked_shape(fields: np.void, *, name: str, num_channels: int) -> tuple[int, int, int]:
    dim = [int(value) for value in fields["dim"]]
    rank = dim[0]
    beyond = (*dim[4 : rank + 1], *(1,) * (7 - rank))
    if not 3 <= rank <= 7 or beyond != (num_channels, 1, 1, 1):
        found = f"{rank}D" + (f" of {' x '.join(map(str, dim[1 : rank + 1]))}" if 1 <= rank <= 7 else "")
        expected, do = "one 3D scan", "split the file into 3D scans"
        if num_channels > 1:
            expected = f"a fourth axis of {num_channels}, one for each channel of the dataset"
            do = "correct the file or the dataset's list of channels"
        raise refuse(name, field="dim", found=found, expected=expected, do=do)
    shape = (dim[1], dim[2], dim[3])
    if not all(1 <= size <= MAX_VOXELS_AN_AXIS for size in shape):
        expected = f"1 to {MAX_VOXELS_AN_AXIS} voxels an axis"
        raise refuse(name, field="dim", found=shape, expected=expected, do="export the scan again")
    return shape


def _checked_type(fields: np.void, *, name: str) -> np.dtype:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in _DATATYPES:
        expected = f"one number a voxel ({', '.join(map(str, _DATATYPES))})"
        raise refuse(name, field="datatype", found=code, expected=expected, do="convert the file to int16")
    kind = np.dtype(_DATATYPES[code])
    if bits != 8 * kind.itemsize:
        expected = f"{8 * kind.itemsize} for datatype {code}"
        raise refuse(name, field="bitpix", found=bits, expected=expected, do="export the scan again")
    return kind


def _check_scaling(fields: np.void, *, name: str) -> None:
    # Some programs write NaN where nothing is scaled, and every library takes it so.
    if np.isnan(fields["scl_slope"]) and (np.isnan(fields["scl_inter"]) or fields["scl_inter"] == 0):
        return
    for field in ("scl_slope", "scl_inter"):
        if not abs(float(fields[field])) <= 1e6:  # also true for NaN
            found = float(fields[field])
            raise refuse(name, field=field, found=found, expected="a finite number", do="export the scan again")
    if fields["scl_slope"] == 0 and fields["scl_inter"] != 0:  # NIfTI says that it counts for nothing; ITK adds it
        found, expected = f"{float(fields['scl_inter'])} beside a scl_slope of 0", "0, or a slope"
        raise refuse(name, field="scl_inter", found=found, expected=expected, do="export the scan again")


def _checked_offset(fields: np.void, *, name: str) -> int:
    offset = float(fields["vox_offset"])
    if not (_HEADER_BYTES <= offset <= MAX_OFFSET and offset == int(offset)):
        expected = f"a whole number from {_HEADER_BYTES} to {MAX_OFFSET}"
        raise refuse(name, field="vox_offset", found=offset, expected=expected, do="export the scan again")
    return int(offset)


def _check_grid(fields: np.void, *, shape: tuple[int, int, int], name: str) -> None:
    low, high = SPACING_MM
    spacing = fields["pixdim"][1:4].astype(float)
    if not np.all((spacing >= low) & (spacing <= high)):
        found = tuple(round(float(value), 6) for value in spacing)
        raise refuse(name, field="pixdim", found=found, expected=f"{low} to {high} mm", do="correct the spacing")
    units = int(fields["xyzt_units"]) & 7
    if units not in (0, 2):
        found = _UNITS.get(units, str(units))
        raise refuse(name, field="xyzt_units", found=found, expected="millimetre", do="correct unit and spacing")
    grids = []
    if fields["qform_code"] > 0:
        grids.append(_qform(fields, spacing=spacing, name=name))
    if fields["sform_code"] > 0:
        grids.append(_sform(fields, spacing=spacing, name=name))
    if not grids:
        raise refuse(
            name,
            field="qform_code, sform_code",
            found="(0, 0), so left and right are unknown",
            expected="one of them above 0",
            do="export the scan with its orientation",
        )
    corners = np.stack(np.meshgrid(*((0.0, size - 1.0) for size in shape), indexing="ij")).reshape(3, 8)
    apart = np.ptp([grid[:, :3] @ corners + grid[:, 3:] for grid in grids], axis=0).max()
    if apart > PLACED_WITHIN_MM:
        raise refuse(
            name,
            field="the qform",
            found=f"{apart:.1f} mm away from the sform",
            expected=f"the same grid within {PLACED_WITHIN_MM} mm",
            do="set both to the right one",
        )


def _qform(fields: np.void, *, spacing: NDArray, name: str) -> NDArray:
    b, c, d = (float(value) for value in fields["quatern"])
    rest = 1.0 - (b * b + c * c + d * d)
    if not (rest >= -ORTHONORMAL_WITHIN and np.isfinite(fields["qoffset"]).all()):
        found = f"quaternion ({b:g}, {c:g}, {d:g}), offset {fields['qoffset'].tolist()}"
        raise refuse(name, field="the qform", found=found, expected="a finite rotation", do="correct the orientation")
    handed = float(fields["pixdim"][0])
    if handed not in (-1.0, 0.0, 1.0):
        raise refuse(name, field="pixdim[0]", found=handed, expected="-1 or 1", do="export the scan again")
    a = max(rest, 0.0) ** 0.5
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    lengths = spacing * (1.0, 1.0, -1.0 if handed < 0 else 1.0)
    return np.column_stack([rotation * lengths, fields["qoffset"].astype(float)])


def _sform(fields: np.void, *, spacing: NDArray, name: str) -> NDArray:
    grid = fields["srow"].astype(float)
    lengths = np.linalg.norm(grid[:, :3], axis=0)
    if not np.isfinite(grid).all() or np.any(lengths == 0):
        found = "not finite or singular"
        raise refuse(name, field="the sform", found=found, expected="three axes", do="correct the orientation")
    cosines = grid[:, :3] / lengths
    skew = float(np.abs(cosines.T @ cosines - np.eye(3)).max())
    alone = fields["qform_code"] <= 0 and not np.allclose(cosines @ cosines.T, np.eye(3), rtol=0, atol=ALONE_WITHIN)
    if skew > ORTHONORMAL_WITHIN or alone:
        found = f"sheared (axes off a right angle by a cosine of {skew:.3g})"
        raise refuse(name, field="the sform", found=found, expected="right angles", do="resample the scan")
    if not np.allclose(lengths, spacing, rtol=SPACING_WITHIN):
        found = f"of spacing {tuple(lengths.round(4).tolist())} mm"
        expected = f"that of pixdim, {tuple(spacing.round(4).tolist())}"
        raise refuse(name, field="the sform", found=found, expected=expected, do="correct the wrong one")
    return grid


def _check_voxels(start: bytes, pieces: Iterator[bytes], *, header: _Header, name: str) -> None:
    """Counts the bytes to the end and looks for NaN and infinity, which libraries silently replace."""
    count, rest = 0, b""
    for piece in itertools.chain([start], pieces):
        rest += piece[max(0, header.offset - count) :]
        count += len(piece)
        if count > header.total:
            break
        whole = len(rest) // header.voxels.itemsize * header.voxels.itemsize
        if header.voxels.kind == "f" and not np.isfinite(np.frombuffer(rest[:whole], dtype=header.voxels)).all():
            do = "export the scan again or replace those voxels"
            raise refuse(name, field="a voxel", found="NaN or infinite", expected="finite numbers", do=do)
        rest = rest[whole:]
    if count != header.total:
        found = f"more than {header.total} bytes" if count > header.total else f"{count} bytes"
        expected = f"the {header.total} that dim, bitpix and vox_offset declare"
        raise refuse(name, field="the unpacked size", found=found, expected=expected, do="copy the file again")
