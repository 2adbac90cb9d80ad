"""What models are chosen by: Dice, or the normalised surface Dice at a tolerance; as in the profile `plain`, of both more is better."""

import math
from dataclasses import dataclass

from segsweep.errors import RecipeError, unknown

DICE, NSD = "dice", "nsd"
METRICS = (DICE, NSD)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric; `nsd_tolerance` (mm) is that of NSD (Nikolov et al. 2018). Raises RecipeError for a value that cannot be used."""

    metric: str = DICE
    nsd_tolerance: float = 2.0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise RecipeError(unknown(self.metric, kind="metrics", known=METRICS))
        if not 0 < self.nsd_tolerance < math.inf:
            raise RecipeError(f"nsd_tolerance={self.nsd_tolerance} cannot be used: expected a length in mm above 0")

    @property
    def key(self) -> str:
        """What stands for it in files."""
        return DICE if self.metric == DICE else f"nsd at {self.nsd_tolerance} mm"

    @property
    def name(self) -> str:
        """Dice or NSD."""
        return "Dice" if self.metric == DICE else "NSD"

    def __str__(self) -> str:
        return self.name if self.metric == DICE else f"{self.name} at {self.nsd_tolerance:g} mm"
