"""Every malformed file is refused in one sentence that names the file and the field; sound files pass."""

import gzip
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segsweep.data.intake import check_nifti
from segsweep.data.readers import read_scan
from segsweep.errors import InputError

SHAPE = (6, 5, 4)
NAN = float("nan")


def nifti(**fields: object) -> bytes:
    """A sound NIfTI-1 file of 16-bit voxels with 2 x 2 x 3 mm, but for the fields given."""
    given = {
        "size": 348, "dim": (3, *SHAPE, 1, 1, 1, 1), "datatype": 4, "bitpix": 16, "pixdim": (1, 2, 2, 3, 0, 0, 0, 0),
        "offset": 352, "slope": 1, "inter": 0, "units": 2, "codes": (1, 1), "quatern": (0, 0, 0), "qoffset": (-5, 4, 3),
        "srow": (2, 0, 0, -5, 0, 2, 0, 4, 0, 0, 3, 3), "magic": b"n+1\0", "order": "<", "voxels": None,
    }  # fmt: skip
    assert set(fields) <= set(given)
    given |= fields
    order = str(given["order"])

    def pack(kind: str, *values: object) -> bytes:
        return struct.pack(order + kind, *values)

    voxels = given["voxels"]
    if voxels is None:
        voxels = np.arange(np.prod(SHAPE)).astype(f"{order}i2").tobytes()
    assert isinstance(voxels, bytes)
    dim, pixdim, codes, quatern, qoffset, srow = (
        tuple(given[name])  # type: ignore[call-overload]
        for name in ("dim", "pixdim", "codes", "quatern", "qoffset", "srow")
    )
    head = pack("i", given["size"]) + bytes(36) + pack("8h", *dim) + bytes(14)
    head += pack("3h", given["datatype"], given["bitpix"], 0) + pack("8f", *pixdim)
    head += pack("3f", given["offset"], given["slope"], given["inter"]) + bytes(3) + pack("B", given["units"])
    head += bytes(128) + pack("2h", *codes) + pack("3f", *quatern) + pack("3f", *qoffset) + pack("12f", *srow)
    head += bytes(16) + bytes(given["magic"])  # type: ignore[call-overload]
    assert len(head) == 348
    return head + bytes(4) + voxels


def floats(value: float) -> bytes:
    voxels = np.ones(SHAPE, dtype="<f4")
    voxels[2, 3, 1] = value
    return nifti(datatype=16, bitpix=32, voxels=voxels.tobytes())


def flip_checksum(packed: bytes) -> bytes:
    return packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]


MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "size"),
    "shorter than a header": (nifti()[:200], "size"),
    "wrong sizeof_hdr": (nifti(size=540), "sizeof_hdr"),
    "NIfTI-2": (nifti(size=540, magic=b"\0\0\0\0"), "magic is 540 (NIfTI-2)"),
    "wrong magic": (nifti(magic=b"n+2\0"), "magic"),
    "header and image apart": (nifti(magic=b"ni1\0"), "magic"),
    "2D": (nifti(dim=(2, 6, 5, 1, 1, 1, 1, 1)), "dim"),
    "no dimension": (nifti(dim=(0, *SHAPE, 1, 1, 1, 1)), "dim"),
    "nine dimensions": (nifti(dim=(9, *SHAPE, 1, 1, 1, 1)), "dim"),
    "4D series": (nifti(dim=(4, 6, 5, 2, 2, 1, 1, 1)), "dim"),
    "5D vectors": (nifti(dim=(5, 6, 5, 2, 1, 2, 1, 1)), "dim"),
    "negative axis": (nifti(dim=(3, -6, 5, 4, 1, 1, 1, 1)), "dim"),
    "empty axis": (nifti(dim=(3, 0, 5, 4, 1, 1, 1, 1)), "dim"),
    "huge axis": (nifti(dim=(3, 30000, 5, 4, 1, 1, 1, 1)), "dim"),
    "huge volume": (nifti(dim=(3, 4096, 4096, 4096, 1, 1, 1, 1)), "dim"),
    "more rows than data": (nifti(dim=(3, 6, 50, 4, 1, 1, 1, 1)), "unpacked size"),
    "voxels left over": (nifti() + b"\1\2", "unpacked size"),
    "a voxel short": (nifti()[:-2], "unpacked size"),
    "colours": (nifti(datatype=128, bitpix=24), "datatype"),
    "complex": (nifti(datatype=32, bitpix=64), "datatype"),
    "bitpix of another type": (nifti(bitpix=8), "bitpix"),
    "zero spacing": (nifti(pixdim=(1, 2, 2, 0, 0, 0, 0, 0)), "pixdim"),
    "negative spacing": (nifti(pixdim=(1, -2, 2, 3, 0, 0, 0, 0)), "pixdim"),
    "NaN spacing": (nifti(pixdim=(1, 2, NAN, 3, 0, 0, 0, 0)), "pixdim"),
    "infinite spacing": (nifti(pixdim=(1, 2, float("inf"), 3, 0, 0, 0, 0)), "pixdim"),
    "spacing in metres": (nifti(pixdim=(1, 0.002, 0.002, 0.003, 0, 0, 0, 0)), "pixdim"),
    "unit metre": (nifti(units=1), "xyzt_units"),
    "unit micrometre": (nifti(units=3), "xyzt_units"),
    "no orientation": (nifti(codes=(0, 0)), "qform_code"),
    "sheared sform": (nifti(codes=(0, 1), srow=(2, 0.4, 0, -5, 0, 1.96, 0, 4, 0, 0, 3, 3)), "sform"),
    "singular sform": (nifti(codes=(0, 1), srow=(0,) * 12), "sform"),
    "NaN in the sform": (nifti(codes=(0, 1), srow=(2, 0, 0, NAN, 0, 2, 0, 4, 0, 0, 3, 3)), "sform"),
    "sform of another spacing": (nifti(codes=(0, 1), srow=(2, 0, 0, -5, 0, 2, 0, 4, 0, 0, 5, 3)), "sform"),
    "quaternion too long": (nifti(codes=(1, 0), quatern=(1, 1, 0)), "qform"),
    "NaN in the qform": (nifti(codes=(1, 0), qoffset=(NAN, 0, 0)), "qform"),
    "handedness": (nifti(pixdim=(0.5, 2, 2, 3, 0, 0, 0, 0)), "pixdim[0]"),
    "qform and sform flipped": (nifti(quatern=(0, 0, 1)), "qform"),
    "offset inside the header": (nifti(offset=100), "vox_offset"),
    "offset far behind the file": (nifti(offset=1e9), "vox_offset"),
    "NaN offset": (nifti(offset=NAN), "vox_offset"),
    "NaN slope": (nifti(slope=NAN, inter=7), "scl_slope"),
    "NaN intercept": (nifti(slope=1, inter=NAN), "scl_inter"),
    "intercept without a slope": (nifti(slope=0, inter=7), "scl_inter is 7.0"),
    "infinite intercept": (nifti(inter=float("inf")), "scl_inter"),
    "NaN voxel": (floats(NAN), "voxel"),
    "infinite voxel": (floats(float("-inf")), "voxel"),
}

