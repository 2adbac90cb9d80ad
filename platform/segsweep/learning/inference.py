"""How a trained model is applied to a whole scan: how its patches overlap, where it looks, and what is cleaned away afterwards."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CleanUp:
    """Which connected components of a label map stay.

    Of the structures in `largest` only the largest component does. A component whose centroid lies farther than `farthest_mm` from the
    centre goes, where the centre is the mean of the centroids of the `anchors`' largest components; distances count along `axes`.
    A map that lacks one of the anchors has no centre, and no component of it is too far.
    """

    largest: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()
    farthest_mm: float = math.inf
    axes: Literal["zyx", "z"] = "zyx"


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
