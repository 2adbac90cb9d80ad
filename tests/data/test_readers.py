"""Readers keep voxels and geometry exactly, and refuse what is no image or no label map."""

import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from segsweep.data.readers import (
    SUFFIXES,
    file_digest,
    is_scan,
    is_stack,
    open_stack,
    read_labels,
    read_scan,
    stem,
)
from segsweep.errors import InputError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WRITABLE = [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"]


def write(path: Path, voxels: np.ndarray) -> Path:
    image = sitk.GetImageFromArray(voxels, isVector=False)
    if voxels.ndim == 3:
        image.SetSpacing((1.5, 2.0, 3.0))
        image.SetOrigin((10.0, -20.0, 30.0))
    sitk.WriteImage(image, str(path))
    return path


def ramp(kind: str = "i2") -> np.ndarray:
    return (np.arange(60).reshape(3, 4, 5) * 7 - 100).astype(kind)


@pytest.mark.parametrize("suffix", WRITABLE)
def test_voxels_and_geometry_are_kept(suffix: str, tmp_path: Path) -> None:
    scan = read_scan(write(tmp_path / f"a{suffix}", ramp()))
    np.testing.assert_array_equal(scan.voxels, ramp())
    assert scan.voxels.dtype == np.int16
    assert scan.geometry.shape == (3, 4, 5)
    assert scan.geometry.spacing == pytest.approx((3.0, 2.0, 1.5))
    assert scan.geometry.origin == pytest.approx((10.0, -20.0, 30.0))


@pytest.mark.parametrize("suffix", WRITABLE)
def test_suffixes_may_be_in_capitals(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{suffix}", ramp())
    scan = read_scan(path.rename(tmp_path / f"a{suffix.upper()}"))
    np.testing.assert_array_equal(scan.voxels, ramp())
    assert scan.digest == file_digest(tmp_path / f"a{suffix.upper()}")


@pytest.mark.parametrize(
    ("voxels", "kind"),
    [
        (ramp("f8"), np.int16),
        (ramp("f4") + 0.5, np.float32),
        (ramp("i4") * 1000, np.float32),
        (ramp("u1"), np.int16),
        (np.where(ramp() < 0, -3024, ramp()).astype("i2"), np.int16),
    ],
)
def test_int16_exactly_where_lossless(voxels: np.ndarray, kind: type, tmp_path: Path) -> None:
    scan = read_scan(write(tmp_path / "a.nii.gz", voxels))
    assert scan.voxels.dtype == kind
    np.testing.assert_array_equal(scan.voxels, voxels)


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(suffix: str, value: float, tmp_path: Path) -> None:
    voxels = ramp("f4")
    voxels[1, 1, 1] = value
    with pytest.raises(InputError, match="NaN"):
        read_scan(write(tmp_path / f"a{suffix}", voxels))


@pytest.mark.parametrize("name", ["M.nii.GZ", "M.Nii.gz", "M.Nii"])
def test_a_nifti_suffix_may_be_in_mixed_capitals(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name.lower(), ramp()).rename(tmp_path / name)
    np.testing.assert_array_equal(read_scan(path).voxels, ramp())


def test_a_nifti_file_is_read_by_itself_whatever_lies_beside_it(tmp_path: Path) -> None:
    packed, plain = write(tmp_path / "a.nii.gz", ramp()), write(tmp_path / "a.nii", ramp()[::-1] + 1000)
    np.testing.assert_array_equal(read_scan(packed).voxels, ramp())
    np.testing.assert_array_equal(read_scan(plain).voxels, ramp()[::-1] + 1000)


@pytest.mark.parametrize("inter", [0.0, math.nan])
def test_a_slope_of_nan_scales_nothing(inter: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", ramp())
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 112, math.nan, inter)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_scan(path).voxels, ramp())


def test_constant_image_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", np.full((3, 4, 5), 7, dtype="i2"))
    with pytest.raises(InputError, match=r"a\.nii\.gz.*all voxels are 7"):
        read_scan(path)
    assert read_labels(path).voxels.max() == 7


@pytest.mark.parametrize(("offset", "word"), [(0.5, "fractions"), (-200, "-300"), (70000, "70313")])
def test_no_label_map(offset: float, word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=word):
        read_labels(write(tmp_path / "a.nii.gz", ramp("f4") + np.float32(offset)))


def test_labels_stored_with_a_slope_are_rounded(tmp_path: Path) -> None:
    values = np.arange(60).reshape(3, 4, 5) % 8
    for slope in (1 / 3, 1 / 7, 0.1):
        scan = read_labels(write(tmp_path / "a.nii.gz", np.rint(values / slope).astype("f4") * np.float32(slope)))
        np.testing.assert_array_equal(scan.voxels, values)
    with pytest.raises(InputError, match="fractions"):
        read_labels(write(tmp_path / "a.nii.gz", values.astype("f4") + np.float32(2e-3)))


@pytest.mark.parametrize(
    ("kind", "top", "expected"), [("f4", 255, np.uint8), ("f8", 256, np.uint16), ("i8", 9, np.uint8)]
)
def test_labels_as_smallest_type(kind: str, top: int, expected: type, tmp_path: Path) -> None:
    voxels = np.zeros((3, 4, 5), dtype=kind)
    voxels[1, 2, 3] = top
    scan = read_labels(write(tmp_path / "a.nii.gz", voxels))
    assert scan.voxels.dtype == expected
    np.testing.assert_array_equal(scan.voxels, voxels)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_one_time_point_is_squeezed_and_more_are_refused(suffix: str, tmp_path: Path) -> None:
    if suffix != ".nrrd":  # SimpleITK writes 4D NRRD as a list of vectors
        assert read_scan(write(tmp_path / f"a{suffix}", ramp()[None])).geometry.shape == (3, 4, 5)
    with pytest.raises(InputError, match="expected one 3D scan"):
        read_scan(write(tmp_path / f"b{suffix}", np.stack([ramp(), ramp()])))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rubbish_is_one_sentence(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"rubbish\n" * 100)
    with pytest.raises(InputError) as caught:
        read_scan(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii"])
def test_truncated_voxels_are_refused(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{suffix}", ramp())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=path.name):
        read_scan(path)


def test_nothing_reaches_the_terminal(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        path = write(tmp_path / f"a{suffix}", ramp())
        path.write_bytes(path.read_bytes()[:-20] if suffix != ".mhd" else b"ObjectType = Image\nNDims = 3\n")
    code = (
        "import sys; from pathlib import Path; from segsweep.data.readers import read_scan\n"
        "from segsweep.errors import InputError\n"
        "for path in Path(sys.argv[1]).glob('a.[nm]*'):\n"
        "    try: read_scan(path)\n"
        "    except InputError: pass\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


def test_voxels_elsewhere_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mhd", ramp())
    path.write_text(path.read_text().replace("a.raw", "../a.raw"))
    with pytest.raises(InputError, match="beside it"):
        read_scan(path)


def test_digest_follows_every_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mhd", ramp())
    before = read_scan(path).digest
    assert before == file_digest(path)
    raw = path.with_suffix(".raw")
    raw.write_bytes(raw.read_bytes()[:-1] + b"\2")
    assert file_digest(path) != before


def test_names() -> None:
    assert stem(Path("x/case.1_0000.nii.gz")) == "case.1_0000"
    assert stem(Path("case.mha")) == "case"
    assert stem(Path("Case.NII.GZ")) == "Case"
    assert is_scan(Path("a.nrrd"))
    assert is_scan(Path("a.NRRD"))
    assert not is_scan(Path("a.txt"))
    with pytest.raises(InputError, match=r"a\.txt"):
        read_scan(Path("a.txt"))
    with pytest.raises(InputError, match="not there"):
        read_scan(Path("absent.nii.gz"))


@pytest.mark.skipif(not DATA.is_dir(), reason="real scans are not here")
def test_real_scans_are_read() -> None:
    paths = [path for path in sorted(DATA.rglob("*.nii.gz")) if "msd" not in str(path)][::6]
    assert len(paths) > 10
    for path in paths:
        scan = read_scan(path) if "image" in str(path) or "_ct" in path.name else read_labels(path)
        oracle = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(scan.voxels, sitk.GetArrayFromImage(oracle))
        assert scan.geometry.direction == pytest.approx(oracle.GetDirection())


@pytest.mark.parametrize("packed", [True, False])
def test_masks_along_a_fourth_axis(tmp_path: Path, packed: bool) -> None:
    masks = np.random.default_rng(0).random((3, 4, 5, 6)) < 0.5
    image = sitk.JoinSeries([sitk.GetImageFromArray(mask.astype(np.int16) * 256) for mask in masks])
    image.SetSpacing((0.5, 0.6, 2.0, 1.0))
    path = tmp_path / "a.mha"
    sitk.WriteImage(image, path, useCompression=packed)
    stack = open_stack(path)
    assert (is_stack(path), stack.num_layers, stack.geometry.shape) == (True, 3, (4, 5, 6))
    assert stack.geometry.spacing == (2.0, 0.6, 0.5)
    np.testing.assert_array_equal(list(stack.layers()), masks)
    sitk.WriteImage(image[..., 0], tmp_path / "b.mha")
    (tmp_path / "c.mha").write_bytes(b"NDims = many")
    assert [is_stack(tmp_path / name) for name in ("b.mha", "c.mha", "d.nii.gz")] == [False] * 3
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(InputError, match=r"a\.mha: "):
        open_stack(path)
    with pytest.raises(InputError, match="expected one 3D scan"):
        read_labels(path)
