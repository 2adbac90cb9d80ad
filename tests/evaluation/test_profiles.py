"""The organisers' rules, written once more from their evaluation scripts on the surface-distance package, are the oracle."""

import json
import math

import numpy as np
import pytest
import surface_distance

from segsweep.data.geometry import Geometry
from segsweep.errors import RecipeError
from segsweep.evaluation.evaluation import evaluate
from segsweep.evaluation.profiles import PROFILES, SEGRAP_ORGANS, profile
from segsweep.inference.writers import write_label_map


def test_names():
    assert set(PROFILES) == {"plain", "nnunet", "segrap2023_oar", "segrap2023_gtv", "flare22", "flare24_pancancer"}
    with pytest.raises(RecipeError, match="did you mean 'flare22'"):
        profile("flare2")


def test_segrap_tolerances():
    rules = profile("segrap2023_oar")
    found = {name: rules.rule(name).tolerance for name in SEGRAP_ORGANS}
    assert len(found) == 45
    assert {name: mm for name, mm in found.items() if mm != 1.0} == {"Larynx": 2.0, "OralCavity": 3.0}
    assert (rules.missing, rules.rule("Brain").digits, rules.rule("Brain").both_empty) == ("zero", 4, 1.0)
    assert not rules.covers("GTVp")
    assert profile("segrap2023_gtv").rule("GTVnd").tolerance == 1.0


@pytest.mark.parametrize(
    ("structure", "tolerance"),
    [
        ("liver", 5),
        ("Right Kidney", 3),
        ("spleen", 3),
        ("pancreas", 5),
        ("aorta", 2),
        ("IVC", 2),
        ("RAG", 2),
        ("LAG", 2),
        ("gallbladder", 2),
        ("esophagus", 3),
        ("stomach", 5),
        ("duodenum", 7),
        ("left_kidney", 3),
    ],
)
def test_flare_tolerances(structure, tolerance):
    rule = profile("flare22").rule(structure)
    assert (rule.tolerance, rule.dice_floor, rule.digits) == (tolerance, 0.2, 4)
    assert (rule.slices == "reference") == (structure in ("aorta", "IVC", "esophagus"))


def test_pancancer_and_open_profiles():
    cancer = profile("flare24_pancancer")
    assert (cancer.largest_value, cancer.rule("lesion").tolerance, cancer.rule("lesion").dice_floor) == (1, 2.0, 0.2)
    assert profile("plain").rule("anything").both_empty == 1.0
    assert math.isnan(profile("nnunet").rule("anything").both_empty)
    with pytest.raises(RecipeError, match=r"no 'Liver2' among structures of profile flare22.*'liver'"):
        profile("flare22").rule("Liver2")


def test_one_tolerance_for_all():
    assert profile("flare22").with_tolerance(1.5).rule("liver").tolerance == 1.5
    with pytest.raises(RecipeError, match="expected a length"):
        profile("plain").with_tolerance(-1)


SHAPE, SPACING = (14, 18, 16), (2.5, 0.8, 1.1)
# Stored straight, with the head first, and slice by slice from the patient's left to the right.
DIRECTIONS = {
    "straight": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "head first": (1, 0, 0, 0, 1, 0, 0, 0, -1),
    "sagittal": (0, 0, -1, 1, 0, 0, 0, -1, 0),
}


def label_pair(seed, *, values):
    """A reference of random boxes in layers, and a prediction of the same boxes with noise on their rims; the last but two values are
    far apart, the last but one is predicted only, the last is in neither."""
    random = np.random.default_rng(seed)
    reference, prediction = np.zeros((2, *SHAPE), dtype=np.uint8)
    for value in values[:-3]:
        low = random.integers(0, np.array(SHAPE) - 6)
        box = tuple(slice(start, start + size) for start, size in zip(low, random.integers(3, 6, 3), strict=True))
        moved = tuple(
            slice(max(0, one.start + random.integers(-1, 2)), one.stop + random.integers(0, 2)) for one in box
        )
        reference[box], prediction[moved] = value, value
    reference[1:4, 15:18, 13:16], prediction[8:12, 14:17, 13:16] = values[-3], values[-3]
    prediction[12:14, :2, :2] = values[-2]
    return reference, prediction


def nsd_of(reference, prediction, *, spacing, tolerance):
    if not (reference.any() and prediction.any()):  # the package stops at an empty mask under NumPy 2
        return 0.0
    found = surface_distance.compute_surface_distances(reference, prediction, spacing)
    return surface_distance.compute_surface_dice_at_tolerance(found, tolerance)


def segrap(reference, prediction, *, tolerance):
    """two_evaluation_metrics.py: axes and spacing as SimpleITK gives them to NumPy, z, y, x."""
    if not reference.any() and not prediction.any():
        return 1.0, 1.0
    if not reference.any():
        return 0.0, 0.0
    dice = 2 * (reference & prediction).sum() / (reference.sum() + prediction.sum())
    return round(float(dice), 4), round(float(nsd_of(reference, prediction, spacing=SPACING, tolerance=tolerance)), 4)


