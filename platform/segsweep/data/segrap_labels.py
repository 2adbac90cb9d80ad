"""SegRap2023's 45 organs, which overlap, and its official 54 labels, which do not: one table for both (its post-processing code)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segsweep.data.structures import LabelTable


def _sides(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}_{side}" for name in names for side in "LR")


# In the official order.
ORGANS = (
    *("Brain", "BrainStem", "Chiasm"),
    *_sides("TemporalLobe", "Hippocampus", "Eye", "Lens", "OpticNerve", "MiddleEar", "IAC", "TympanicCavity"),
    *_sides("VestibulSemi", "Cochlea", "ETbone"),
    *("Pituitary", "OralCavity"),
    *_sides("Mandible", "Submandibular", "Parotid", "Mastoid", "TMjoint"),
    *("SpinalCord", "Esophagus", "Larynx", "Larynx_Glottic", "Larynx_Supraglot", "PharynxConst", "Thyroid", "Trachea"),
)
TUMOURS = ("GTVp", "GTVnd")

_SINGLE = {
    **{1: ("Brain",), 2: ("Brain", "BrainStem"), 3: ("Brain", "Chiasm"), 34: ("Pituitary",), 35: ("OralCavity",)},
    **{46: ("SpinalCord",), 47: ("Esophagus",), 48: ("Larynx",), 49: ("Larynx", "Larynx_Glottic")},
    **{50: ("Larynx", "Larynx_Supraglot"), 51: ("Larynx", "PharynxConst"), 52: ("PharynxConst",)},
    **{53: ("Thyroid",), 54: ("Trachea",)},
}
# The left side has this value, the right side the next; the brain has no side.
_PAIRED = {
    **{4: ("Brain", "TemporalLobe"), 6: ("Brain", "TemporalLobe", "Hippocampus"), 8: ("Brain", "Hippocampus")},
    **{10: ("Eye",), 12: ("Eye", "Lens"), 14: ("OpticNerve",), 16: ("MiddleEar",), 18: ("MiddleEar", "IAC")},
    **{20: ("MiddleEar", "TympanicCavity"), 22: ("TympanicCavity",), 24: ("MiddleEar", "VestibulSemi")},
    **{26: ("VestibulSemi",), 28: ("MiddleEar", "Cochlea"), 30: ("MiddleEar", "ETbone"), 32: ("ETbone",)},
    **{36: ("Mandible",), 38: ("Submandibular",), 40: ("Parotid",), 42: ("Mastoid",), 44: ("TMjoint",)},
}


def _official() -> dict[int, tuple[str, ...]]:
    table = dict(_SINGLE)
    for value, names in _PAIRED.items():
        for offset, side in enumerate("LR"):
            table[value + offset] = tuple(name if name == "Brain" else f"{name}_{side}" for name in names)
    return {value: table[value] for value in sorted(table)}


# Official label, 1 to 54 -> the organs at its voxels.
OFFICIAL: Mapping[int, tuple[str, ...]] = _official()
# Where organs overlap in a way that no official label says, the smaller one wins: our own rule, in the order of the volumes
# (0.15 ml to 1.5 l) in the organisers' example of a result, means of both sides.
SMALLEST_FIRST = (
    *_sides("IAC", "ETbone", "VestibulSemi", "Cochlea", "Lens"),
    "Pituitary",
    *_sides("TympanicCavity", "OpticNerve"),
    "Chiasm",
    *_sides("MiddleEar", "TMjoint", "Hippocampus"),
    *("Larynx_Supraglot", "Larynx_Glottic"),
    *_sides("Submandibular", "Eye", "Mastoid"),
    *("Esophagus", "PharynxConst", "Thyroid", "SpinalCord", "BrainStem", "Trachea"),
    *_sides("Mandible", "Parotid"),
    "Larynx",
    *_sides("TemporalLobe"),
    *("OralCavity", "Brain"),
)


@dataclass(frozen=True, kw_only=True)
class OfficialLabel:
    """Voxels (z, y, x) as official labels, 0 to 54, and how many voxels of which organs lost or gained an organ by that."""

    label: NDArray[np.uint8]
    changed: Mapping[tuple[str, ...], int]

    @property
    def num_changed(self) -> int:
        """Voxels whose organs no official label says."""
        return sum(self.changed.values())


def official_value(organs: Iterable[str]) -> int:
    """The official label of a set of organs, 0 for none.

    A set outside the table gets the label that agrees with it on the smallest organs: label by label, those are struck off that
    disagree on the smallest organ, then on the next, as long as one is left. So IAC_L outside MiddleEar_L becomes 18, which is both.
    """
    wanted = frozenset(organs)
    left = {value: frozenset(names) for value, names in ((0, ()), *OFFICIAL.items())}
    for organ in SMALLEST_FIRST:
        agreeing = {value: names for value, names in left.items() if (organ in names) == (organ in wanted)}
        left = agreeing or left
    return min(left)


def to_official(label: NDArray, *, table: LabelTable) -> OfficialLabel:
    """Atom values (z, y, x) as official labels. Structures other than the 45 organs (tumours) are passed over.

    Ignored voxels, which no official label says, become background.
    """
    structures = table.labels.structures
    sets = [tuple(structures[i] for i in atom if structures[i] in ORGANS) for atom in (*table.atoms, ())]
    values = np.array([official_value(names) for names in sets], dtype=np.uint8)
    counts = np.bincount(label.ravel(), minlength=len(sets))
    changed: dict[tuple[str, ...], int] = {}
    for names, value, count in zip(sets, values.tolist(), counts.tolist(), strict=True):
        if count and set(names) != set(OFFICIAL.get(value, ())):
            changed[names] = changed.get(names, 0) + count
    return OfficialLabel(label=values[label], changed=changed)
