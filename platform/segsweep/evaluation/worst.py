"""The main model's worst results, looked at: pictures through the worst structures, and their cases for the slice viewer."""

import base64
import html
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from segsweep.errors import InputError, unknown
from segsweep.evaluation.metrics import Score
from segsweep.evaluation.overlays import PREDICTION_COLOUR, REFERENCE_COLOUR, WINDOW_HU
from segsweep.evaluation.pictures import three_planes
from segsweep.evaluation.score_tables import open_button
from segsweep.evaluation.sources import Labelled, Source, read_case
from segsweep.evaluation.viewer import Packed, Viewed, pack

# Pictures, and how many of them may show one structure: one that always fails would leave no room for others.
NUM_PICTURES, MOST_OF_ONE = 8, 2


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a report shows of the worst: the figures' HTML, worst first, the viewer's cases, and those that it cannot show."""

    figures: str
    packed: tuple[Packed, ...]
    left_out: tuple[str, ...]


def view_of(words: str, *, cases: Sequence[str]) -> int | tuple[str, ...]:
    """`3`, so many of the worst cases, or `CASE,CASE` by name. Raises InputError for what is neither."""
    names = tuple(dict.fromkeys(words.split(",")))
    if words.isdecimal() and words not in cases:
        return int(words)
    for name in names:
        if name not in cases:
            raise InputError(
                f"view={words}: {unknown(name, kind='cases that are scored', known=cases)}; or give a number"
            )
    return names


def look(scores: Sequence[Score], *, source: Source, model: Source, view: int | tuple[str, ...]) -> Seen:
    """Read each case that is shown once more; those without a prediction or reference have nothing to show and are passed over."""
    ranked = sorted(
        (score for score in scores if score.case in model.cases and not math.isnan(score.dice)),
        key=lambda score: (score.dice, score.nsd),
    )
    pictured = _some(ranked)
    first = {score.case: score.structure for score in reversed(ranked)}
    # The cases of the pictures come first, in the pictures' order.
    order = dict.fromkeys(score.case for score in (*pictured, *ranked))
    wanted = tuple(order)[:view] if isinstance(view, int) else view
    figures: dict[Score, str] = {}
    packed: dict[str, Packed] = {}
    for case in dict.fromkeys((*wanted, *(score.case for score in pictured))):
        if not (case in model.cases and case in source.cases):
            continue
        truth, image = source.read(case), source.image(case)
        found = read_case(model, case=case, like=truth)
        if case in wanted:
            done = pack(Viewed(truth=truth, found=found, image=image, structure=first.get(case, "")))
            packed |= {case: done} if done else {}
        for score in pictured:
            if score.case == case:
                figures[score] = _figure(score, truth=truth, found=found, image=image, button=case in packed)
    return Seen(
        figures="".join(figures[score] for score in pictured),
        packed=tuple(packed[case] for case in wanted if case in packed),
        left_out=tuple(case for case in wanted if case not in packed),
    )


def legend() -> str:
    """What the figures' lines and sides are."""
    low, high = WINDOW_HU
    return (
        f'<p><span class="key" style="background:{REFERENCE_COLOUR}"></span>reference (solid)'
        f'<span class="key" style="background:{PREDICTION_COLOUR}"></span>prediction (dashed)</p>'
        f"<p class='muted'>Through the structure's centre, at most {MOST_OF_ONE} cases of one structure; CT window {low:g} to {high:g} HU; "
        "the patient's right is on the left.</p>"
    )


def _some(ranked: Sequence[Score]) -> list[Score]:
    chosen: list[Score] = []
    counts: Counter[str] = Counter()
    for score in ranked:
        counts[score.structure] += 1
        if counts[score.structure] <= MOST_OF_ONE:
            chosen.append(score)
        if len(chosen) == NUM_PICTURES:
            break
    return chosen


def _figure(score: Score, *, truth: Labelled, found: Labelled, image: NDArray | None, button: bool) -> str:
    png = three_planes(
        image,
        reference=truth.mask(score.structure),
        prediction=found.mask(score.structure),
        spacing=truth.geometry.spacing,
    )
    label = f"{html.escape(score.case)}, {html.escape(score.structure)}: Dice {score.dice:.3f}, NSD {score.nsd:.3f}"
    if not math.isnan(score.hd95_mm):
        label += f", HD95 {score.hd95_mm:.1f} mm"
    if png is None:
        return f"<figure><figcaption>{label} (both masks are empty)</figcaption></figure>"
    shown = f'<div class="wide"><img alt="{label}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></div>'
    more = open_button(score.case, structure=score.structure) if button else ""
    return f"<figure>{shown}<figcaption>{label}{more}</figcaption></figure>"
