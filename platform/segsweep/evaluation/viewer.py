"""The slice viewer of a report: three planes of chosen cases to scroll through, packed into the page itself."""

import base64
import gzip
import html
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Spacing
from segsweep.evaluation.overlays import BOTH_COLOUR, MARGIN_MM, PREDICTION_COLOUR, REFERENCE_COLOUR
from segsweep.evaluation.pictures import PLANES
from segsweep.evaluation.sources import Labelled
from segsweep.evaluation.surface import Box, union

SCRIPT = Path(__file__).with_name("viewer.js")
# Of a case that is shown: about as many bytes before compression for image, reference and prediction each.
MOST_VOXELS = 4_000_000
# The HU that a byte stands for: 3 apart where soft tissues differ, coarser in air and bone.
LEVELS = np.concatenate([np.linspace(-1024, -206, 42), np.arange(-200, 300, 3), np.linspace(335, 2000, 47)])
MOST_VALUES = 256
# Where both maps have a structure, and not the same: of Okabe and Ito's palette, as the others are.
UNLIKE_COLOUR = "#CC79A7"
# Centre and width in HU.
WINDOWS: Mapping[str, tuple[int, int]] = {
    "soft tissue": (40, 400), "lung": (-600, 1500), "bone": (400, 1800), "brain": (40, 80), "all": (488, 3024),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Viewed:
    """A case to look at: the image in HU (z, y, x; canonical orientation), if there is one, and `structure`, which is shown first."""

    truth: Labelled
    found: Labelled | None
    image: NDArray | None
    structure: str


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What the page holds of a case: facts for the script, and image, reference and prediction as compressed text."""

    about: Mapping[str, Any]
    volume: str


def pack(viewed: Viewed) -> Packed | None:
    """Cut to the labelled region with a margin and thinned to `MOST_VOXELS`; None where a map has more values than a byte."""
    truth, found = viewed.truth, viewed.found
    spacing = truth.geometry.spacing
    box = _region(truth, found=found)
    steps = thinning(tuple(part.stop - part.start for part in box), spacing=spacing)
    # The middle of the voxels that one stands for.
    kept = tuple(
        slice(min(part.start + step // 2, part.stop - 1), part.stop, step)
        for part, step in zip(box, steps, strict=True)
    )
    label = truth.label[kept]
    maps = [_map(truth, label=label), _map(found, label=found.label[kept]) if found else None]
    if any(one is not None and len(one[1]) > MOST_VALUES for one in maps):
        return None
    nothing = np.zeros(label.shape, np.uint8)
    image = nothing if viewed.image is None else _levels(viewed.image[kept])
    indices = [nothing if one is None else one[0] for one in maps]
    packed = gzip.compress(b"".join(part.tobytes() for part in (image, *indices)), compresslevel=6, mtime=0)
    about = {
        "case": truth.case,
        "structure": viewed.structure,
        "shape": label.shape,
        "spacing": [mm * step for mm, step in zip(spacing, steps, strict=True)],
        "hu": viewed.image is not None,
        "reference": [[]] if maps[0] is None else maps[0][1],
        "prediction": [[]] if maps[1] is None else maps[1][1],
        "note": _note(truth, steps=steps, image=viewed.image is not None),
    }
    return Packed(about=about, volume=base64.b64encode(packed).decode())


def render(cases: Iterable[Packed]) -> str:
    """The viewer's HTML; the page needs `SCRIPT` too. Nothing without cases."""
    shown = list(cases)
    if not shown:
        return ""
    colours = {
        "reference": REFERENCE_COLOUR,
        "prediction": PREDICTION_COLOUR,
        "both": BOTH_COLOUR,
        "unlike": UNLIKE_COLOUR,
    }
    about = {
        "cases": [case.about for case in shown],
        "planes": [{"name": plane.name, "axis": plane.axis, "marks": plane.marks} for plane in PLANES],
        "windows": WINDOWS,
        "levels": LEVELS.round(1).tolist(),
        "colours": {role: list(bytes.fromhex(colour[1:])) for role, colour in colours.items()},
    }
    volumes = "".join(f'<script type="text/plain" class="volume">{case.volume}</script>' for case in shown)
    # No text of a case can end the script that holds it.
    facts = json.dumps(about, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div class="viewer"><script type="application/json" class="about">{facts}</script>{volumes}'
        f'{_form([case.about["case"] for case in shown])}<div class="planes">{"".join(_plane(plane.name) for plane in PLANES)}</div>'
        '<p class="under" role="status">The viewer needs JavaScript.</p><p class="note muted"></p></div>'
    )


def _form(cases: Iterable[str]) -> str:
    options = "".join(f'<option value="{i}">{html.escape(case)}</option>' for i, case in enumerate(cases))
    windows = "".join(f"<option>{name}</option>" for name in WINDOWS)
    boxes = "".join(
        f'<label><input type="checkbox" name="{role}" checked><span class="key" style="background:{colour}"></span>{role}{words}</label>'
        for role, colour, words in (("reference", REFERENCE_COLOUR, ""), ("prediction", PREDICTION_COLOUR, " (dashed)"))
    )
    return (
        f'<form autocomplete="off"><label>case <select name="case">{options}</select></label>'
        '<label>structure <select name="structure"></select></label>'
        f'<label>window <select name="window">{windows}</select></label>{boxes}'
        '<label>fill <input type="range" name="fill" min="0" max="100" value="0"></label>'
        f'<span class="muted">filled: <span class="key" style="background:{BOTH_COLOUR}"></span>same in both'
        f'<span class="key" style="background:{UNLIKE_COLOUR}"></span>other structures</span></form>'
        '<p class="muted">Click into a picture to move the crosshair; then the wheel, the arrow keys and Page Up/Down scroll it, '
        "as its slider does.</p>"
    )


def _plane(name: str) -> str:
    return (
        f'<div class="plane"><canvas tabindex="0" role="img" aria-label="{name} slice; arrow keys scroll"></canvas>'
        f'<label><output></output><input type="range" min="0" max="0" value="0" aria-label="{name} slice"></label></div>'
    )


def thinning(shape: tuple[int, ...], *, spacing: Spacing) -> tuple[int, int, int]:
    """Every how many voxels (z, y, x) one is shown, so that `MOST_VOXELS` hold them; the finest axes first, y and x together."""
    z = across = 1
    while math.prod(math.ceil(n / step) for n, step in zip(shape, (z, across, across), strict=True)) > MOST_VOXELS:
        if spacing[0] * z < min(spacing[1:]) * across:
            z += 1
        else:
            across += 1
    return z, across, across


def _region(truth: Labelled, *, found: Labelled | None) -> Box:
    """The box of everything labelled with its margin, the whole scan where nothing is."""
    boxes = [box for labelled in (truth, found) if labelled for box in labelled.boxes().values()]
    box = union(boxes) if boxes else None
    shape, spacing = truth.label.shape, truth.geometry.spacing
    if box is None:
        return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
    z, y, x = (
        slice(max(0, part.start - round(MARGIN_MM / mm)), min(n, part.stop + round(MARGIN_MM / mm)))
        for part, n, mm in zip(box, shape, spacing, strict=True)
    )
    return z, y, x


def _map(labelled: Labelled, *, label: NDArray) -> tuple[NDArray[np.uint8], list[list[str]]]:
    """The label map in values from 0 on, and the structures that each of them belongs to; 0 is nothing's."""
    values, indices = np.unique(label, return_inverse=True)
    names = [[name for name, own in labelled.values.items() if value in own] for value in values.tolist()]
    # All values of nothing are one: a reference may have some that it ignores.
    known = [i for i, own in enumerate(names) if own]
    table = np.zeros(len(values), np.intp)
    table[known] = np.arange(1, len(known) + 1)
    return table[indices].reshape(label.shape).astype(np.uint8), [[], *(names[i] for i in known)]


def _levels(image: NDArray) -> NDArray[np.uint8]:
    return np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, image).astype(np.uint8)


def _note(truth: Labelled, *, steps: tuple[int, ...], image: bool) -> str:
    size = " × ".join(map(str, truth.label.shape))
    mm = " × ".join(f"{value:.3g}" for value in truth.geometry.spacing)
    every = " × ".join(map(str, steps))
    thinned = (
        "Every voxel of the labelled region is shown"
        if max(steps) == 1
        else f"One of every {every} voxels of the labelled region is shown, so small structures may look broken"
    )
    hu = "HU are rounded, to 3 between -200 and 300." if image else "No images lie beside the label maps."
    return f"{thinned}; the scan has {size} voxels of {mm} mm (z, y, x). {hu}"
