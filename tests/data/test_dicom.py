"""DICOM series: every voxel at its place in the patient in any orientation, and one clear error for what is no sound stack."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from segsweep.data.case import CaseSource, Series
from segsweep.data.dicom import describe_series, find_series, read_series, series_digest
from segsweep.data.geometry import Geometry
from segsweep.data.readers import read_labels, read_scan
from segsweep.data.reading import read_case, source_digests
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TILT = 0.35
# Directions of a row and of a column in the patient, LPS, as scanners write them.
ORIENTATIONS = {
    "axial, head first supine": ((1, 0, 0), (0, 1, 0)),
    "axial, feet first prone": ((-1, 0, 0), (0, -1, 0)),
    "decubitus left": ((0, -1, 0), (1, 0, 0)),
    "decubitus right": ((0, 1, 0), (-1, 0, 0)),
    "axial, seen from the head": ((-1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": ((np.cos(TILT), 0, np.sin(TILT)), (0, 1, 0)),
    "doubly oblique": ((0.6, 0.64, 0.48), (-0.8, 0.48, 0.36)),
}


def positions(geometry: Geometry) -> np.ndarray:
    """LPS mm (z, y, x, 3) of all voxels of a grid, by ITK's own arithmetic."""
    grid = sitk.Image(geometry.shape[::-1], sitk.sitkUInt8)
    grid.SetSpacing(geometry.spacing[::-1])
    grid.SetOrigin(geometry.origin)
    grid.SetDirection(geometry.direction)
    index = np.ndindex(geometry.shape)
    points = [grid.TransformIndexToPhysicalPoint([int(x), int(y), int(z)]) for z, y, x in index]
    return np.reshape(points, (*geometry.shape, 3))


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_voxel_lies_at_its_place_in_the_patient(name: str, dicom: Any) -> None:
    row, column = ORIENTATIONS[name]
    scan = read_series(dicom.series(row=row, column=column))
    assert scan.geometry.shape == dicom.shape
    assert scan.geometry.spacing == pytest.approx(dicom.spacing)
    assert scan.voxels.dtype == np.int16
    np.testing.assert_allclose(scan.voxels, dicom.anatomy(positions(scan.geometry)), atol=1)
    canonical = scan.geometry.canonical()
    turned = scan.geometry.reorientation.apply(scan.voxels).astype(int)
    assert turned[0, 0, -1] - turned[0, 0, 0] > 100, "x must grow to the patient's left, where values grow most"
    np.testing.assert_allclose(turned, dicom.anatomy(positions(canonical)), atol=1)


def test_one_patient_scanned_two_ways_is_the_same_inside(dicom: Any) -> None:
    scans = [
        read_series(dicom.series(name, row=ORIENTATIONS[name][0], column=ORIENTATIONS[name][1]))
        for name in ("axial, head first supine", "axial, feet first prone")
    ]
    supine, prone = (scan.geometry.reorientation.apply(scan.voxels) for scan in scans)
    assert not np.array_equal(scans[0].voxels, scans[1].voxels)
    np.testing.assert_array_equal(supine, prone)
    assert scans[0].geometry.canonical().same_grid(scans[1].geometry.canonical())


def test_slices_are_ordered_by_position_and_their_uids_follow(dicom: Any) -> None:
    series = dicom.series()
    scan = read_series(series)
    backwards = read_series(Series(files=series.files[::-1]))
    np.testing.assert_array_equal(scan.voxels, backwards.voxels)
    assert scan.geometry == backwards.geometry
    assert scan.reference == backwards.reference
    assert scan.reference is not None
    assert scan.reference.sop_uids == ("1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4", "1.2.3.5")
    assert (scan.reference.series_uid, scan.reference.frame_of_reference) == ("1.2.3", "1.2.9")
    assert "1.2" not in repr(scan.reference)


def test_the_digest_is_that_of_the_contents(dicom: Any) -> None:
    series = dicom.series()
    digest = read_series(series).digest
    assert series_digest(Series(files=series.files[::-1])) == digest
    moved = series.files[0].rename(series.files[0].with_name("zz.dcm"))
    assert series_digest(Series(files=(*series.files[1:], moved))) == digest
    moved.write_bytes(moved.read_bytes()[:-1] + b"\x01")
    assert series_digest(Series(files=(*series.files[1:], moved))) != digest


