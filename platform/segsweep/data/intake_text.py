"""Checks a NRRD or MetaImage file, both of which have a header of text, before any library is trusted with it.

SimpleITK reads many broken ones in silence: voxels that are not there become zeros, unknown axes become left, back and head.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segsweep.data.intake import MAX_BYTES, MAX_VOXELS_AN_AXIS, ORTHONORMAL_WITHIN, SPACING_MM, refuse, unpacked
from segsweep.errors import InputError

# A `.seg.nrrd` of a hundred segments has a header of 50 kB.
MAX_HEADER = 2**20
NRRD, META = (".nrrd",), (".mha", ".mhd")

NumLayers = Literal["one", "many"]
# How the voxels are packed: not at all, as a file of gzip, or as one stream of zlib or gzip of a stated size.
_Packing = Literal["", "gzip", "zlib"]

_NRRD_END = re.compile(rb"\r?\n\r?\n")
_META_END = re.compile(rb"^ElementDataFile\s*=[^\r\n]*\r?(?:\n|\Z)", re.MULTILINE)
_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"[-+]?(?:\d{1,40}\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?", re.ASCII)
_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las")
# Of the patient: where x, y and z of LPS begin, and where they end.
_SIDES = ("RL", "AP", "IS")
# An axis within 25 degrees of one of the patient's has its name for sure.
_ALONG = 0.9
_NRRD_TYPES = {
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "int64": "i8"},
    **{"uint64": "u8", "float": "f4", "double": "f8"},
    **dict.fromkeys(("signed char", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32_t"), "u4"),
    **dict.fromkeys(("long long", "longlong", "long long int", "signed long long", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64_t"), "u8"),
}
_META_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}


@dataclass(frozen=True, kw_only=True)
class _Fields:
    """What the header says, by key, and how many bytes of the file it takes."""

    name: str
    values: Mapping[str, str]
    num_bytes: int

    def refuse(self, key: str, *, expected: str, do: str = "export the file again") -> InputError:
        found = repr(self.values[key][:60]) if key in self.values else "missing"
        return refuse(self.name, field=key, found=found, expected=expected, do=do)

    def choice(self, key: str, known: Mapping[str, str], *, default: str = "") -> str:
        value = self.values.get(key, default)
        if value not in known:
            raise self.refuse(key, expected=f"one of {', '.join(list(known)[:10])}")
        return known[value]

    def whole(self, key: str, *, default: str = "") -> int:
        value = self.values.get(key, default)
        if not _WHOLE.fullmatch(value):
            raise self.refuse(key, expected="a whole number")
        return int(value)

    def sizes(self, key: str, *, rank: int) -> list[int]:
        values = self.values.get(key, "").split()
        if len(values) != rank or not all(_WHOLE.fullmatch(value) for value in values):
            raise self.refuse(key, expected=f"{rank} whole numbers")
        return [int(value) for value in values]

    def numbers(self, key: str, *, text: str, count: int) -> NDArray[np.float64]:
        values = text.split()
        if len(values) != count or not all(_NUMBER.fullmatch(value) for value in values):
            raise self.refuse(key, expected=f"{count} finite numbers")
        return np.array([float(value) for value in values])


@dataclass(frozen=True, kw_only=True)
class _Voxels:
    """Where the voxels lie: `skip` bytes into a file (-1: at its end), `total` bytes once unpacked, `stored` before if stated."""

    path: Path
    skip: int
    total: int
    packing: _Packing
    stored: int | None = None


def check_text(path: Path, *, layers: NumLayers = "one") -> None:
    """Refuse a NRRD, .mha or .mhd file that is damaged, is no 3D scan, or does not place its voxels in the patient.

    A file of `many` layers may have one more axis, of whatever is not space. Raises InputError that names file and field.
    Reads the whole file once, in a few MB of memory.
    """
    fields = _fields(path)
    read = _nrrd if path.suffix.lower() in NRRD else _meta
    voxels = read(fields, path=path, layers=layers)
    if voxels.total > MAX_BYTES:
        expected = f"at most {MAX_BYTES}"
        raise refuse(path.name, field="sizes", found=f"{voxels.total} bytes", expected=expected, do="crop the scan")
    _check_bytes(voxels, name=path.name)


def voxel_file(path: Path) -> Path | None:
    """The file beside the header that holds the voxels, where that is another one. Raises InputError for one elsewhere."""
    fields = _fields(path)
    if path.suffix.lower() not in NRRD:
        name = fields.values["ElementDataFile"]
        return None if name == "LOCAL" else _beside(path, name=name)
    name = fields.values.get("data file", fields.values.get("datafile"))
    return None if name is None else _beside(path, name=name)


def _beside(path: Path, *, name: str) -> Path:
    """Links are followed: header and voxels must be in one folder in the end."""
    # ITK opens the file of these very bytes, which has a name of characters where they are UTF-8.
    name = name.encode("latin-1").decode("utf-8", errors="surrogateescape")
    other = path.parent / Path(name).name
    beside = name.isprintable() and Path(name) == Path(other.name) and other.is_file()
    if not beside or other.resolve().parent != path.resolve().parent:
        raise InputError(
            f"{path.name}: its voxels are in {name[:60]!r}; expected a file beside it; put both in one folder"
        )
    return other


def _fields(path: Path) -> _Fields:
    with path.open("rb") as file:
        start = file.read(MAX_HEADER)
    nrrd = path.suffix.lower() in NRRD
    if nrrd and not re.match(rb"NRRD000[1-5]\r?\n", start):
        raise refuse(
            path.name, field="magic", found=repr(start[:8]), expected="NRRD0001 to NRRD0005", do="copy the file again"
        )
    end = (_NRRD_END if nrrd else _META_END).search(start)
    if end is None and (len(start) == MAX_HEADER or not nrrd):
        expected = f"{'an empty line' if nrrd else 'ElementDataFile'} within {MAX_HEADER} bytes"
        raise refuse(path.name, field="the header", found="without an end", expected=expected, do="copy the file again")
    size = end.end() if end else len(start)
    # Lines are those of the bytes: UTF-8 has some in it that Latin-1 takes for the end of a line.
    lines = [line.decode("latin-1") for line in start[:size].splitlines()]
    return _Fields(name=path.name, values=_pairs(lines[1:] if nrrd else lines, path=path), num_bytes=size)


def _pairs(lines: Iterable[str], *, path: Path) -> dict[str, str]:
    """Key/value pairs of NRRD (`key:=value`) and its comments say nothing of the grid and are left out."""
    nrrd, found = path.suffix.lower() in NRRD, dict[str, str]()
    for line in lines:
        key, sign, value = line.partition(":" if nrrd else "=")
        if not line.strip() or (nrrd and (line.startswith("#") or value.startswith("="))):
            continue
        key = key.strip().lower() if nrrd else key.strip()
        if not sign or key in found:
            what = "there twice" if sign else "no field"
            raise refuse(
                path.name,
                field=f"the header's line {line[:60]!r}",
                found=what,
                expected="one field a line",
                do="copy it again",
            )
        found[key] = value.strip()
    return found


def _nrrd(fields: _Fields, *, path: Path, layers: NumLayers) -> _Voxels:
    rank = fields.whole("dimension")
    sizes = fields.sizes("sizes", rank=rank)
    _check_sizes(sizes, key="sizes", fields=fields)
    if layers == "one" and sizes.count(1) < rank - 3:
        raise fields.refuse("sizes", expected="one 3D scan with one number a voxel", do="split or convert the file")
    if fields.values.get("space", "").lower() not in _SPACES:
        raise fields.refuse("space", expected="LPS, RAS or LAS, without which left and right are unknown")
    directions = re.findall(r"none|\([^()]*\)", fields.values.get("space directions", ""))
    axes = [text for text in directions if text != "none"]
    if len(directions) != rank or len(axes) != 3:
        raise fields.refuse("space directions", expected=f"3 vectors for dimension {rank}, 'none' for other axes")
    vectors = [fields.numbers("space directions", text=text[1:-1].replace(",", " "), count=3) for text in axes]
    _check_axes(np.array(vectors), key="space directions", fields=fields)
    origin = fields.values.get("space origin", "")
    fields.numbers("space origin", text=origin.strip("()").replace(",", " "), count=3)
    units = re.findall(r'"([^"]*)"', fields.values.get("space units", ""))
    if any(unit.lower() not in ("mm", "millimeter", "millimetre", "") for unit in units):
        raise fields.refuse("space units", expected="mm", do="correct unit and spacing")
    kind = np.dtype(fields.choice("type", _NRRD_TYPES))
    packing: _Packing = "gzip" if fields.choice("encoding", {"raw": "", "gzip": "gzip", "gz": "gzip"}) else ""
    if kind.itemsize > 1:
        fields.choice("endian", {"little": "<", "big": ">"})
    skip = fields.whole("byte skip", default="0")
    if not (skip == 0 or (skip >= -1 and not packing)):
        raise fields.refuse("byte skip", expected="0, or for raw voxels a number from -1")
    if fields.whole("line skip", default="0") != 0:
        raise fields.refuse("line skip", expected="0")
    other, total = voxel_file(path), int(np.prod(sizes, dtype=object)) * kind.itemsize
    start = skip if other or skip < 0 else skip + fields.num_bytes
    return _Voxels(path=other or path, skip=start, total=total, packing=packing)


def num_layers(path: Path) -> int:
    """How many scans a MetaImage file says that it holds along its fourth axis; 1 of three axes."""
    fields = _fields(path)
    rank = fields.whole("NDims")
    return fields.sizes("DimSize", rank=rank)[3] if rank == 4 else 1


def layer_bytes(path: Path) -> Iterator[bytearray]:
    """The voxels of one layer after the other of a MetaImage file that `check_text` has passed with many layers."""
    voxels, held = _meta(_fields(path), path=path, layers="many"), bytearray()
    size = voxels.total // num_layers(path)
    with voxels.path.open("rb") as file:
        file.seek(voxels.skip if voxels.skip >= 0 else voxels.path.stat().st_size - voxels.total)
        plain = iter(lambda: file.read(2**20), b"")
        for piece in unpacked(file, name=path.name, wbits=47, members="one") if voxels.packing else plain:
            held += piece
            while len(held) >= size:
                yield held[:size]
                del held[:size]


def layer_type(path: Path) -> np.dtype:
    """Of a MetaImage file's voxels, in the order of bytes of this machine."""
    return np.dtype(_fields(path).choice("ElementType", _META_TYPES))


