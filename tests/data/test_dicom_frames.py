"""Enhanced images: every frame is a slice like those of a classic series, whatever their order in the file."""

from collections.abc import Callable
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from segsweep.data.case import Series
from segsweep.data.dicom import describe_series, find_series, read_series
from segsweep.data.rtstruct import read_structures
from segsweep.errors import InputError

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
ORDER = (3, 0, 4, 1, 2)


def group(**elements: Any) -> list[Dataset]:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return [item]


def merged(series: Series) -> Dataset:
    """An enhanced CT of the frames of a classic series in another order: slope 1 and 2 in turn, half the stored values with 2."""
    slices = sorted((pydicom.dcmread(path) for path in series.files), key=lambda item: str(item.SOPInstanceUID))
    one = slices[0]
    whole, shared, own, pixels = Dataset(), Dataset(), [], b""
    for keyword in (
        "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType", "Rows", "Columns", "SamplesPerPixel",
        "PhotometricInterpretation", "PixelRepresentation", "BitsAllocated", "BitsStored", "HighBit",
    ):  # fmt: skip
        setattr(whole, keyword, one.get(keyword))
    whole.SOPClassUID, whole.SOPInstanceUID, whole.NumberOfFrames = ENHANCED_CT, "1.2.3.100", len(slices)
    shared.PixelMeasuresSequence = group(PixelSpacing=one.PixelSpacing, SliceThickness=1.25)
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=one.ImageOrientationPatient)
    for place, number in enumerate(ORDER):
        slope, frame = 1 + place % 2, Dataset()
        frame.PlanePositionSequence = group(ImagePositionPatient=slices[number].ImagePositionPatient)
        frame.PixelValueTransformationSequence = group(RescaleSlope=slope, RescaleIntercept=-1024, RescaleType="HU")
        own.append(frame)
        pixels += (np.frombuffer(slices[number].PixelData, dtype="<u2") // slope).astype("<u2").tobytes()
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], own
    whole.PixelData = pixels
    return whole


@pytest.fixture
def enhanced(dicom: Any) -> Callable[..., Series]:
    def one(
        edit: Callable[[Dataset], Any] | None = None, *, syntax: str = ExplicitVRLittleEndian, **ways: Any
    ) -> Series:
        dataset = merged(dicom.series("classic", **ways))
        if edit:
            edit(dataset)
        path = dicom.write(dataset, "enhanced/image.dcm")
        if syntax != ExplicitVRLittleEndian:
            packed = pydicom.dcmread(path)
            packed.compress(syntax, generate_instance_uid=False)
            packed.save_as(path)
        return Series(files=(path,))

    return one


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless])
@pytest.mark.parametrize(
    "ways", [{}, {"row": (-1, 0, 0), "column": (0, -1, 0)}, {"row": (0, 1, 0), "column": (0, 0, -1)}]
)
def test_frames_are_the_slices_of_a_classic_series(
    ways: dict[str, Any], syntax: str, enhanced: Callable[..., Series], dicom: Any
) -> None:
    series = enhanced(syntax=syntax, **ways)
    found, classic = read_series(series), read_series(find_series(dicom.folder / "classic")[0])
    assert found.geometry == classic.geometry
    halved = [ORDER.index(number) % 2 for number in range(len(ORDER))]
    expected = classic.voxels.copy()
    for number, slope in enumerate(halved):
        expected[number] -= (expected[number] + 1024) % (1 + slope)
    np.testing.assert_array_equal(found.voxels, expected)
    assert found.reference is not None and set(found.reference.sop_uids) == {"1.2.3.100"}
    assert find_series(dicom.folder / "enhanced") == (series,)
    assert describe_series(series).num_slices == len(ORDER)


def test_agrees_with_highdicom(enhanced: Callable[..., Series]) -> None:
    series = enhanced()
    found, other = read_series(series), hd.imread(series.files[0]).get_volume(apply_modality_transform=True)
    order = [other.map_reference_to_indices(position[np.newaxis])[0, 0] for position in first_voxels(found.geometry)]
    np.testing.assert_array_equal(found.voxels, other.array[np.rint(order).astype(int)])


def first_voxels(geometry: Any) -> np.ndarray:
    places = np.arange(geometry.shape[0])[:, np.newaxis] * np.array([1, 0, 0])
    return np.asarray(geometry.origin) + places @ geometry.matrix.T


def test_structures_drawn_on_frames(enhanced: Callable[..., Series], dicom: Any) -> None:
    scan = read_series(enhanced())
    corners = np.array([[2, 1.5, 1.5], [2, 1.5, 4.5], [2, 5.5, 4.5], [2, 5.5, 1.5]]) @ scan.geometry.matrix.T
    contour = dicom.contour(np.asarray(scan.geometry.origin) + corners, uid="1.2.3.100")
    path = dicom.structures({"Heart": [contour]})
    ((_, mask),) = read_structures(path, scan=scan, names={"Heart": "heart"})
    assert mask[2, 2:6, 2:5].all() and mask.sum() == 12


def without(keyword: str) -> Callable[[Dataset], Any]:
    return lambda item: item.PerFrameFunctionalGroupsSequence[1].__delattr__(keyword)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda item: setattr(item, "NumberOfFrames", 4), "5 of 4 frames are described"),
        (lambda item: item.PerFrameFunctionalGroupsSequence.pop(), "4 of 5 frames are described"),
        (lambda item: setattr(item, "PixelData", item.PixelData[:-2]), "bytes of pixel data"),
        (without("PlanePositionSequence"), r"image\.dcm \(frame 2\): ImagePositionPatient is missing"),
        (without("PixelValueTransformationSequence"), r"image\.dcm \(frame 2\): RescaleSlope is missing"),
        (
            lambda item: item.PerFrameFunctionalGroupsSequence.__setitem__(1, item.PerFrameFunctionalGroupsSequence[0]),
            r"image\.dcm \(frame 1\) and image\.dcm \(frame 2\) lie at one position",
        ),
        (lambda item: item.__delattr__("SharedFunctionalGroupsSequence"), "ImageOrientationPatient is missing"),
    ],
)
def test_broken_images_are_refused(
    edit: Callable[[Dataset], Any], message: str, enhanced: Callable[..., Series]
) -> None:
    with pytest.raises(InputError, match=message):
        read_series(enhanced(edit))
