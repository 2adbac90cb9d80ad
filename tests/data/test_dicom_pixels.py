"""Compressed pixels come out as they went in, and a stream that lies about its size is refused before it is unpacked."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from segsweep.data.dicom import find_series, read_series
from segsweep.data.dicom_file import open_dicom
from segsweep.data.dicom_pixels import stored_values
from segsweep.errors import InputError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def wrapped(stream: bytes) -> Callable[[list[Dataset]], None]:
    def edit(slices: list[Dataset]) -> None:
        for item in slices:
            item.PixelData = encapsulate([stream])
            item["PixelData"].is_undefined_length = True

    return edit


def jpeg_2000(*, rows: int, columns: int) -> bytes:
    """The start of a stream, up to its size."""
    return (
        b"\xff\x4f\xff\x51"
        + struct.pack(">HHIIIIIIIIH", 41, 0, columns, rows, 0, 0, columns, rows, 0, 0, 1)
        + bytes(64)
    )


def jpeg(*, rows: int, columns: int, marker: int, bits: int = 16) -> bytes:
    return b"\xff\xd8\xff\xe0\x00\x04ab" + struct.pack(">BBHBHHB", 0xFF, marker, 11, bits, rows, columns, 1) + bytes(64)


def compress(path: Path, *, kind: str) -> None:
    """Packs the file's pixels, RLE with pydicom's encoder, JPEG with ITK's."""
    dataset = dcmread(path)
    if kind == "RLE":
        dataset.compress(RLELossless)
    else:
        writer, packed = sitk.ImageFileWriter(), path.with_name("packed.tmp")
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(kind)
        writer.SetFileName(str(packed))
        values = stored_values(dataset, name="a slice")
        writer.Execute(sitk.GetImageFromArray(values[np.newaxis]))
        other = dcmread(packed)
        dataset.file_meta.TransferSyntaxUID, dataset.PixelData = other.file_meta.TransferSyntaxUID, other.PixelData
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)


@pytest.mark.parametrize("kind", ["RLE", "JPEG", "JPEG2000"])
@pytest.mark.parametrize("signed", [False, True])
def test_compressed_slices_are_those_that_were_packed(kind: str, signed: bool, dicom: Any) -> None:
    values = np.arange(56).reshape(8, 7) * 300 - (9000 if signed else 0)

    def pack(slices: list[Dataset]) -> None:
        for item in slices:
            item.PixelRepresentation, item.RescaleSlope = int(signed), 2
            item.PixelData = values.astype("<i2" if signed else "<u2").tobytes()

    series = dicom.series(edit=pack)
    plain = read_series(series)
    for path in series.files:
        compress(path, kind=kind)
    packed = read_series(series)
    np.testing.assert_array_equal(packed.voxels, plain.voxels)
    np.testing.assert_array_equal(plain.voxels[0], 2 * values - 1024)
    assert packed.digest != plain.digest


@pytest.mark.parametrize(
    ("stream", "syntax"),
    [
        (jpeg_2000(rows=60000, columns=60000), JPEG2000Lossless),
        (b"\x00\x00\x00\x0cjP  " + jpeg_2000(rows=8, columns=60000), JPEG2000Lossless),
        (jpeg_2000(rows=8, columns=7), JPEG2000Lossless),
        (jpeg_2000(rows=8, columns=7)[:12], JPEG2000Lossless),
        (jpeg(rows=65535, columns=65535, marker=0xC3), JPEGLosslessSV1),
        (jpeg(rows=8, columns=7, marker=0xC3), JPEGLosslessSV1),
        (jpeg(rows=8, columns=7, marker=0xC3, bits=48), JPEGLosslessSV1),
        (jpeg(rows=65535, columns=65535, marker=0xF7), JPEGLSLossless),
        (b"\xff\xd8\xff\xd9", JPEGLSLossless),
        (b"no stream at all", JPEG2000Lossless),
        (bytes(64), RLELossless),
    ],
)
def test_streams_of_another_size_or_none_are_refused(
    stream: bytes, syntax: str, dicom: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    series = dicom.series(edit=wrapped(stream), syntax=syntax)
    with pytest.raises(InputError, match=r"\d\d\.dcm: its pixels cannot be unpacked .*; expected 8 x 7 intact pixels"):
        read_series(series)
    assert "".join(capfd.readouterr()) == ""


def test_signed_jpeg_2000_under_a_header_of_unsigned_values_is_refused(dicom: Any) -> None:
    path = dicom.series(edit=lambda slices: [setattr(item, "PixelRepresentation", 1) for item in slices]).files[0]
    compress(path, kind="JPEG2000")
    dataset = open_dicom(path)
    assert stored_values(dataset, name="a slice").dtype == np.int16
    dataset.PixelRepresentation = 0
    with pytest.raises(InputError, match="a slice: its pixels cannot be unpacked"):
        stored_values(dataset, name="a slice")


def test_no_bit_flip_in_a_lossless_jpeg_ends_in_another_error(dicom: Any) -> None:
    path = dicom.series().files[0]
    compress(path, kind="JPEG")
    dataset = open_dicom(path)
    (stream,) = generate_frames(dataset.PixelData, number_of_frames=1)
    refused = 0
    for position in range(len(stream)):
        changed = bytearray(stream)
        changed[position] ^= 1 << position % 8
        dataset.PixelData = encapsulate([bytes(changed)])
        try:
            assert stored_values(dataset, name="a slice").shape == (8, 7)
        except InputError:
            refused += 1
    assert refused > 20


def test_an_unknown_way_of_packing_is_refused(dicom: Any) -> None:
    dataset = open_dicom(dicom.series().files[0])
    dataset.file_meta.TransferSyntaxUID = UID("1.2.3.4")
    with pytest.raises(InputError, match="a slice: TransferSyntaxUID is missing or unknown"):
        stored_values(dataset, name="a slice")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
def test_jpeg_2000_is_unpacked_as_by_an_independent_decoder() -> None:
    (series,) = find_series(DATA / "totalsegmentator" / "abd_dicom_series")
    dataset = open_dicom(series.files[7])
    np.testing.assert_array_equal(stored_values(dataset, name="a slice"), dataset.pixel_array)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_jpeg_2000_stream_that_was_cut_is_refused(keep: float) -> None:
    (series,) = find_series(DATA / "totalsegmentator" / "abd_dicom_series")
    dataset = open_dicom(series.files[7])
    (stream,) = generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate([stream[: int(len(stream) * keep)]])
    with pytest.raises(InputError, match="its pixels cannot be unpacked"):
        stored_values(dataset, name="a slice")