def flare(reference, prediction, *, tolerance, open_ended):
    """FLARE22_DSC_NSD_Eval.py: axes as nibabel gives them, x, y, z of the file; tubes from the first labelled slice up to the last one."""
    reference, prediction = reference.transpose(2, 1, 0), prediction.transpose(2, 1, 0)
    if not reference.any() and not prediction.any():
        return 1.0, 1.0
    if not reference.any():
        return 0.0, 0.0
    if open_ended:
        slices = np.where(reference)[2]
        reference, prediction = (mask[:, :, slices.min() : slices.max()] for mask in (reference, prediction))
    dice = surface_distance.compute_dice_coefficient(reference, prediction)
    if dice < 0.2:
        return round(float(dice), 4), 0.0
    nsd = nsd_of(reference, prediction, spacing=SPACING[::-1], tolerance=tolerance)
    return round(float(dice), 4), round(float(nsd), 4)


def write(folder, *, maps, direction, labels):
    grid = Geometry(shape=SHAPE, spacing=SPACING, origin=(3.0, -20.0, 100.0), direction=DIRECTIONS[direction])
    for case, label in maps.items():
        write_label_map(label, geometry=grid, path=folder / f"{case}.nii.gz")
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def evaluated(tmp_path, *, pairs, labels, name, direction):
    """(Dice, NSD) by case and structure as our command scores the files."""
    sides = [{f"case{i}": pair[side] for i, pair in enumerate(pairs)} for side in (0, 1)]
    reference, predictions = (
        write(tmp_path / folder, maps=maps, direction=direction, labels=labels)
        for folder, maps in zip(("reference", "predictions"), sides, strict=True)
    )
    found = evaluate(predictions, reference=reference, profile=name, out=tmp_path / "out")
    return {(one.case, one.structure): (one.dice, one.nsd) for one in found.scores["predictions"]}


FLARE_TOLERANCES = {
    "liver": 5, "RK": 3, "spleen": 3, "pancreas": 5, "aorta": 2, "IVC": 2, "RAG": 2, "LAG": 2, "gallbladder": 2,
    "esophagus": 3, "stomach": 5, "duodenum": 7, "LK": 3,
}  # fmt: skip


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_flare22_as_its_script_scores_it(tmp_path, direction):
    labels = {name: value for value, name in enumerate(FLARE_TOLERANCES, start=1)}
    # The tubes come first, so that the special values at the end are others.
    values = [5, 6, 10, 1, 2, 3, 4, 7, 8, 9, 11, 12, 13]
    pairs = [label_pair(seed, values=values) for seed in range(3)]
    found = evaluated(tmp_path, pairs=pairs, labels=labels, name="flare22", direction=direction)
    expected = {
        (f"case{i}", name): flare(
            pair[0] == labels[name], pair[1] == labels[name], tolerance=tolerance, open_ended=labels[name] in (5, 6, 10)
        )
        for i, pair in enumerate(pairs)
        for name, tolerance in FLARE_TOLERANCES.items()
    }
    assert found == expected
    assert {expected["case0", name] for name in ("stomach", "duodenum")} == {(0.0, 0.0)}
    assert expected["case0", "LK"] == (1.0, 1.0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_segrap2023_as_its_script_scores_it(tmp_path, direction):
    names = ("Larynx", "OralCavity", "Brain", "Eye_L", "Lens_R", "Thyroid", "Trachea")
    labels = {name: value for value, name in enumerate(names, start=1)}
    pairs = [label_pair(seed, values=list(labels.values())) for seed in range(3)]
    found = evaluated(tmp_path, pairs=pairs, labels=labels, name="segrap2023_oar", direction=direction)
    tolerances = {"Larynx": 2, "OralCavity": 3}
    assert found == {
        (f"case{i}", name): segrap(pair[0] == value, pair[1] == value, tolerance=tolerances.get(name, 1))
        for i, pair in enumerate(pairs)
        for name, value in labels.items()
    }


def test_flare24_as_its_script_scores_it(tmp_path):
    pairs = [label_pair(seed, values=[1, 2, 3, 4]) for seed in range(4)]
    pairs = [((one == 1).astype(np.uint8), (other == 1).astype(np.uint8)) for one, other in pairs]
    pairs[1] = (pairs[1][0], pairs[1][1] * 2)
    pairs[2] = (pairs[2][0] * 0, pairs[2][1] * 0)
    pairs[3] = (pairs[3][0], np.roll(pairs[3][1], 3, axis=2))
    found = evaluated(tmp_path, pairs=pairs, labels={"lesion": 1}, name="flare24_pancancer", direction="straight")
    expected = [
        (0.0, 0.0) if other.max() > 1 else flare(one > 0, other > 0, tolerance=2, open_ended=False)
        for one, other in pairs
    ]
    assert list(found.values()) == expected
    assert expected[2] == (1.0, 1.0)
    assert expected[0][1] > 0
