"""DICOM SEG: real files voxel by voxel, every kind that highdicom writes, and files that cannot be used."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.seg import SegmentationTypeValues
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pack_bits
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from segsweep.data.dicom_seg import read_segments, segment_names
from segsweep.data.geometry import Geometry
from segsweep.data.readers import Reference, Scan, read_labels
from segsweep.errors import InputError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "dcmqi_seg"
NAMES = {"heart": "Heart", "tumour": "Tumour"}
SHAPE = (4, 6, 5)


def series(*, oblique: bool = False) -> list[Dataset]:
    """Headers of four slices, 2.5 mm apart, 0.8 (y) x 0.7 mm (x), in no order of position."""
    row, column = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    if oblique:
        row, column = np.array([0.0, -0.8, 0.6]), np.array([-1.0, 0.0, 0.0])
    normal = np.cross(row, column)
    uids = [generate_uid(entropy_srcs=[name]) for name in ("study", "series", "frame")]
    slices = []
    for number in (2, 0, 3, 1):
        item = Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[str(number)])
        item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = uids
        item.Modality, item.PatientID, item.PatientName = "CT", "1", "A^B"
        item.PatientBirthDate = item.PatientSex = item.AccessionNumber = item.StudyID = ""
        item.StudyDate = item.StudyTime = item.ReferringPhysicianName = ""
        item.Rows, item.Columns, item.InstanceNumber, item.SeriesNumber = SHAPE[1], SHAPE[2], number + 1, 1
        item.PixelSpacing, item.SliceThickness = [0.8, 0.7], 2.5
        item.ImageOrientationPatient = [*row, *column]
        item.ImagePositionPatient = [float(value) for value in np.array([-7.0, 3.0, 11.0]) + 2.5 * number * normal]
        slices.append(item)
    return slices


def scan(slices: list[Dataset]) -> Scan:
    ordered = sorted(slices, key=lambda item: item.InstanceNumber)
    first = ordered[0]
    cosines = np.reshape([float(value) for value in first.ImageOrientationPatient], (2, 3))
    direction = np.stack([*cosines, np.cross(cosines[0], cosines[1])], axis=1)
    origin = tuple(float(value) for value in first.ImagePositionPatient)
    geometry = Geometry(
        shape=SHAPE,
        spacing=(2.5, 0.8, 0.7),
        origin=origin,  # type: ignore[arg-type]
        direction=tuple(direction.ravel().tolist()),
    )
    reference = Reference(
        frame_of_reference=first.FrameOfReferenceUID,
        series_uid=first.SeriesInstanceUID,
        sop_uids=tuple(item.SOPInstanceUID for item in ordered),
        files=(),
    )
    return Scan(voxels=np.zeros(SHAPE, dtype=np.int16), geometry=geometry, digest="", reference=reference)


def masks() -> np.ndarray:
    """(z, y, x, segment): a heart, and a tumour that lies partly in it; the first and last slices are empty for the tumour."""
    voxels = np.zeros((*SHAPE, 2), dtype=bool)
    voxels[0:3, 1:5, 1:4, 0] = True
    voxels[1:3, 3:6, 2:5, 1] = True
    return voxels


def segment(number: int) -> highdicom.seg.SegmentDescription:
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=list(NAMES)[number - 1],
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def write(
    path: Path,
    *,
    slices: list[Dataset],
    pixels: np.ndarray,
    kind: SegmentationTypeValues = SegmentationTypeValues.BINARY,
    change: Callable[[Dataset], object] = lambda _: None,
    syntax: str = ExplicitVRLittleEndian,
) -> Path:
    """A SEG of `pixels` (z, y, x, segment), or (z, y, x) for a label map, as highdicom writes it."""
    ordered = sorted(slices, key=lambda item: item.InstanceNumber)
    dataset = highdicom.seg.Segmentation(
        source_images=ordered,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[segment(1), segment(2)],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="0",
        device_serial_number="0",
        transfer_syntax_uid=syntax,
    )
    change(dataset)
    dataset.save_as(path)
    return path


def read(path: Path, *, image: Scan) -> dict[str, np.ndarray]:
    return dict(read_segments(path, scan=image, names=NAMES))


@pytest.mark.parametrize("oblique", [False, True])
def test_binary_segments_that_overlap(oblique: bool, tmp_path: Path) -> None:
    slices = series(oblique=oblique)
    path = write(tmp_path / "a.dcm", slices=slices, pixels=masks())
    found = read(path, image=scan(slices))
    np.testing.assert_array_equal(found["Heart"], masks()[..., 0])
    np.testing.assert_array_equal(found["Tumour"], masks()[..., 1])
    assert segment_names(path) == tuple(NAMES)


def test_frames_are_placed_by_position_not_by_order(tmp_path: Path) -> None:
    def shuffle(dataset: Dataset) -> None:
        frames = list(dataset.PerFrameFunctionalGroupsSequence)
        planes = dataset.pixel_array
        order = np.random.default_rng(0).permutation(len(frames))
        dataset.PerFrameFunctionalGroupsSequence = [frames[index] for index in order]
        dataset.PixelData = pack_bits(planes[order])

    slices = series()
    path = write(tmp_path / "a.dcm", slices=slices, pixels=masks(), change=shuffle)
    np.testing.assert_array_equal(read(path, image=scan(slices))["Tumour"], masks()[..., 1])


def test_a_scan_in_another_axis_order(tmp_path: Path) -> None:
    slices = series()
    image = scan(slices)
    far = image.geometry.position((SHAPE[0] - 1, 0, 0))
    turned = replace(image.geometry, origin=tuple(far.tolist()), direction=(1, 0, 0, 0, 1, 0, 0, 0, -1))
    path = write(tmp_path / "a.dcm", slices=slices, pixels=masks())
    found = read(path, image=replace(image, geometry=turned))
    np.testing.assert_array_equal(found["Heart"], masks()[::-1, ..., 0])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_a_fraction_counts_from_one_half(syntax: str, tmp_path: Path) -> None:
    slices = series()
    fractions = masks().astype("f4") * np.linspace(0.1, 1, 5)[None, None, :, None].astype("f4")
    path = write(
        tmp_path / "a.dcm", slices=slices, pixels=fractions, kind=SegmentationTypeValues.FRACTIONAL, syntax=syntax
    )
    np.testing.assert_array_equal(read(path, image=scan(slices))["Heart"], fractions[..., 0] >= 0.5)


def test_a_label_map(tmp_path: Path) -> None:
    slices = series()
    values = np.where(masks()[..., 1], 2, masks()[..., 0]).astype(np.uint8)
    path = write(tmp_path / "a.dcm", slices=slices, pixels=values, kind=SegmentationTypeValues.LABELMAP)
    found = read(path, image=scan(slices))
    np.testing.assert_array_equal(found["Heart"], values == 1)
    np.testing.assert_array_equal(found["Tumour"], values == 2)
    assert set(segment_names(path)) == set(NAMES)


def test_names_left_out_are_not_read_and_a_scan_from_another_format_is_placed_alike(tmp_path: Path) -> None:
    slices = series()
    path = write(tmp_path / "a.dcm", slices=slices, pixels=masks())
    image = replace(scan(slices), reference=None)
    found = dict(read_segments(path, scan=image, names={"tumour": "Tumour", "lung": "Lung"}))
    assert list(found) == ["Tumour"]
    np.testing.assert_array_equal(found["Tumour"], masks()[..., 1])


def assign(**values: object) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return change


def another_series(dataset: Dataset) -> None:
    reference = dataset.ReferencedSeriesSequence[0]
    reference.SeriesInstanceUID = generate_uid()
    for item in reference.ReferencedInstanceSequence:
        item.ReferencedSOPInstanceUID = generate_uid()


def moved(dataset: Dataset) -> None:
    position = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    position.ImagePositionPatient = [float(value) + 1.0 for value in position.ImagePositionPatient]


def outside(dataset: Dataset) -> None:
    position = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    position.ImagePositionPatient = [
        *position.ImagePositionPatient[:2],
        float(position.ImagePositionPatient[2]) + 250.0,
    ]


def coarser(dataset: Dataset) -> None:
    """Frames as of a grid with slices twice as far apart."""
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 5.0
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        position = groups.PlanePositionSequence[0]
        number = round((float(position.ImagePositionPatient[2]) - 11.0) / 2.5)
        position.ImagePositionPatient = [*position.ImagePositionPatient[:2], 11.0 + 5.0 * (number // 2)]


def sheared(dataset: Dataset) -> None:
    orientation = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.5, 0.5, 0.0]


def without_positions(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence


def same_number(dataset: Dataset) -> None:
    dataset.SegmentSequence[1].SegmentNumber = 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (assign(FrameOfReferenceUID=generate_uid()), "another frame of reference"),
        (another_series, "drawn on another series"),
        (moved, "lies on another grid"),
        (outside, "reaches beyond the image"),
        (coarser, "drawn on slices 5 mm apart"),
        (sheared, "not at right angles"),
        (without_positions, "PlanePositionSequence is missing"),
        (same_number, "two segments have number 1"),
        (assign(Rows=0), "Rows is 0; expected 1 to"),
        (assign(Columns=60000), "Columns is 60000; expected 1 to"),
        (assign(NumberOfFrames=900_000_000), "NumberOfFrames is 9e.08; expected 1 to"),
        (assign(NumberOfFrames=3), "of 3 frames are described"),
        (assign(BitsAllocated=8), "8 bits a voxel"),
        (assign(PixelData=b"\0\0"), "2 bytes of pixel data"),
        (assign(PixelData=None), "0 bytes of pixel data"),
        (assign(SegmentSequence=None), "SegmentSequence is empty"),
        (assign(SegmentationType="SURFACE"), "SegmentationType is unknown"),
        (assign(Modality="CT"), "no DICOM SEG"),
    ],
)
def test_files_that_cannot_be_used(change: Callable[[Dataset], None], word: str, tmp_path: Path) -> None:
    slices = series()
    path = write(tmp_path / "broken.dcm", slices=slices, pixels=masks(), change=change)
    with pytest.raises(InputError, match=rf"broken\.dcm.*{word}"):
        read(path, image=scan(slices))


def test_damaged_files(tmp_path: Path) -> None:
    slices = series()
    path = write(tmp_path / "cut.dcm", slices=slices, pixels=masks())
    whole = path.read_bytes()
    for size in (0, 100, 140, 400, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.dcm"):
            read(path, image=scan(slices))
    with pytest.raises(InputError, match=r"absent\.dcm is not there"):
        segment_names(tmp_path / "absent.dcm")


def test_a_preface_without_a_transfer_syntax(tmp_path: Path) -> None:
    slices = series()
    path = write(tmp_path / "a.dcm", slices=slices, pixels=masks())
    dataset = pydicom.dcmread(path)
    del dataset.file_meta.TransferSyntaxUID
    dataset.save_as(path, implicit_vr=True, little_endian=True)
    with pytest.raises(InputError, match=r"a\.dcm: TransferSyntaxUID is missing"):
        read(path, image=scan(slices))


def test_a_file_deflated_as_a_whole_is_not_inflated(tmp_path: Path) -> None:
    slices = series()

    def deflate(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    path = write(tmp_path / "a.dcm", slices=slices, pixels=masks(), change=deflate)
    with pytest.raises(InputError, match=r"a\.dcm is deflated"):
        read(path, image=scan(slices))


def test_frames_that_cannot_be_decoded(tmp_path: Path) -> None:
    slices = series()

    def spoil(dataset: Dataset) -> None:
        dataset.PixelData = encapsulate([b"\xff\xff" * 40] * int(dataset.NumberOfFrames))

    fractions = masks().astype("f4")
    path = write(
        tmp_path / "a.dcm",
        slices=slices,
        pixels=fractions,
        kind=SegmentationTypeValues.FRACTIONAL,
        change=spoil,
        syntax=RLELossless,
    )
    with pytest.raises(InputError, match=r"a\.dcm: frame 1 cannot be decoded \(RLE Lossless\)"):
        read(path, image=scan(slices))


@pytest.mark.skipif(not DATA.is_dir(), reason="the dcmqi example is not here")
def test_a_real_liver_voxel_by_voxel() -> None:
    drawn = read_labels(DATA / "liver_seg.nrrd")
    image = Scan(voxels=drawn.voxels, geometry=drawn.geometry, digest="")
    ((structure, mask),) = read_segments(DATA / "liver.dcm", scan=image, names={"Liver": "liver"})
    assert structure == "liver"
    np.testing.assert_array_equal(mask, drawn.voxels == 1)


@pytest.mark.skipif(not DATA.is_dir(), reason="the dcmqi example is not here")
def test_real_partial_overlaps_as_highdicom_reads_them() -> None:
    theirs = highdicom.seg.segread(DATA / "partial_overlaps.dcm")
    image = read_labels(DATA / "liver_seg.nrrd")
    slices = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted((DATA / "ct-3slice").glob("*.dcm"))]
    slices.sort(key=lambda item: float(item.ImagePositionPatient[2]))
    voxels = theirs.get_pixels_by_source_instance(
        [item.SOPInstanceUID for item in slices], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    names = segment_names(DATA / "partial_overlaps.dcm")
    assert names == ("GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE")
    found = dict(read_segments(DATA / "partial_overlaps.dcm", scan=image, names={name: name.lower() for name in names}))
    for number, name in enumerate(names):
        np.testing.assert_array_equal(found[name.lower()], voxels[..., number] > 0, err_msg=name)
    assert sum(int(mask.sum()) for mask in found.values()) == 9602 + 11888 + 117 + 117 + 10509 + 6693 + 4713
