import math

import pytest

from segsweep.errors import RecipeError
from segsweep.evaluation.profiles import PROFILES, SEGRAP_ORGANS, profile


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
