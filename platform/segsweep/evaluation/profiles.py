"""Whose rules a score follows: tolerances per structure, empty masks, slices, floors, rounding, missing cases (SegRap2023, FLARE)."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from segsweep.errors import RecipeError, unknown
from segsweep.evaluation.metrics import Rule

SEGRAP_ORGANS = (
    "Brain",
    "BrainStem",
    "Chiasm",
    "TemporalLobe_L",
    "TemporalLobe_R",
    "Hippocampus_L",
    "Hippocampus_R",
    "Eye_L",
    "Eye_R",
    "Lens_L",
    "Lens_R",
    "OpticNerve_L",
    "OpticNerve_R",
    "MiddleEar_L",
    "MiddleEar_R",
    "IAC_L",
    "IAC_R",
    "TympanicCavity_L",
    "TympanicCavity_R",
    "VestibulSemi_L",
    "VestibulSemi_R",
    "Cochlea_L",
    "Cochlea_R",
    "ETbone_L",
    "ETbone_R",
    "Pituitary",
    "OralCavity",
    "Mandible_L",
    "Mandible_R",
    "Submandibular_L",
    "Submandibular_R",
    "Parotid_L",
    "Parotid_R",
    "Mastoid_L",
    "Mastoid_R",
    "TMjoint_L",
    "TMjoint_R",
    "SpinalCord",
    "Esophagus",
    "Larynx",
    "Larynx_Glottic",
    "Larynx_Supraglot",
    "PharynxConst",
    "Thyroid",
    "Trachea",
)

SEGRAP_TUMOURS = ("GTVp", "GTVnd")

# Tolerance in mm, and the spellings under which a structure may appear (compared without case, blanks and underscores).
FLARE_ORGANS: Mapping[str, tuple[float, tuple[str, ...]]] = {
    "liver": (5, ()),
    "right kidney": (3, ("kidney right", "RK")),
    "spleen": (3, ()),
    "pancreas": (5, ()),
    "aorta": (2, ()),
    "inferior vena cava": (2, ("IVC", "postcava")),
    "right adrenal gland": (2, ("adrenal gland right", "right adrenal", "RAG")),
    "left adrenal gland": (2, ("adrenal gland left", "left adrenal", "LAG")),
    "gallbladder": (2, ()),
    "esophagus": (3, ("oesophagus",)),
    "stomach": (5, ()),
    "duodenum": (7, ()),
    "left kidney": (3, ("kidney left", "LK")),
}
# Tubular organs whose ends are not agreed upon: FLARE scores them between the reference's ends only.
FLARE_OPEN_ENDED = ("aorta", "inferior vena cava", "esophagus")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A set of rules. `rules` names structures by their plain spelling (`plain_name`); `every` is the rule of all others, if any.

    `missing` says what becomes of a case or structure without a prediction: "zero" scores Dice and NSD 0, "leave out" names it in the
    summary only. A predicted value above `largest_value` scores the whole case 0. `lesions` says whose lesions are counted one by one;
    `ranked`, how compared models are: by each structure's mean over cases (SegRap2023) or each case's over structures (FLARE22).
    """

    name: str
    rules: Mapping[str, Rule] = field(default_factory=dict)
    every: Rule | None = None
    missing: Literal["zero", "leave out"] = "leave out"
    largest_value: int | None = None
    lesions: Literal["none", "all"] = "none"
    ranked: Literal["structures", "cases"] = "structures"

    def covers(self, structure: str) -> bool:
        """Whether the profile has a rule for the structure."""
        return self.every is not None or plain_name(structure) in self.rules

    def rule(self, structure: str) -> Rule:
        """The structure's rule. Raises RecipeError when the profile does not score it."""
        rule = self.rules.get(plain_name(structure), self.every)
        if rule is None:
            raise RecipeError(unknown(structure, kind=f"structures of profile {self.name}", known=self.rules))
        return rule

    def with_tolerance(self, tolerance: float) -> "Profile":
        """The same rules with one tolerance (mm) for all structures."""
        if not tolerance >= 0 or math.isinf(tolerance):
            raise RecipeError(f"tolerance={tolerance} cannot be used: expected a length in mm, 0 or more")
        rules = {name: replace(rule, tolerance=tolerance) for name, rule in self.rules.items()}
        every = replace(self.every, tolerance=tolerance) if self.every else None
        return replace(self, rules=rules, every=every)


def plain_name(structure: str) -> str:
    """A structure's name in lower case, letters and digits only: "Oral Cavity" and "OralCavity" are one."""
    return re.sub(r"[^a-z0-9]", "", structure.lower())


def profile(name: str) -> Profile:
    """The profile of that name. Raises RecipeError with the nearest names when there is none."""
    if name not in PROFILES:
        raise RecipeError(unknown(name, kind="evaluation profiles", known=PROFILES))
    return PROFILES[name]


def _segrap(names: Iterable[str], *, tolerances: Mapping[str, float]) -> dict[str, Rule]:
    return {plain_name(name): Rule(tolerance=tolerances.get(name, 1.0), digits=4) for name in names}


def _flare() -> dict[str, Rule]:
    rules = {}
    for name, (tolerance, spellings) in FLARE_ORGANS.items():
        slices = "reference" if name in FLARE_OPEN_ENDED else "all"
        rule = Rule(tolerance=tolerance, slices=slices, dice_floor=0.2, digits=4)
        rules |= {plain_name(spelling): rule for spelling in (name, *spellings)}
    return rules


_LESION = Rule(tolerance=2.0, dice_floor=0.2, digits=4)

PROFILES: Mapping[str, Profile] = {
    one.name: one
    for one in (
        # Nothing rounded, nothing cropped; agreeing that a structure is absent counts as right. 2 mm is our choice.
        Profile(name="plain", every=Rule(tolerance=2.0)),
        # nnU-Net leaves a structure that is absent in both out of its means. It reports no NSD: the 2 mm are ours.
        Profile(name="nnunet", every=Rule(tolerance=2.0, both_empty=math.nan)),
        Profile(
            name="segrap2023_oar",
            rules=_segrap(SEGRAP_ORGANS, tolerances={"Larynx": 2.0, "OralCavity": 3.0}),
            missing="zero",
        ),
        Profile(name="segrap2023_gtv", rules=_segrap(SEGRAP_TUMOURS, tolerances={}), missing="zero", lesions="all"),
        Profile(name="flare22", rules=_flare(), missing="zero", ranked="cases"),
        Profile(
            name="flare24_pancancer",
            rules=dict.fromkeys(("lesion", "tumor", "tumour", "cancer", "pancancer"), _LESION),
            missing="zero",
            largest_value=1,
            lesions="all",
            ranked="cases",
        ),
    )
}