def test_a_case_may_be_a_series(dicom: Any) -> None:
    series = dicom.series()
    source = CaseSource(case_id="a", images=(series,))
    case = read_case(source, labels=LabelSet(structures=("liver",)))
    assert case.digests == source_digests(source) == (series_digest(series),)
    np.testing.assert_array_equal(case.images[0], read_series(series).voxels)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_byte_order_makes_no_difference(syntax: str, dicom: Any) -> None:
    def swap(slices: list[Dataset]) -> None:
        for item in slices:
            item.PixelData = np.frombuffer(item.PixelData, "<u2").astype(">u2").tobytes()

    expected = read_series(dicom.series("little"))
    found = read_series(dicom.series("other", syntax=syntax, edit=swap if syntax == ExplicitVRBigEndian else None))
    np.testing.assert_array_equal(found.voxels, expected.voxels)


def test_values_are_rescaled_slice_by_slice(dicom: Any) -> None:
    def scale(slices: list[Dataset]) -> None:
        for k, item in enumerate(slices):
            item.SOPClassUID, item.Modality = "1.2.840.10008.5.1.4.1.1.128", "PT"
            item.RescaleSlope, item.RescaleIntercept = 0.25 + k, 0
            item.PixelData = np.arange(56, dtype="<u2").tobytes()

    scan = read_series(dicom.series(edit=scale))
    assert scan.voxels.dtype == np.float32
    expected = np.arange(56).reshape(1, 8, 7) * (0.25 + np.arange(5).reshape(5, 1, 1))
    np.testing.assert_array_equal(scan.voxels, expected.astype(np.float32))


def test_signed_values_of_12_bits_ignore_what_lies_above_them(dicom: Any) -> None:
    stored = np.arange(56) - 28

    def pack(slices: list[Dataset]) -> None:
        for item in slices:
            item.BitsStored, item.HighBit, item.PixelRepresentation = 12, 11, 1
            item.PixelData = ((stored & 0xFFF) | 0x5000).astype("<u2").tobytes()

    scan = read_series(dicom.series(edit=pack))
    np.testing.assert_array_equal(scan.voxels[0].ravel(), stored - 1024)


def test_positions_count_and_not_the_slice_thickness(dicom: Any) -> None:
    def thicken(slices: list[Dataset]) -> None:
        for item in slices:
            item.SliceThickness = 9.0

    assert read_series(dicom.series(edit=thicken)).geometry.spacing[0] == pytest.approx(3.0)


def test_positions_with_one_decimal_are_regular(dicom: Any) -> None:
    def round_off(slices: list[Dataset]) -> None:
        for k, item in enumerate(slices):
            item.ImagePositionPatient = [1.0, 2.0, round(k * 3.27, 1)]

    assert read_series(dicom.series(edit=round_off)).geometry.spacing[0] == pytest.approx(13.1 / 4)


def test_mr_without_rescaling_is_read_as_stored(dicom: Any) -> None:
    def make_mr(slices: list[Dataset]) -> None:
        for item in slices:
            item.SOPClassUID, item.Modality = "1.2.840.10008.5.1.4.1.1.4", "MR"
            del item.RescaleSlope, item.RescaleIntercept

    scan = read_series(dicom.series(edit=make_mr))
    np.testing.assert_array_equal(scan.voxels, read_series(dicom.series("ct")).voxels + 1024)