BROKEN_GZIP: dict[str, Callable[[bytes], bytes]] = {
    "not gzip": lambda packed: gzip.decompress(packed),
    "cut in half": lambda packed: packed[: len(packed) // 2],
    "cut trailer": lambda packed: packed[:-4],
    "checksum": flip_checksum,
    "length": lambda packed: packed[:-1] + b"\7",
    "rubbish behind": lambda packed: packed + b"rubbish",
    "rubbish inside": lambda packed: packed[:40] + b"\xff" * 40 + packed[80:],
}


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_nifti(path)
    message = str(caught.value)
    assert path.name in message
    assert "expected" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_malformed_file_is_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    content, field = MALFORMED[kind]
    path = tmp_path / f"patient{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    assert field in refused(path)


@pytest.mark.parametrize("skew", [9e-5, 1.2e-4, 9e-4])
def test_an_sform_alone_must_be_one_that_itk_takes(skew: float, tmp_path: Path) -> None:
    srow = (2, 2 * skew, 0, -5, 0, 2, 0, 4, 0, 0, 3, 3)
    path = tmp_path / "patient.nii"
    path.write_bytes(nifti(srow=srow))
    assert read_scan(path).geometry.shape == SHAPE[::-1]
    path.write_bytes(nifti(srow=srow, codes=(0, 1)))
    if skew < 1e-4:
        assert read_scan(path).geometry.shape == SHAPE[::-1]
    else:
        assert "the sform is sheared" in refused(path)


@pytest.mark.parametrize("kind", BROKEN_GZIP)
def test_broken_gzip_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "patient.nii.gz"
    path.write_bytes(BROKEN_GZIP[kind](gzip.compress(nifti())))
    refused(path)


def test_every_bit_flip_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 1000, size=SHAPE).astype("<i2").tobytes()
    packed = gzip.compress(nifti(voxels=voxels))
    path = tmp_path / "patient.nii.gz"
    for place in rng.integers(10, len(packed), size=40):  # behind the gzip header, whose time stamp means nothing
        damaged = bytearray(packed)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        refused(path)


def test_bomb_is_refused_while_unpacking(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    path = tmp_path / "bomb.nii.gz"
    pieces = [packer.compress(nifti()), *(packer.compress(bytes(2**20)) for _ in range(64)), packer.flush()]
    path.write_bytes(b"".join(pieces))
    assert "more than" in refused(path)


def test_content_and_suffix_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "patient.nii"
    path.write_bytes(gzip.compress(nifti()))
    assert "gzip" in refused(path)


def test_absent_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent.nii")


SOUND = {
    "plain": nifti(),
    "big endian": nifti(order=">"),
    "one time point": nifti(dim=(4, *SHAPE, 1, 1, 1, 1)),
    "unknown unit": nifti(units=0),
    "slope 0 means none": nifti(slope=0),
    "slope NaN means none": nifti(slope=NAN),
    "slope and intercept NaN": nifti(slope=NAN, inter=NAN),
    "sform alone": nifti(codes=(0, 1), quatern=(9, 9, 9)),
    "qform alone": nifti(codes=(1, 0), srow=(NAN,) * 12),
    "left-handed": nifti(pixdim=(-1, 2, 2, 3, 0, 0, 0, 0), srow=(2, 0, 0, -5, 0, 2, 0, 4, 0, 0, -3, 3)),
    "turned half round z": nifti(quatern=(0, 0, 1), srow=(-2, 0, 0, -5, 0, -2, 0, 4, 0, 0, 3, 3)),
    "floats": floats(2.5),
    "extension": nifti(offset=368)[:352] + bytes(16) + nifti()[352:],
}


@pytest.mark.parametrize("kind", SOUND)
def test_sound_file_passes(kind: str, tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.nii", tmp_path / "a.nii.gz"
    plain.write_bytes(SOUND[kind])
    half = len(SOUND[kind]) // 2
    packed.write_bytes(gzip.compress(SOUND[kind][:half]) + gzip.compress(SOUND[kind][half:]) + bytes(10))
    check_nifti(plain)
    check_nifti(packed)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=12))
def test_any_header_passes_or_is_refused(changes: list[tuple[int, int]]) -> None:
    content = bytearray(nifti())
    for place, value in changes:
        content[place] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patient.nii"
        path.write_bytes(bytes(content))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read_scan(path)
            except InputError as error:
                assert "\n" not in str(error)
