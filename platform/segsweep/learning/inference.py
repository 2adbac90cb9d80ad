"""How a trained model is applied to a whole scan: how its patches overlap, where it looks, and what is cleaned away afterwards."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from segsweep.errors import ModelError, understood

# Field of run.json and ensemble.json: a clean-up that was found for the model after its training.
CLEAN_UP = "clean_up"


@dataclass(frozen=True, kw_only=True)
class CleanUp:
    """Which connected components of a label map stay.

    With `foreground` "largest", of all voxels with any structure only the largest component does. Then, of the structures in `largest`,
    only the largest component does. A component whose centroid lies farther than `farthest_mm` from the centre goes, where the centre
    is the mean of the centroids of the `anchors`' largest components; distances count along `axes`. A map that lacks one of the
    anchors has no centre, and no component of it is too far.
    """

    largest: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()
    farthest_mm: float = math.inf
    axes: Literal["zyx", "z"] = "zyx"
    foreground: Literal["all", "largest"] = "all"

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary of what differs from the defaults; `clean_up_from_json` takes it back."""
        plain = asdict(CleanUp())
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value != plain[name]
        }


@dataclass(frozen=True, kw_only=True)
class Inference:
    """`overlap` is the share of a patch that the next one covers again. `mirror` names the axes over whose flips logits are averaged
    ("zyx", "zy", ..., "none").

    With `margin_mm` the model looks only into the box around what its finder found, grown by so many mm on every side: the finder is
    the model that its training started from, and lies beside its weights.
    """

    overlap: float = 0.5
    mirror: str = "none"
    margin_mm: float | None = None
    clean_up: CleanUp = CleanUp()

    def recorded(self, document: Mapping[str, Any]) -> "Inference":
        """These settings with the clean-up that a model's document records; as they are where it records none. Raises ModelError."""
        if CLEAN_UP not in document:
            return self
        with understood(f"the model's {CLEAN_UP}", otherwise=ModelError, do="use another checkpoint"):
            return replace(self, clean_up=clean_up_from_json(dict(document[CLEAN_UP]["rules"])))


def clean_up_from_json(values: Mapping[str, Any]) -> CleanUp:
    """The CleanUp that `to_json` wrote. Raises ModelError for a rule, or a value of one, that this version does not know."""
    if not all(_known(name, value=value) for name, value in values.items()):
        raise ModelError(
            f"the model records the clean-up {', '.join(values)}; expected rules that this segsweep knows; update segsweep"
        )
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return CleanUp(**given)


def _known(name: str, *, value: object) -> bool:
    if name in ("largest", "anchors"):
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if name == "farthest_mm":
        return isinstance(value, int | float)
    return value in {"axes": ("zyx", "z"), "foreground": ("all", "largest")}.get(name, ())
