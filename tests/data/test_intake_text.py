"""Every malformed NRRD or MetaImage file is refused in one sentence that names file and field; sound files are read."""

import gzip
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segsweep.data.readers import read_labels, read_scan
from segsweep.errors import InputError

VOXELS = np.arange(120, dtype="<i2").reshape(4, 5, 6)
RAW = VOXELS.tobytes()
GZIP, ZLIB = gzip.compress(RAW, mtime=0), zlib.compress(RAW)
MOST_BYTES = 300 * 2**20

NRRD = {
    "type": "int16", "dimension": "3", "space": "left-posterior-superior", "sizes": "6 5 4",
    "space directions": "(1.5,0,0) (0,2,0) (0,0,3)", "kinds": "domain domain domain", "endian": "little",
    "encoding": "raw", "space origin": "(10,-20,30)",
}  # fmt: skip
META = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False", "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "10 -20 30", "AnatomicalOrientation": "RAI",
    "ElementSpacing": "1.5 2 3", "DimSize": "6 5 4", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
}  # fmt: skip


def nrrd(fields: Mapping[str, str | None] | None = None, voxels: bytes = RAW, *, start: str = "NRRD0004") -> bytes:
    """A sound file of 6 x 5 x 4 voxels of 1.5 x 2 x 3 mm, but for the fields given; None leaves a field out."""
    lines = [f"{key}: {value}" for key, value in {**NRRD, **(fields or {})}.items() if value is not None]
    return "\n".join([start, *lines, "", ""]).encode("latin-1") + voxels


def meta(fields: Mapping[str, str | None] | None = None, voxels: bytes = RAW) -> bytes:
    changed = {**META, **(fields or {})}
    changed["ElementDataFile"] = changed.pop("ElementDataFile")  # the last field, whatever was given
    return (
        "".join(f"{key} = {value}\n" for key, value in changed.items() if value is not None).encode("latin-1") + voxels
    )


def packed_nrrd(voxels: bytes, fields: Mapping[str, str | None] | None = None) -> bytes:
    return nrrd({"encoding": "gzip", **(fields or {})}, voxels)


def packed_meta(voxels: bytes, fields: Mapping[str, str | None] | None = None) -> bytes:
    return meta({"CompressedData": "True", "CompressedDataSize": str(len(voxels)), **(fields or {})}, voxels)


