import dataclasses
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.readers import read_labels
from segsweep.evaluation.metrics import COLUMNS, Rule, Score, score

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PLAIN = Rule(tolerance=1.0)


def cube(low, high, *, shape=(12, 12, 12)):
    mask = np.zeros(shape, dtype=bool)
    mask[low:high, low:high, low:high] = True
    return mask


def scored(prediction, *, reference, rule=PLAIN, spacing=(2.0, 1.0, 1.0)):
    return score(prediction, reference=reference, spacing=spacing, case="a", structure="x", rule=rule)


def test_columns_are_the_agreed_ones():
    assert ",".join(COLUMNS) == (
        "case,structure,dice,iou,nsd,tolerance_mm,hd95_mm,hd100_mm,asd_reference_to_prediction_mm,"
        "asd_prediction_to_reference_mm,volume_reference_ml,volume_prediction_ml"
    )
    assert dataclasses.fields(Score)[0].kw_only


def test_values_by_hand():
    one = scored(cube(2, 6), reference=cube(4, 8))
    assert (one.dice, one.iou) == (pytest.approx(2 * 8 / 128), pytest.approx(8 / 120))
    assert one.volume_reference_ml == pytest.approx(0.128)
    # Corner to corner: two voxels along every axis at 2, 1, 1 mm.
    assert one.hd100_mm == pytest.approx(np.sqrt(16 + 4 + 4))


@pytest.mark.parametrize("both_empty", [1.0, 0.0])
def test_empty_masks(both_empty):
    nothing = cube(0, 0)
    rule = Rule(tolerance=1.0, both_empty=both_empty)
    both = scored(nothing, reference=nothing, rule=rule)
    assert (both.dice, both.iou, both.nsd) == (both_empty,) * 3
    for one in (scored(cube(1, 3), reference=nothing, rule=rule), scored(nothing, reference=cube(1, 3), rule=rule)):
        assert (one.dice, one.nsd) == (0.0, 0.0)
        assert np.isnan(one.hd95_mm)


def test_reference_slices_leave_out_the_last_one():
    reference, prediction = cube(3, 8), cube(3, 8)
    prediction[8:] = prediction[7]  # grows beyond the head end
    prediction[7] = False
    one = scored(prediction, reference=reference, rule=Rule(tolerance=1.0, slices="reference"))
    assert (one.dice, one.nsd) == (1.0, 1.0)
    assert one.volume_prediction_ml > one.volume_reference_ml
    assert scored(prediction, reference=reference).dice < 1


def test_reference_of_one_slice_is_still_scored():
    reference = np.zeros((12, 12, 12), dtype=bool)
    reference[5, 3:6, 3:6] = True
    assert scored(reference, reference=reference, rule=Rule(tolerance=1.0, slices="reference")).dice == 1.0


def test_low_dice_makes_nsd_zero():
    prediction, reference = cube(2, 6), cube(4, 8)
    rule = Rule(tolerance=4.0, dice_floor=0.2)
    assert scored(prediction, reference=reference, rule=rule).nsd == 0.0
    assert scored(prediction, reference=reference, rule=Rule(tolerance=4.0)).nsd > 0.5


def test_rounding():
    one = scored(cube(2, 6), reference=cube(3, 8), rule=Rule(tolerance=1.0, digits=4))
    exact = scored(cube(2, 6), reference=cube(3, 8))
    assert (one.dice, one.nsd) == (round(exact.dice, 4), round(exact.nsd, 4))
    assert one.dice != exact.dice


@pytest.mark.skipif(not (DATA / "chaos_liver_pair").is_dir(), reason="needs the shared data")
def test_published_chaos_values():
    """Published: DICE 0.978, RAVD 0.665 %, ASSD 0.734 mm, MSSD 14 mm."""
    scans = {name: read_labels(DATA / "chaos_liver_pair" / f"liver_{name}.nii.gz") for name in ("seg", "ref")}
    masks = {name: scan.geometry.reorientation.apply(scan.voxels) > 0 for name, scan in scans.items()}
    one = scored(masks["seg"], reference=masks["ref"], spacing=scans["ref"].geometry.canonical().spacing)
    assert (f"{one.dice:.3f}", f"{one.volume_error_percent:.3f}") == ("0.978", "0.665")
    assert (f"{one.assd_mm:.3f}", f"{one.hd100_mm:.0f}") == ("0.734", "14")
    # Weighted by area and measured between block centres: another definition. Values of surface-distance 0.1.
    assert one.asd_reference_to_prediction_mm == pytest.approx(0.44155650549, abs=1e-6)
    assert one.asd_prediction_to_reference_mm == pytest.approx(0.60901787983, abs=1e-6)


def test_the_four_values_of_chaos_by_hand():
    """Cubes of 4 voxels, one shifted by one along x: 56 border voxels each, of which a face of 16 is new on either side."""
    reference, prediction = cube(2, 6), np.roll(cube(2, 6), 1, axis=2)
    one = scored(prediction, reference=reference, spacing=(2.0, 1.0, 1.0))
    assert (one.dice, one.volume_error_percent, one.hd100_mm) == (0.75, 0.0, 1.0)
    apart = sum(not _on_border(z, y, x - 1) for z, y, x in np.ndindex(4, 4, 4) if _on_border(z, y, x))
    assert one.assd_mm == apart * 1.0 / 56
    assert scored(cube(2, 7), reference=cube(2, 6)).volume_error_percent == pytest.approx(100 * (125 / 64 - 1))


def _on_border(z, y, x):
    """In a cube of 4 voxels."""
    return all(0 <= place < 4 for place in (z, y, x)) and not all(0 < place < 3 for place in (z, y, x))
