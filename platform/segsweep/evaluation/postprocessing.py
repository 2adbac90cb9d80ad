"""nnU-Net's search for a useful clean-up (Isensee et al., Nature Methods 2021): which largest components to keep, by held-out cases."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import numpy as np

from segsweep.data.store import Store
from segsweep.evaluation.whole_scans import Scores, dice_of
from segsweep.inference.postprocess import clean
from segsweep.inference.predictor import Predictor
from segsweep.learning.inference import CleanUp

# Means that differ by less are equal: sums of the same numbers in another order.
ROUNDING = 1e-9

# What is tried: the present rules; with the largest component of the whole foreground; of every structure; of both, in this order.
Variant = Literal["present", "foreground", "structures", "both"]
Tried = Mapping[str, Mapping[Variant, Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A structure's mean Dice without and with the rules that were found, and in how many cases it rose and fell."""

    before: float
    after: float
    better: int
    worse: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """The rules that help (`present` if none does), what they do for each structure, and the Dice of every case with them."""

    present: CleanUp
    rules: CleanUp
    gains: Mapping[str, Gain]
    scores: Scores

    @property
    def helps(self) -> bool:
        """Whether any rule was added."""
        return self.rules != self.present

    @property
    def before(self) -> float:
        """Mean Dice of all structures with the present rules."""
        return fmean(gain.before for gain in self.gains.values())

    @property
    def after(self) -> float:
        """Mean Dice of all structures with the rules that were found."""
        return fmean(gain.after for gain in self.gains.values())


def try_case(predictor: Predictor, *, store: Store, case_id: str) -> Mapping[Variant, Mapping[str, float]]:
    """Dice of every annotated structure of a case with each of the variants, on its own grid, without ignored voxels.

    The scan is segmented once. A structure's rule is tried with those of all others: they do not touch it, unless an atom table lacks
    what would be left of a voxel where both were.
    """
    grid, annotated = store.grid(case_id), store.cases[case_id].annotated
    truth, own = grid.read_label(), predictor.table_task.table
    first, *others = predictor.members
    plain = replace(first, inference=replace(first.inference, clean_up=CleanUp()))
    raw = Predictor(members=(plain, *others)).segment(grid.read_image(), geometry=grid.geometry, structures=annotated)
    tried: dict[Variant, dict[str, float]] = {}
    for variant, rules in _variants(predictor).items():
        label = clean(raw, rules=rules, table=own, spacing=grid.geometry.spacing)
        label = np.where(truth == store.table.ignored, label.dtype.type(0), label)
        tried[variant] = {
            name: dice_of(own.mask(label, structure=name), truth=store.table.mask(truth, structure=name))
            for name in annotated
        }
    return tried


def choose(tried: Tried, *, present: CleanUp) -> Found:
    """The rules that help, by nnU-Net's criterion, which beyond rounding holds exactly.

    The largest component of the whole foreground is kept alone if the mean Dice of all structures rises by it and that of none falls;
    then that of a structure, if its own mean rises by it. Means are over the cases in which a structure is annotated.
    """
    mean: dict[Variant, dict[str, float]] = {
        variant: _means({case: one[variant] for case, one in tried.items()}) for variant in _ORDER
    }
    whole = _better(mean["foreground"], than=mean["present"])
    source: Variant = "foreground" if whole else "present"
    cleaned: Variant = "both" if whole else "structures"
    added = [
        name
        for name in mean[source]
        if name not in present.largest and mean[cleaned][name] > mean[source][name] + ROUNDING
    ]
    rules = replace(
        present,
        foreground="largest" if whole else present.foreground,
        largest=(*present.largest, *added),
    )
    scores = {
        case: {name: one[cleaned if name in added else source][name] for name in one[source]}
        for case, one in tried.items()
    }
    before = {case: one["present"] for case, one in tried.items()}
    gains = {name: _gain(name, before=before, after=scores) for name in mean["present"]}
    return Found(present=present, rules=rules, gains=gains, scores=scores)


_ORDER: tuple[Variant, ...] = ("present", "foreground", "structures", "both")


def _variants(predictor: Predictor) -> Mapping[Variant, CleanUp]:
    present = predictor.members[0].inference.clean_up
    structures = predictor.table_task.table.labels.structures
    return {
        "present": present,
        "foreground": replace(present, foreground="largest"),
        "structures": replace(present, largest=structures),
        "both": replace(present, foreground="largest", largest=structures),
    }


def _means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over cases of every structure, in the order in which they come."""
    names = dict.fromkeys(name for values in scores.values() for name in values)
    return {name: fmean(values[name] for values in scores.values() if name in values) for name in names}


def _better(means: Mapping[str, float], *, than: Mapping[str, float]) -> bool:
    rises = fmean(means.values()) > fmean(than.values()) + ROUNDING
    return rises and all(means[name] >= than[name] - ROUNDING for name in means)


def _gain(name: str, *, before: Mapping[str, Mapping[str, float]], after: Scores) -> Gain:
    pairs = [(values[name], after[case][name]) for case, values in before.items() if name in values]
    return Gain(
        before=fmean(old for old, _ in pairs),
        after=fmean(new for _, new in pairs),
        better=sum(new > old for old, new in pairs),
        worse=sum(new < old for old, new in pairs),
    )