def bomb(wbits: int) -> bytes:
    """512 MB of zeros in half a MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return b"".join([*(packer.compress(bytes(2**24)) for _ in range(32)), packer.flush()])


def floats(value: float, *, at: int = 7) -> bytes:
    voxels = VOXELS.astype("<f4")
    voxels.ravel()[at] = value
    return voxels.tobytes()


SLANTED = "(1.5,0,0) (0.8,1.9,0) (0,0,3)"
# Fault -> content and what the sentence must say.
BROKEN_NRRD: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "magic"),
    "another format": (meta(), "magic"),
    "a version to come": (nrrd(start="NRRD0009"), "magic"),
    "no empty line behind the header": (nrrd()[: -len(RAW) - 1], "the voxels' size"),
    "a header of 2 MB": (nrrd({"content": "x" * 2**21}), "the header is without an end"),
    "a line that is no field": (nrrd({"sizes": "6 5 4\nrubbish"}), "line 'rubbish'"),
    "a field twice": (nrrd({"kinds": "domain domain domain\nsizes: 6 5 4"}), "there twice"),
    "no dimension": (nrrd({"dimension": None}), "dimension is missing"),
    "dimension of a million": (nrrd({"dimension": "1000000"}), "sizes"),
    "2D": (nrrd({"dimension": "2", "sizes": "6 20", "space directions": "(1.5,0,0) (0,2,0)"}), "space directions"),
    "4D": (nrrd({"dimension": "4", "sizes": "6 5 2 2", "space directions": "(1.5,0,0) (0,2,0) (0,0,3) none"}), "sizes"),
    "vectors": (
        nrrd({"dimension": "4", "sizes": "3 5 4 2", "space directions": "none (1.5,0,0) (0,2,0) (0,0,3)"}),
        "sizes",
    ),
    "sizes of another dimension": (nrrd({"sizes": "6 20"}), "sizes"),
    "sizes missing": (nrrd({"sizes": None}), "sizes is missing"),
    "an axis of no voxels": (nrrd({"sizes": "6 0 4"}), "sizes"),
    "a negative axis": (nrrd({"sizes": "-6 5 4"}), "sizes"),
    "a fraction of a voxel": (nrrd({"sizes": "6.5 5 4"}), "sizes"),
    "an axis of a million voxels": (nrrd({"sizes": "1000000 5 4"}), "sizes"),
    "128 GB by the header": (nrrd({"sizes": "4096 4096 4096"}), "sizes"),
    "4 GB by the header": (nrrd({"sizes": "2048 1024 1024"}), "the voxels' size is 240 bytes"),
    "a number of 5000 digits": (nrrd({"sizes": f"6 5 {'9' * 5000}"}), "sizes"),
    "space missing": (nrrd({"space": None}), "left and right are unknown"),
    "space dimension alone": (nrrd({"space": None, "space dimension": "3"}), "left and right are unknown"),
    "space of the scanner": (nrrd({"space": "scanner-xyz"}), "left and right are unknown"),
    "space with time": (nrrd({"space": "left-posterior-superior-time"}), "left and right are unknown"),
    "directions missing": (nrrd({"space directions": None, "spacings": "1.5 2 3"}), "space directions is missing"),
    "a direction less than the dimension": (nrrd({"dimension": "4", "sizes": "6 5 4 1"}), "space directions"),
    "two directions": (nrrd({"space directions": "(1.5,0,0) (0,2,0)"}), "space directions"),
    "directions of two numbers": (nrrd({"space directions": "(1.5,0) (0,2) (0,3)"}), "space directions"),
    "NaN in the directions": (nrrd({"space directions": "(1.5,0,0) (0,nan,0) (0,0,3)"}), "space directions"),
    "zero spacing": (nrrd({"space directions": "(1.5,0,0) (0,0,0) (0,0,3)"}), "space directions is of spacing"),
    "spacing in metres": (nrrd({"space directions": "(.0015,0,0) (0,.002,0) (0,0,.003)"}), "spacing"),
    "spacing of a metre": (nrrd({"space directions": "(1.5,0,0) (0,1000,0) (0,0,3)"}), "spacing"),
    "spacing of 1e300": (nrrd({"space directions": "(1e300,0,0) (0,2,0) (0,0,3)"}), "spacing"),
    "units of metres": (nrrd({"space units": '"m" "m" "m"'}), "space units"),
    "sheared axes": (nrrd({"space directions": SLANTED}), "sheared"),
    "two equal axes": (nrrd({"space directions": "(1.5,0,0) (1.5,0,0) (0,0,3)"}), "sheared"),
    "origin missing": (nrrd({"space origin": None}), "space origin"),
    "infinite origin": (nrrd({"space origin": "(inf,0,0)"}), "space origin"),
    "type missing": (nrrd({"type": None}), "type is missing"),
    "unknown type": (nrrd({"type": "int24"}), "type"),
    "blocks": (nrrd({"type": "block", "block size": "2"}), "type"),
    "byte order missing": (nrrd({"endian": None}), "endian is missing"),
    "byte order of another kind": (nrrd({"endian": "middle"}), "endian"),
    "encoding missing": (nrrd({"encoding": None}), "encoding is missing"),
    "unknown encoding": (nrrd({"encoding": "lzma"}), "encoding"),
    "numbers as text": (nrrd({"encoding": "ascii", "endian": None}, b"1 " * 120), "encoding is 'ascii'"),
    "cut off": (nrrd()[:-20], "the voxels' size is 220 bytes"),
    "no voxels": (nrrd(voxels=b""), "the voxels' size is 0 bytes"),
    "bytes left over": (nrrd() + b"\n", "the voxels' size is more than 240"),
    "voxels of twice the size": (nrrd({"type": "float"}), "the voxels' size"),
    "a byte skip into the voxels": (nrrd({"byte skip": "16"}), "the voxels' size"),
    "a byte skip behind the end": (nrrd({"byte skip": "1000000"}), "the voxels' size"),
    "a byte skip of -2": (nrrd({"byte skip": "-2"}), "byte skip"),
    "a byte skip from the end without enough": (nrrd({"byte skip": "-1", "sizes": "600 50 40"}), "the voxels' size"),
    "a byte skip in compressed voxels": (packed_nrrd(GZIP, {"byte skip": "4"}), "byte skip"),
    "lines to skip": (nrrd({"line skip": "1"}), "line skip"),
    "gzip that is raw": (packed_nrrd(RAW), "the compressed stream is damaged"),
    "raw that is gzip": (nrrd(voxels=GZIP), "the voxels' size"),
    "gzip cut off": (packed_nrrd(GZIP[:-12]), "the compressed stream is cut off"),
    "gzip with a wrong checksum": (packed_nrrd(GZIP[:-8] + b"abcd" + GZIP[-4:]), "the compressed stream is damaged"),
    "gzip with a wrong length": (packed_nrrd(GZIP[:-4] + b"\1\0\0\0"), "the compressed stream is damaged"),
    "gzip with rubbish behind": (packed_nrrd(GZIP + b"rubbish"), "the compressed stream is damaged"),
    "gzip of too little": (packed_nrrd(gzip.compress(RAW[:-2])), "the voxels' size is 238 bytes"),
    "gzip bomb": (packed_nrrd(bomb(31)), "the voxels' size is more than 240"),
    "NaN voxels": (nrrd({"type": "float"}, floats(np.nan)), "NaN"),
    "infinite voxels": (nrrd({"type": "float"}, floats(-np.inf)), "NaN or infinite"),
    "voxels in a folder above": (nrrd({"data file": "../a.raw"}, b""), "expected a file beside it"),
    "voxels in a file of the system": (nrrd({"data file": "/etc/passwd"}, b""), "expected a file beside it"),
    "voxels in a file that is not there": (nrrd({"data file": "gone.raw"}, b""), "expected a file beside it"),
    "voxels in this folder": (nrrd({"data file": "."}, b""), "expected a file beside it"),
    "voxels in numbered files": (nrrd({"data file": "a%d.raw 1 4 1"}, b""), "expected a file beside it"),
    "voxels in a list of files": (nrrd({"data file": "LIST\na.raw"}, b""), "line 'a.raw'"),
}  # fmt: skip

BROKEN_META: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "the header is without an end"),
    "another format": (nrrd(), "the header is without an end"),
    "a header of 2 MB": (meta({"Comment": "x" * 2**21}), "the header is without an end"),
    "no place of the voxels": (meta({"ElementDataFile": None}), "the header is without an end"),
    "a line that is no field": (meta({"Comment": "x\nrubbish"}), "line 'rubbish'"),
    "a field twice": (meta({"Comment": "x\nDimSize = 6 5 4"}), "there twice"),
    "no image": (meta({"ObjectType": "Tube"}), "ObjectType"),
    "no dimension": (meta({"NDims": None}), "NDims is missing"),
    "dimension of a million": (meta({"NDims": "1000000"}), "DimSize"),
    "2D": (meta({"NDims": "2", "DimSize": "6 20"}), "DimSize"),
    "4D": (meta({"NDims": "4", "DimSize": "6 5 2 2"}), "DimSize"),
    "vectors": (meta({"ElementNumberOfChannels": "3", "DimSize": "2 5 4"}), "ElementNumberOfChannels"),
    "sizes missing": (meta({"DimSize": None}), "DimSize is missing"),
    "an axis of no voxels": (meta({"DimSize": "6 0 4"}), "DimSize"),
    "a negative axis": (meta({"DimSize": "6 5 -4"}), "DimSize"),
    "128 GB by the header": (meta({"DimSize": "4096 4096 4096"}), "sizes"),
    "4 GB by the header": (meta({"DimSize": "2048 1024 1024"}), "the voxels' size is 240 bytes"),
    "spacing missing": (meta({"ElementSpacing": None}), "ElementSpacing is missing"),
    "zero spacing": (meta({"ElementSpacing": "1.5 0 3"}), "ElementSpacing"),
    "negative spacing": (meta({"ElementSpacing": "1.5 -2 3"}), "ElementSpacing"),
    "NaN spacing": (meta({"ElementSpacing": "1.5 nan 3"}), "ElementSpacing"),
    "spacing in metres": (meta({"ElementSpacing": "0.0015 0.002 0.003"}), "spacing"),
    "units of metres": (meta({"DistanceUnits": "m"}), "DistanceUnits"),
    "spacing with a comma": (meta({"ElementSpacing": "1,5 2 3"}), "ElementSpacing"),
    "axes missing": (meta({"TransformMatrix": None}), "TransformMatrix is missing"),
    "sheared axes": (meta({"TransformMatrix": "1 0 0 0.6 0.8 0 0 0 1"}), "sheared"),
    "axes not of length 1": (meta({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}), "TransformMatrix"),
    "NaN in the axes": (meta({"TransformMatrix": "1 0 0 0 nan 0 0 0 1"}), "TransformMatrix"),
    "axes of zero": (meta({"TransformMatrix": "0 0 0 0 0 0 0 0 0"}), "TransformMatrix"),
    "eight numbers for axes": (meta({"TransformMatrix": "1 0 0 0 1 0 0 0"}), "TransformMatrix"),
    "left and right contradicted": (meta({"AnatomicalOrientation": "LAI"}), "AnatomicalOrientation"),
    "axes turned, names kept": (meta({"TransformMatrix": "-1 0 0 0 -1 0 0 0 1"}), "AnatomicalOrientation"),
    "infinite origin": (meta({"Offset": "inf 0 0"}), "Offset"),
    "unknown type": (meta({"ElementType": "MET_INT24"}), "ElementType"),
    "type of platform's choice": (meta({"ElementType": "MET_LONG"}), "ElementType"),
    "numbers as text": (meta({"BinaryData": "False"}, b"1 " * 120), "BinaryData"),
    "byte order of another kind": (meta({"BinaryDataByteOrderMSB": "Perhaps"}), "BinaryDataByteOrderMSB"),
    "cut off": (meta()[:-20], "the voxels' size is 220 bytes"),
    "bytes left over": (meta() + b"\0", "the voxels' size is more than 240"),
    "bytes of a header to skip": (meta({"HeaderSize": "8"}), "HeaderSize"),
    "compressed, and is not": (packed_meta(RAW), "the compressed stream is damaged"),
    "compressed without its size": (packed_meta(ZLIB, {"CompressedDataSize": None}), "CompressedDataSize is missing"),
    "compressed of another size": (packed_meta(ZLIB, {"CompressedDataSize": "100000000"}), "CompressedDataSize"),
    "compressed and cut off": (packed_meta(ZLIB[:-10]), "the compressed stream is cut off"),
    "compressed with a wrong checksum": (packed_meta(ZLIB[:-4] + b"abcd"), "the compressed stream is damaged"),
    "compressed in two streams": (packed_meta(zlib.compress(RAW[:100]) + zlib.compress(RAW[100:])), "followed by more"),
    "compressed, too little": (packed_meta(zlib.compress(RAW[:-2])), "the voxels' size is 238 bytes"),
    "zlib bomb": (packed_meta(bomb(15)), "the voxels' size is more than 240"),
    "NaN voxels": (meta({"ElementType": "MET_FLOAT"}, floats(np.nan)), "NaN"),
    "voxels in a folder above": (meta({"ElementDataFile": "../a.raw"}, b""), "expected a file beside it"),
    "voxels in a file of the system": (meta({"ElementDataFile": "/etc/passwd"}, b""), "expected a file beside it"),
    "voxels in a file that is not there": (meta({"ElementDataFile": "gone.raw"}, b""), "expected a file beside it"),
    "voxels in numbered files": (meta({"ElementDataFile": "a%d.raw 1 4 1"}, b""), "expected a file beside it"),
    "voxels in a list of files": (meta({"ElementDataFile": "LIST"}, b"a.raw\n"), "expected a file beside it"),
    "local, and says another file": (meta({"ElementDataFile": "local"}), "expected a file beside it"),
}  # fmt: skip

BROKEN_LABELS: dict[str, tuple[bytes, str]] = {
    "fractions": (nrrd({"type": "float"}, floats(2.5)), "fractions"),
    "negative values": (nrrd(voxels=(VOXELS - 3).tobytes()), "label values from -3"),
    "values above 65535": (nrrd({"type": "float"}, floats(70000)), "70000"),
}

BROKEN = {
    **{f"nrrd: {fault}": ("a.nrrd", *row) for fault, row in BROKEN_NRRD.items()},
    **{f"mha: {fault}": ("a.mha", *row) for fault, row in BROKEN_META.items()},
    **{f"mhd: {fault}": ("a.mhd", *BROKEN_META[fault]) for fault in ("another format", "voxels in a folder above")},
    **{f"label map: {fault}": ("a.nrrd", *row) for fault, row in BROKEN_LABELS.items()},
    "scan: one single value": ("a.nrrd", nrrd(voxels=bytes(240)), "all voxels are 0"),
}


def refused(path: Path, *, read: Callable[[Path], Any] = read_scan) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert path.name in message or repr(path.name)[1:-1] in message
    assert message.isprintable(), "one line that every terminal can show"
    return message


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_refused(fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, content, fragment = BROKEN[fault]
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name, read=read_labels if fault.startswith("label map") else read_scan)
    assert fragment in message and "expected" in message and len(message) < 400
    assert capfd.readouterr() == ("", "")


def test_no_broken_file_takes_memory(tmp_path: Path) -> None:
    for number, (name, content, _) in enumerate(BROKEN.values()):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / name).write_bytes(content)
    code = (
        "import re, sys; from pathlib import Path; from segsweep.data.readers import read_scan, read_labels\n"
        "from segsweep.errors import InputError\n"
        "for path in Path(sys.argv[1]).glob('*/a.*'):\n"
        "    for read in (read_scan, read_labels):\n"
        "        try: read(path)\n"
        "        except InputError: pass\n"
        "print(re.search(r'VmHWM:\\s*(\\d+) kB', Path('/proc/self/status').read_text())[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert 1024 * int(done.stdout) < MOST_BYTES


def made(folder: Path, name: str, content: bytes = b"") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_voxels_elsewhere_or_cut_off_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked.raw").symlink_to(made(tmp_path / "elsewhere", "a.raw", RAW))
    made(tmp_path, "a.raw", RAW)
    for name in ("../a.raw", "elsewhere/a.raw", str(tmp_path / "a.raw")):
        for path in (
            made(tmp_path, "a.mhd", meta({"ElementDataFile": name}, b"")),
            made(tmp_path, "a.nrrd", nrrd({"data file": name}, b"")),
        ):
            assert "expected a file beside it" in refused(path)
    made(tmp_path, "short.raw", RAW[:-1])
    made(tmp_path, "long.raw", RAW + b"x")
    for name, fragment in {
        "linked": "expected a file beside it",
        "short": "the voxels' size is 239 bytes",
        "long": "the voxels' size is more than 240",
    }.items():
        assert fragment in refused(made(tmp_path, f"{name}.mhd", meta({"ElementDataFile": f"{name}.raw"}, b"")))
        assert fragment in refused(made(tmp_path, f"{name}.nrrd", nrrd({"data file": f"{name}.raw"}, b"")))


TURNED = np.diag([-1.0, -1, 1])
SOUND: dict[str, tuple[str, bytes, np.ndarray]] = {
    "nrrd": ("a.nrrd", nrrd(), np.eye(3)),
    "nrrd in short words": ("a.nrrd", nrrd({"space": "LPS", "encoding": "gz"}, GZIP), np.eye(3)),
    "nrrd with lines of Windows": ("a.nrrd", nrrd(voxels=b"").replace(b"\n", b"\r\n") + RAW, np.eye(3)),
    "nrrd with comments and pairs": ("a.nrrd", nrrd({"content": "x\n# note: 1\na b:=c: d"}), np.eye(3)),
    "nrrd in RAS": ("a.nrrd", nrrd({"space": "right-anterior-superior", "space origin": "(-10,20,30)"}), TURNED),
    "nrrd in LAS": ("a.nrrd", nrrd({"space": "LAS", "space origin": "(10,20,30)"}), np.diag([1.0, -1, 1])),
    "nrrd left-handed": ("a.nrrd", nrrd({"space directions": "(1.5,0,0) (0,2,0) (0,0,-3)"}), np.diag([1.0, 1, -1])),
    "nrrd with the big end first": ("a.nrrd", nrrd({"endian": "big"}, VOXELS.astype(">i2").tobytes()), np.eye(3)),
    "nrrd from the end": ("a.nrrd", nrrd({"byte skip": "-1"}, b"padding" + RAW), np.eye(3)),
    "nrrd with bytes to skip": ("a.nrrd", nrrd({"byte skip": "7"}, b"padding" + RAW), np.eye(3)),
    "nrrd of two gzip members": ("a.nrrd", packed_nrrd(gzip.compress(RAW[:100]) + gzip.compress(RAW[100:])), np.eye(3)),
    "mha": ("a.mha", meta(), np.eye(3)),
    "mha compressed": ("a.mha", packed_meta(ZLIB), np.eye(3)),
    "mha compressed by gzip": ("a.mha", packed_meta(GZIP), np.eye(3)),
    "mha with the big end first": (
        "a.mha",
        meta({"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"}, VOXELS.astype(">i2").tobytes()),
        np.eye(3),
    ),
    "mha left-handed": (
        "a.mha",
        meta({"TransformMatrix": "-1 0 0 0 1 0 0 0 1", "AnatomicalOrientation": "LAI"}),
        np.diag([-1.0, 1, 1]),
    ),
    "mha without names of the axes": (
        "a.mha",
        meta({"TransformMatrix": "0 1 0 1 0 0 0 0 1", "AnatomicalOrientation": "???"}),
        np.eye(3)[[1, 0, 2]],
    ),
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_file_is_read(kind: str, tmp_path: Path) -> None:
    name, content, direction = SOUND[kind]
    scan = read_scan(made(tmp_path, name, content))
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    assert scan.geometry.spacing == pytest.approx((3, 2, 1.5))
    assert scan.geometry.origin == pytest.approx((10, -20, 30))
    np.testing.assert_allclose(np.reshape(scan.geometry.direction, (3, 3)), direction, atol=1e-9)


def test_voxels_beside_the_header_are_read(tmp_path: Path) -> None:
    made(tmp_path, "a.raw", b"header" + RAW)
    made(tmp_path, "a.raw.gz", GZIP)
    for name, content in {
        "a.mhd": meta({"HeaderSize": "6", "ElementDataFile": "a.raw"}, b""),
        "b.mhd": meta({"HeaderSize": "-1", "ElementDataFile": "./a.raw"}, b""),
        "a.nrrd": nrrd({"byte skip": "6", "data file": "./a.raw"}, b""),
        "b.nrrd": nrrd({"encoding": "gzip", "data file": "a.raw.gz"}, b"")[:-1],
    }.items():
        np.testing.assert_array_equal(read_scan(made(tmp_path, name, content)).voxels, VOXELS, err_msg=name)


@pytest.mark.parametrize("voxels", ["Schädel.raw", "Å … 头.raw"])
def test_voxels_beside_the_header_may_have_any_name_in_utf_8(voxels: str, tmp_path: Path) -> None:
    made(tmp_path, voxels, RAW)
    for name, line in (("a.mhd", "ElementDataFile = "), ("a.nrrd", "data file: ")):
        plain = meta({"ElementDataFile": "V"}, b"") if name == "a.mhd" else nrrd({"data file": "V"}, b"")
        path = made(tmp_path, name, plain.replace(f"{line}V".encode(), f"{line}{voxels}".encode()))
        np.testing.assert_array_equal(read_scan(path).voxels, VOXELS)


@pytest.mark.parametrize("name", ["Schädel.raw", "../Schädel.raw", "ä/../../Schädel.raw"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_name_in_any_encoding_leads_nowhere_else(name: str, encoding: str, tmp_path: Path) -> None:
    made(tmp_path, "Schädel.raw", RAW)
    (tmp_path / "in" / "ä").mkdir(parents=True)
    (tmp_path / "in" / "Schädel.raw").symlink_to(tmp_path / "Schädel.raw")
    header = meta({"ElementDataFile": "V"}, b"").replace(b"File = V", b"File = " + name.encode(encoding))
    with pytest.raises(InputError, match="expected a file beside it") as caught:
        read_scan(made(tmp_path / "in", "a.mhd", header))
    assert str(caught.value).isprintable()


NOISE = np.random.default_rng(5).integers(-1000, 1000, size=VOXELS.shape).astype("<i2")
COMPRESSED = {
    "a.nrrd": packed_nrrd(gzip.compress(NOISE.tobytes(), mtime=0)),
    "a.mha": packed_meta(zlib.compress(NOISE.tobytes())),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_flipped_bit_in_compressed_voxels_is_found_or_means_nothing(name: str, tmp_path: Path) -> None:
    content, rng, found = COMPRESSED[name], np.random.default_rng(0), 0
    start = content.index(b"\x1f\x8b") if name == "a.nrrd" else content.index(b"LOCAL\n") + 6
    for place in rng.integers(start, len(content), size=20):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path = made(tmp_path, name, bytes(damaged))
        try:
            np.testing.assert_array_equal(read_scan(path).voxels, NOISE)
        except InputError as error:
            assert name in str(error)
            found += 1
    assert found >= 18


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["a.nrrd", "a.mha", "a.mhd", "a.seg.nrrd"]),
    changes=st.lists(st.tuples(st.integers(0, 330), st.integers(0, 255)), max_size=8),
    content=st.one_of(st.none(), st.binary(max_size=200)),
)
def test_any_header_is_read_or_refused(name: str, changes: list[tuple[int, int]], content: bytes | None) -> None:
    start = b"NRRD0004\n" if name.endswith("nrrd") else b"ObjectType = Image\n"
    found = bytearray((nrrd() if name.endswith("nrrd") else meta()) if content is None else start + content)
    for place, value in changes:
        found[place % len(found)] = value
    with tempfile.TemporaryDirectory() as folder:
        try:
            read_scan(made(Path(folder), name, bytes(found)))
        except InputError as error:
            assert str(error).isprintable()
