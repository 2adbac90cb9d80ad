"""Unpacks the stored pixel values of one DICOM slice, after its header was found to agree with the size of the data."""

import struct
import tempfile
import warnings
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)  # fmt: skip

from segsweep.data.dicom_file import text, whole
from segsweep.data.intake import MAX_VOXELS_AN_AXIS
from segsweep.data.readers import quiet
from segsweep.errors import InputError

_JPEG = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
_JPEG_2000 = b"\xff\x4f\xff\x51"
# Some writers wrap the stream in the boxes of a .jp2 file.
_MAX_BOXES = 512
# Markers of a JPEG frame header: C4, C8 and CC mean other things, F7 is JPEG-LS.
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_PIXEL_FIELDS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")


def stored_values(dataset: Dataset, *, name: str) -> NDArray:
    """(rows, columns) as stored, before rescaling, int16 or uint16.

    Raises InputError for colour, other than 16 bits a pixel, several frames, and pixel data that are missing, too short, too long
    or damaged.
    """
    rows = whole(dataset, "Rows", name=name, low=1, high=MAX_VOXELS_AN_AXIS)
    columns = whole(dataset, "Columns", name=name, low=1, high=MAX_VOXELS_AN_AXIS)
    whole(dataset, "SamplesPerPixel", name=name, low=1, high=1)
    whole(dataset, "BitsAllocated", name=name, low=16, high=16)
    bits = whole(dataset, "BitsStored", name=name, low=2, high=16)
    whole(dataset, "HighBit", name=name, low=bits - 1, high=bits - 1)
    signed = whole(dataset, "PixelRepresentation", name=name, low=0, high=1) == 1
    if text(dataset, "PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(f"{name}: its pixels are no grey values; expected MONOCHROME2; export the series again")
    data = dataset.get("PixelData")
    if not isinstance(data, bytes) or not data:
        raise InputError(f"{name} holds no pixel data; expected {rows} x {columns} pixels; copy or export it again")
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not syntax.is_transfer_syntax:
        raise InputError(f"{name}: TransferSyntaxUID is missing or unknown; expected a standard one; export it again")
    if syntax.is_encapsulated:
        return _decoded(dataset, rows=rows, columns=columns, name=name)
    if len(data) != 2 * rows * columns:
        raise InputError(
            f"{name}: {len(data)} bytes of pixel data; expected {2 * rows * columns} for {rows} x {columns} pixels of 16 bits; "
            "copy or export it again"
        )
    order = "<" if syntax.is_little_endian else ">"
    values = np.frombuffer(data, dtype=f"{order}{'i' if signed else 'u'}2").astype("i2" if signed else "u2")
    # Old files keep overlays in the unused high bits: shifted out, and for signed values the sign is drawn down again.
    return (values << (16 - bits) >> (16 - bits)).reshape(rows, columns)


def _decoded(dataset: Dataset, *, rows: int, columns: int, name: str) -> NDArray:
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    try:
        _demand_declared_stream(dataset, rows=rows, columns=columns)
        if syntax in _JPEG:
            values = _decoded_by_gdcm(dataset)
        else:
            with warnings.catch_warnings(action="ignore"):
                values = pixel_array(dataset, raw=True)
        if values.size != rows * columns or values.dtype.kind not in "iu" or values.itemsize > 2:
            raise ValueError
    except Exception:  # decoders raise whatever they trip over
        raise InputError(
            f"{name}: its pixels cannot be unpacked ({syntax.name}); expected {rows} x {columns} intact pixels; "
            "copy or export it again"
        ) from None
    return values.reshape(rows, columns).astype(np.int16 if values.dtype.kind == "i" else np.uint16)


def _decoded_by_gdcm(dataset: Dataset) -> NDArray:
    """GDCM knows lossless JPEG, which pydicom's free decoders lack. It reads files alone, and rescales where it can: so it is
    handed a file with nothing but the pixels. It is not used where pydicom can do it: some damaged streams make it crash.
    """
    bare = Dataset()
    bare.SOPClassUID, bare.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    for field in (*_PIXEL_FIELDS, "PhotometricInterpretation", "PixelData"):
        setattr(bare, field, dataset[field].value)
    bare["PixelData"].is_undefined_length = True
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "slice.dcm"
        dcmwrite(path, bare, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        return sitk.GetArrayFromImage(reader.Execute())


def _demand_declared_stream(dataset: Dataset, *, rows: int, columns: int) -> None:
    """One frame, and a stream of the size that the header says: decoders allocate what the stream says.

    A JPEG 2000 stream of signed values under a header of unsigned ones is unpacked 32768 too high.
    """
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        return
    if _stream_size(frame) != (rows, columns) or (dataset.PixelRepresentation == 0 and _is_signed(frame)):
        raise ValueError


def _is_signed(frame: bytes) -> bool:
    """Whether a JPEG 2000 stream says that its values have a sign; others cannot say so."""
    start = frame.find(_JPEG_2000, 0, _MAX_BOXES)
    return start >= 0 and frame[start + 42] & 0x80 != 0


def _stream_size(frame: bytes) -> tuple[int, int]:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream declares. Raises ValueError when it declares none."""
    start = frame.find(_JPEG_2000, 0, _MAX_BOXES)
    if start >= 0:
        wide, high, left, top = struct.unpack(">4I", frame[start + 8 : start + 24])
        return high - top, wide - left
    start = 2
    while frame[start : start + 1] == b"\xff":
        marker, length = frame[start + 1], int.from_bytes(frame[start + 2 : start + 4], "big")
        if marker in _JPEG_FRAMES:
            precision, rows, columns, components = struct.unpack(">BHHB", frame[start + 4 : start + 10])
            # GDCM crashes on more bits.
            if not 2 <= precision <= 16 or components != 1:
                raise ValueError
            return rows, columns
        start += 2 + length
    raise ValueError
