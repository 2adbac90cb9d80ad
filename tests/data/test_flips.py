"""Label maps with wrong headers: put where they are stated to be, and refused where the CT says that they are not."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from segsweep.data.flips import AXES, FLIPS, placed, stated_flip
from segsweep.data.geometry import Geometry
from segsweep.data.readers import Scan, read_labels, read_scan
from segsweep.errors import InputError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "totalsegmentator"
SHAPE = (12, 20, 24)
LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
ORGANS = {1: (slice(1, 5), slice(2, 8), slice(3, 9)), 2: (slice(7, 11), slice(10, 15), slice(2, 8))}


def grid(x0: float) -> Geometry:
    return Geometry(shape=SHAPE, spacing=(2.0, 1.0, 1.0), origin=(x0, 0.0, 0.0), direction=LPS)


def anatomy(hu: int = 100) -> tuple[Scan, NDArray]:
    """Two organs of which the second is 40 HU brighter, in something that is anything between air and bone."""
    voxels = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for value, box in ORGANS.items():
        labels[box] = value
        voxels[box] = hu + 40 * (value - 1)
    return Scan(voxels=voxels, geometry=grid(0.0), digest="a"), labels


def reversed_along(voxels: NDArray, flip: str) -> NDArray:
    return voxels[tuple(slice(None, None, -1 if axis in flip else 1) for axis in AXES)]


@pytest.mark.parametrize("flip", FLIPS)
def test_labels_lie_where_the_statement_puts_them(flip: str) -> None:
    scan, labels = anatomy()
    wrong = Scan(voxels=reversed_along(labels, flip), geometry=grid(99.0), digest="b")
    found = placed(wrong, scan=scan, flip=flip, name="label.nii.gz")
    np.testing.assert_array_equal(found.voxels, labels)
    assert (found.geometry, found.digest) == (scan.geometry, "b")


@pytest.mark.parametrize("flip", [flip for flip in FLIPS if flip != "y"])
def test_a_wrong_statement_is_refused_with_the_best_one(flip: str) -> None:
    scan, labels = anatomy()
    wrong = Scan(voxels=reversed_along(labels, "y"), geometry=grid(99.0), digest="b")
    with pytest.raises(
        InputError, match=rf"label\.nii\.gz: with flip '{flip}' .* with 'y' by \d\.\d\d; .*label_flip\.json"
    ):
        placed(wrong, scan=scan, flip=flip, name="label.nii.gz")


def test_a_header_that_fits_is_taken() -> None:
    scan, labels = anatomy()
    right = Scan(voxels=labels, geometry=scan.geometry, digest="b")
    assert placed(right, scan=scan, flip="y", name="label.nii.gz") is right


def test_no_tissue_that_no_other_flip_is_worse_for() -> None:
    """What looks the same from all sides, what is air or bone, and what is nothing at all says nothing."""
    scan, labels = anatomy()
    even = Scan(voxels=np.full(SHAPE, 50, dtype=np.int16), geometry=scan.geometry, digest="a")
    wrong = Scan(voxels=labels, geometry=grid(99.0), digest="b")
    with pytest.raises(InputError, match="clearly ahead"):
        placed(wrong, scan=even, flip="", name="label.nii.gz")
    with pytest.raises(InputError, match="on tissue of 780 HU"):
        placed(wrong, scan=anatomy(hu=780)[0], flip="", name="label.nii.gz")
    with pytest.raises(InputError, match="holds no labels"):
        placed(Scan(voxels=0 * labels, geometry=grid(99.0), digest="b"), scan=scan, flip="", name="label.nii.gz")


def test_another_shape_is_refused() -> None:
    scan, labels = anatomy()
    geometry = Geometry(shape=(11, 20, 24), spacing=(2.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=LPS)
    short = Scan(voxels=labels[1:], geometry=geometry, digest="b")
    with pytest.raises(InputError, match=r"label\.nii\.gz has \(11, 20, 24\) voxels"):
        placed(short, scan=scan, flip="", name="label.nii.gz")


def test_the_user_may_state_another_flip(tmp_path: Path) -> None:
    assert stated_flip(tmp_path, otherwise="y") == "y"
    (tmp_path / "label_flip.json").write_text(json.dumps({"flip": "zy"}))
    assert stated_flip(tmp_path, otherwise="y") == "zy"
    (tmp_path / "label_flip.json").write_text(json.dumps({"flip": "yz"}))
    with pytest.raises(InputError, match=r"label_flip\.json: flip is 'yz'; expected one of"):
        stated_flip(tmp_path, otherwise="y")


@pytest.mark.skipif(not DATA.is_dir(), reason="the TotalSegmentator examples are not here")
@pytest.mark.parametrize("size", ["sm", "3mm"])
@pytest.mark.parametrize("organs", [(7,), (1, 3, 4, 5, 6, 7, 15, 19)])
def test_on_a_real_abdomen_only_the_truth_is_plausible(size: str, organs: tuple[int, ...]) -> None:
    """The pancreas alone, and the eight organs of the multi-organ set."""
    scan = read_scan(DATA / f"abd_ct_{size}_image.nii.gz")
    whole = read_labels(DATA / f"abd_ct_{size}_label117{'_full' if size == 'sm' else ''}.nii.gz")
    labels = np.where(np.isin(whole.voxels, organs), whole.voxels, 0)
    away = Geometry(**{**vars(whole.geometry), "origin": (0.0, 0.0, 0.0)})
    for flip in ("y", "", "zyx"):
        moved = Scan(voxels=reversed_along(labels, "y"), geometry=away, digest="b")
        if flip == "y":
            np.testing.assert_array_equal(placed(moved, scan=scan, flip=flip, name="l").voxels, labels)
        else:
            with pytest.raises(InputError, match="with 'y'"):
                placed(moved, scan=scan, flip=flip, name="l")