def _meta(fields: _Fields, *, path: Path, layers: NumLayers) -> _Voxels:
    fields.choice("ObjectType", {"Image": ""})
    rank = fields.whole("NDims")
    sizes = fields.sizes("DimSize", rank=rank)
    channels = fields.whole("ElementNumberOfChannels", default="1")
    if rank not in (3, 4) or (layers == "one" and sizes[3:] not in ([], [1])) or channels != 1:
        key = "DimSize" if channels == 1 else "ElementNumberOfChannels"
        raise fields.refuse(key, expected="one 3D scan with one number a voxel", do="split or convert the file")
    _check_sizes(sizes, key="DimSize", fields=fields)
    spacing = fields.numbers("ElementSpacing", text=fields.values.get("ElementSpacing", ""), count=rank)[:3]
    key = next(
        (key for key in ("TransformMatrix", "Rotation", "Orientation") if key in fields.values), "TransformMatrix"
    )
    axes = fields.numbers(key, text=fields.values.get(key, ""), count=rank * rank).reshape(rank, rank)[:3, :3]
    if not np.all(spacing > 0):
        raise fields.refuse("ElementSpacing", expected="numbers above 0", do="correct the spacing")
    if not np.allclose(np.linalg.norm(axes, axis=1), 1, atol=ORTHONORMAL_WITHIN):
        raise fields.refuse(key, expected="axes of length 1", do="correct the orientation")
    _check_axes(axes * spacing[:, np.newaxis], key=f"{key}, ElementSpacing", fields=fields)
    _check_sides(axes, fields=fields)
    for origin in {"Offset", "Position", "Origin"} & fields.values.keys():
        fields.numbers(origin, text=fields.values[origin], count=rank)
    fields.choice("DistanceUnits", {"mm": "", "?": ""}, default="mm")
    kind = np.dtype(fields.choice("ElementType", _META_TYPES))
    truth = {"True": "yes", "true": "yes", "1": "yes", "False": "", "false": "", "0": ""}
    for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"):
        fields.choice(key, truth, default="False")
    if not fields.choice("BinaryData", truth):
        raise fields.refuse("BinaryData", expected="True")
    packed, other = fields.choice("CompressedData", truth, default="False"), voxel_file(path)
    skip = fields.whole("HeaderSize", default="0")
    if not (skip == 0 or (skip >= -1 and other and not packed)):
        raise fields.refuse(
            "HeaderSize", expected="0, or for voxels in another file and not compressed a number from -1"
        )
    return _Voxels(
        path=other or path,
        skip=skip if other else fields.num_bytes,
        total=int(np.prod(sizes, dtype=object)) * kind.itemsize,
        packing="zlib" if packed else "",
        stored=fields.whole("CompressedDataSize") if packed else None,  # without it, ITK reads other voxels
    )