def test_all_series_of_a_folder_are_found(dicom: Any) -> None:
    dicom.series("a")
    dicom.series("b", edit=lambda slices: [setattr(item, "SeriesInstanceUID", "1.2.5") for item in slices])
    dicom.series(
        "scout", edit=lambda slices: [setattr(item, "ImageType", ["ORIGINAL", "LOCALIZER"]) for item in slices]
    )
    dicom.series(
        "screen", edit=lambda slices: [setattr(item, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.7") for item in slices]
    )
    dicom.structures({})
    (dicom.folder / "notes.txt").write_text("no DICOM")
    (dicom.folder / "._1.dcm").touch()
    found = find_series(dicom.folder)
    assert [describe_series(series).uid for series in found] == ["1.2.3", "1.2.5"]
    info = describe_series(found[0])
    assert (info.modality, info.num_slices, info.frame_of_reference) == ("CT", 5, "1.2.9")
    assert set(info.sop_uids) == {f"1.2.3.{k}" for k in range(1, 6)}
    assert "1.2" not in repr(info)
    (dicom.folder / "a" / "empty.dcm").touch()
    assert [len(series.files) for series in find_series(dicom.folder)] == [5, 1, 5]


def test_a_folder_that_cannot_be_searched_is_refused(dicom: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(InputError, match="nowhere is no folder"):
        find_series(dicom.folder / "nowhere")
    outside = tmp_path_factory.mktemp("outside") / "secret.dcm"
    outside.write_bytes(dicom.series().files[0].read_bytes())
    for name, target in (("link.dcm", outside), ("patient", outside.parent), ("gone", outside.with_name("gone.dcm"))):
        link = dicom.folder / name
        link.symlink_to(target)
        with pytest.raises(InputError, match=rf"{name} is a link (out of|to nothing)"):
            find_series(dicom.folder)
        link.unlink()


def test_hidden_files_and_what_links_inside_stand_for_are_taken_once(dicom: Any) -> None:
    series = dicom.series()
    for path in series.files:
        kept = dicom.folder / ".objects" / path.name
        kept.parent.mkdir(exist_ok=True)
        path.rename(kept)
        path.symlink_to(kept)
    (dicom.folder / "again").symlink_to(series.files[0].parent)
    (found,) = find_series(dicom.folder)
    assert read_series(found).voxels.shape[0] == len(found.files) == 5


def each(**values: object) -> Callable[[Any, list[Dataset]], None]:
    """Sets elements in every slice; None deletes."""

    def edit(_: Any, slices: list[Dataset]) -> None:
        for item in slices:
            for keyword, value in values.items():
                item.pop(keyword, None) if value is None else setattr(item, keyword, value)

    return edit


def one(**values: object) -> Callable[[Any, list[Dataset]], None]:
    """Sets elements in the third slice alone."""
    return lambda writer, slices: each(**values)(writer, slices[2:3])


def garbled(keyword: str, value: bytes, *, vr: str = "DS") -> Callable[[Any, list[Dataset]], None]:
    return lambda writer, slices: writer.garble(slices[2], keyword, value, vr=vr)


def move(*heights: float) -> Callable[[Any, list[Dataset]], None]:
    """Puts the slices at these heights."""

    def edit(_: Any, slices: list[Dataset]) -> None:
        for item, height in zip(slices, heights, strict=True):
            item.ImagePositionPatient = [1.0, 2.0, height]

    return edit


def tilted(_: Any, slices: list[Dataset]) -> None:
    """A gantry tilt of 10 degrees: the table moves along z, the slices' normal does not."""
    for k, item in enumerate(slices):
        item.ImageOrientationPatient = [1, 0, 0, 0, round(float(np.cos(0.1745)), 7), round(float(np.sin(0.1745)), 7)]
        item.ImagePositionPatient = [1.0, 2.0, 3.0 * k]


def drop(*, first: int, last: int) -> Callable[[Any, list[Dataset]], None]:
    return lambda _, slices: slices.__delitem__(slice(first, last))


def cut(_: Any, slices: list[Dataset]) -> None:
    slices[2].PixelData = slices[2].PixelData[:-20]


def grow(_: Any, slices: list[Dataset]) -> None:
    slices[2].PixelData += b"\0\0"


BROKEN: dict[str, tuple[Callable[[Any, list[Dataset]], Any], str]] = {
    "two series": (one(SeriesInstanceUID="1.2.8"), "series holds several series: 12.dcm is of another one"),
    "a missing slice": (drop(first=2, last=3), r"are 6\.00 mm apart, most slices 3\.00 mm"),
    "a gap": (move(0, 3, 6, 12, 15), r"are 6\.00 mm apart, most slices 3\.00 mm"),
    "irregular steps": (move(0, 3, 6, 8, 12), "expected regular steps"),
    "a slice too many": (move(0, 1.5, 3, 6, 9), "expected regular steps"),
    "a doubled slice": (move(0, 3, 3, 6, 9), "12.dcm and 31.dcm lie at one position"),
    "all at one position": (move(0, 0, 0, 0, 0), "lie at one position"),
    "slices too far apart": (move(0, 30, 60, 90, 120), "are 30 mm apart; expected 0.05 to 20.0"),
    "a tilted gantry": (tilted, "as with a gantry tilt of 10.0 degrees"),
    "one slice shifted": (one(ImagePositionPatient=[17.0, -33.05, 41.0]), "shifted against each other by up to"),
    "one slice alone": (drop(first=1, last=5), "is a single slice"),
    "mixed orientation": (one(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "ImageOrientationPatient of .* not that of"),
    "one slice upside down": (one(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]), "ImageOrientationPatient of"),
    "mixed rows": (one(Rows=7, PixelData=bytes(98)), "Rows or Columns of 12.dcm is not that of"),
    "mixed columns": (one(Columns=8, PixelData=bytes(128)), "Rows or Columns of"),
    "mixed spacing": (one(PixelSpacing=[0.8, 0.71]), "PixelSpacing of"),
    "mixed frames of reference": (one(FrameOfReferenceUID="1.2.7"), "FrameOfReferenceUID of"),
    "no position": (one(ImagePositionPatient=None), "12.dcm: ImagePositionPatient is missing"),
    "no orientation": (one(ImageOrientationPatient=None), "12.dcm: ImageOrientationPatient is missing"),
    "no spacing": (one(PixelSpacing=None), "12.dcm: PixelSpacing is missing"),
    "an empty position": (garbled("ImagePositionPatient", b""), "ImagePositionPatient is missing"),
    "two numbers as position": (garbled("ImagePositionPatient", b"1\\2 "), "expected 3 finite numbers"),
    "text as position": (garbled("ImagePositionPatient", b"Canary\\2\\3"), "expected 3 finite numbers"),
    "NaN as position": (garbled("ImagePositionPatient", b"nan\\2\\3 "), "expected 3 finite numbers"),
    "infinite position": (garbled("ImagePositionPatient", b"1e999\\2\\3 "), "expected 3 finite numbers"),
    "no right angle": (one(ImageOrientationPatient=[1, 0, 0, 0.3, 0.954, 0]), "two unit vectors at a right angle"),
    "no unit vector": (one(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]), "two unit vectors at a right angle"),
    "a zero orientation": (one(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), "two unit vectors at a right angle"),
    "zero spacing": (one(PixelSpacing=[0, 0.7]), r"PixelSpacing is out of 0\.05 to 20\.0 mm"),
    "negative spacing": (one(PixelSpacing=[0.8, -0.7]), "PixelSpacing is out of"),
    "spacing in micrometres": (one(PixelSpacing=[800, 700]), "PixelSpacing is out of"),
    "a localizer": (one(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "12.dcm is a localizer"),
    "an ultrasound": (each(Modality="US"), "expected one of CT, MR or PET"),
    "a screen shot": (one(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "expected one of CT, MR or PET"),
    "an enhanced CT": (each(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1"), "NumberOfFrames is missing"),
    "several frames": (one(NumberOfFrames=3), "many frames in one file"),
    "colour": (one(SamplesPerPixel=3, PixelData=bytes(336)), "SamplesPerPixel is 3; expected 1"),
    "a palette": (one(PhotometricInterpretation="PALETTE COLOR"), "its pixels are no grey values"),
    "8 bits": (one(BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=bytes(56)), "BitsAllocated is 8; expected 16"),
    "bits out of place": (one(BitsStored=12, HighBit=15), "HighBit is 15; expected 11"),
    "more bits than there are": (one(BitsStored=17, HighBit=16), "BitsStored is 17; expected 2 to 16"),
    "no rows": (one(Rows=0), "Rows is 0; expected 1 to 4096"),
    "no pixel data": (one(PixelData=None), "12.dcm holds no pixel data"),
    "pixel data cut off": (cut, "12.dcm: 92 bytes of pixel data; expected 112"),
    "too much pixel data": (grow, "12.dcm: 114 bytes of pixel data; expected 112"),
    "rescaled by NaN": (garbled("RescaleSlope", b"nan "), "RescaleSlope is garbled or not finite"),
    "rescaled by zero": (one(RescaleSlope=0), "expected at most 1e.06 and a slope that is not 0"),
    "rescaled beyond reason": (one(RescaleIntercept=1e9), "expected at most 1e.06"),
    "CT without rescaling": (one(RescaleSlope=None), "RescaleSlope is missing"),
    "a table of values": (one(ModalityLUTSequence=[Dataset()]), "has a table for its values"),
    "constant": (each(PixelData=bytes(112)), "all voxels are -1024"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_series_are_refused(name: str, dicom: Any, capfd: pytest.CaptureFixture[str]) -> None:
    edit, message = BROKEN[name]
    series = dicom.series(edit=lambda slices: edit(dicom, slices))
    with pytest.raises(InputError, match=message) as caught:
        read_series(series)
    said = str(caught.value) + "".join(capfd.readouterr())
    assert dicom.canary not in said
    assert "Canary" not in said
    assert str(dicom.folder) not in said


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (Path.unlink, "is not there"),
    "empty": (rewrite(lambda _: b""), "is no DICOM file"),
    "text": (rewrite(lambda _: b"Canary^Patient" * 99), "is no DICOM file"),
    "its preface only": (rewrite(lambda data: data[:132]), "00.dcm"),
    "its header cut": (rewrite(lambda data: data[:500]), "00.dcm"),
    "half of its pixels": (rewrite(lambda data: data[:-60]), "00.dcm"),
    "noise after the preface": (rewrite(lambda data: data[:132] + bytes(range(256)) * 4), "00.dcm"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(name: str, dicom: Any, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = DAMAGED[name]
    series = dicom.series()
    damage(series.files[0])
    with pytest.raises(InputError, match=message) as caught:
        read_series(series)
    assert dicom.canary not in str(caught.value) + "".join(capfd.readouterr())


def test_no_bit_flip_in_a_header_ends_in_another_error(dicom: Any) -> None:
    series = dicom.series()
    path, expected = series.files[0], read_series(series)
    original, random = path.read_bytes(), np.random.default_rng(0)
    header = original.index(b"\xe0\x7f\x10\x00")
    refused = 0
    for position in random.integers(132, header + 12, 300):
        changed = bytearray(original)
        changed[position] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(changed))
        try:
            assert read_series(series).voxels.shape == expected.voxels.shape
        except InputError:
            refused += 1
    assert refused > 100


def test_deflated_files_are_refused(dicom: Any) -> None:
    with pytest.raises(InputError, match="is deflated as a whole"):
        read_series(dicom.series(syntax=DeflatedExplicitVRLittleEndian))


def test_a_file_without_access_is_told(dicom: Any) -> None:
    path = dicom.series().files[0]
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(InputError, match="cannot be read"):
        find_series(dicom.folder)


def test_no_files_are_no_series() -> None:
    with pytest.raises(InputError, match="a series without files"):
        read_series(Series(files=()))


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize(
    "folder", ["ibsi_sts/dicom/STS_002/CT/image", "totalsegmentator/abd_dicom_series", "dcmqi_seg/ct-3slice"]
)
def test_real_series_are_read_as_itk_reads_them(folder: str) -> None:
    (series,) = find_series(DATA / folder)
    scan = read_series(series)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(DATA / folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(scan.voxels, sitk.GetArrayFromImage(image))
    assert scan.geometry.spacing[::-1] == pytest.approx(image.GetSpacing())
    assert scan.geometry.origin == pytest.approx(image.GetOrigin())


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
def test_jpeg_2000_lies_on_the_grid_of_its_label_map() -> None:
    (series,) = find_series(DATA / "totalsegmentator" / "abd_dicom_series")
    scan = read_series(series)
    assert scan.geometry.spacing[0] == pytest.approx(2.0), "its SliceThickness says 3"
    label = read_labels(DATA / "totalsegmentator" / "abd_dicom_label117.nii.gz")
    assert scan.geometry.canonical().same_grid(label.geometry.canonical())


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
def test_a_series_equals_its_nifti() -> None:
    (series,) = find_series(DATA / "ibsi_sts" / "dicom")
    scan, nifti = read_series(series), read_scan(DATA / "ibsi_sts" / "STS_002_CT_image.nii.gz")
    np.testing.assert_array_equal(scan.voxels, nifti.voxels)
    assert scan.geometry.same_grid(nifti.geometry)