def _check_sizes(sizes: Sequence[int], *, key: str, fields: _Fields) -> None:
    if not all(1 <= size <= MAX_VOXELS_AN_AXIS for size in sizes):
        raise fields.refuse(key, expected=f"1 to {MAX_VOXELS_AN_AXIS} voxels an axis")


def _check_axes(axes: NDArray[np.float64], *, key: str, fields: _Fields) -> None:
    """`axes` holds a step (mm) along each axis in its rows."""
    low, high = SPACING_MM
    with np.errstate(over="ignore"):
        spacing = np.linalg.norm(axes, axis=1)
    if not np.all((spacing >= low) & (spacing <= high)):
        found = f"of spacing {tuple(float(f'{value:.4g}') for value in spacing)} mm"
        raise refuse(fields.name, field=key, found=found, expected=f"{low} to {high} mm", do="correct the spacing")
    cosines = axes / spacing[:, np.newaxis]
    skew = float(np.abs(cosines @ cosines.T - np.eye(3)).max())
    if skew > ORTHONORMAL_WITHIN:
        found = f"sheared (axes off a right angle by a cosine of {skew:.3g})"
        raise refuse(fields.name, field=key, found=found, expected="right angles", do="resample the scan")


def _check_sides(axes: NDArray[np.float64], *, fields: _Fields) -> None:
    """AnatomicalOrientation names the sides where the axes begin; where it contradicts them, left and right are unknown."""
    stated = fields.values.get("AnatomicalOrientation", "???")
    for letter, axis in zip(stated.ljust(3, "?"), axes, strict=False):
        along = int(np.abs(axis).argmax())
        side = _SIDES[along][int(axis[along] < 0)]
        if letter not in ("?", side) and abs(axis[along]) > _ALONG:
            expected = f"{side} for the axis along {axis.round(3).tolist()}"
            raise fields.refuse("AnatomicalOrientation", expected=expected, do="correct it or the axes")


def _check_bytes(voxels: _Voxels, *, name: str) -> None:
    """Counts what is there, unpacked in small pieces and thrown away, until it is more than it should be."""
    size = voxels.path.stat().st_size
    start = size - voxels.total if voxels.skip == -1 else voxels.skip
    if voxels.stored not in (None, size - start):
        found = f"{voxels.stored}, with {size - start} bytes in {voxels.path.name}"
        expected = "as many as there are"
        raise refuse(name, field="CompressedDataSize", found=found, expected=expected, do="copy the file again")
    count = max(0, size - start) if start >= 0 else 0
    if voxels.packing:
        count = 0
        with voxels.path.open("rb") as file:
            file.seek(start)
            wbits, members = (31, "many") if voxels.packing == "gzip" else (47, "one")
            for piece in unpacked(file, name=name, wbits=wbits, members=members):
                count += len(piece)
                if count > voxels.total:
                    break
    if count != voxels.total:
        found = f"more than {voxels.total} bytes" if count > voxels.total else f"{count} bytes"
        expected = f"the {voxels.total} that the header declares"
        raise refuse(name, field="the voxels' size", found=found, expected=expected, do="copy the file again")
