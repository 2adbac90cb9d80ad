"""Whether a trial is significantly worse than the best one on the same scans: Wilcoxon's signed-rank test on its folder's validations.

The rule for one comparison is that of Optuna's WilcoxonPruner: one-sided, zeros split between both signs, and never against a trial
whose mean is no better. The rate is one for the whole trial: each validation may spend of it the share of the training that passed
since the one before, divided by the trials that the best one was the best of. So a trial that is no worse than any of them is
stopped with at most that probability, however often it is looked at.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from segsweep.data.manifest import read_json
from segsweep.sweeps.folds import FOLD_FOLDERS
from segsweep.sweeps.run_folder import RESULT, VALIDATION, read_result

# Optuna's value.
RATE = 0.1
BETWEEN = re.compile(r"validation-(\d+)\.json")


@dataclass(frozen=True, kw_only=True)
class Look:
    """A validation of whole scans after a share of a trial's epochs. `cases`: mean Dice over a case's structures, by its id."""

    share: float
    cases: Mapping[str, float]


def worse(own: Mapping[str, float], best: Mapping[str, float], *, threshold: float) -> bool:
    """Whether the scores of the cases that both have are lower than the best trial's, with p below the threshold."""
    shared = sorted(own.keys() & best.keys())
    # With so few cases even the clearest difference has a larger p.
    if not shared or 0.5 ** len(shared) >= threshold:
        return False
    ours, theirs = (np.array([scores[case_id] for case_id in shared]) for scores in (own, best))
    if ours.mean() >= theirs.mean():
        return False
    test: Any = wilcoxon(ours - theirs, alternative="less", zero_method="zsplit")
    return bool(test.pvalue < threshold)


def fewest_cases(*, share: float) -> int:
    """Cases with which a trial can be stopped at all, where a validation follows each such share of the epochs."""
    return int(np.floor(np.log2(1 / (RATE * share)))) + 1


def looks(folder: Path, *, epochs: int) -> tuple[Look, ...]:
    """All validations of a run that is meant to train so many epochs, in their order; its last one has share 1."""
    found = {
        int(match[1]): path for path in folder.glob("validation-*.json") if (match := BETWEEN.fullmatch(path.name))
    }
    if (folder / RESULT).is_file() and (folder / VALIDATION).is_file():
        found[epochs] = folder / VALIDATION
    do = "delete it: trials are compared without it"
    read = ((epoch, read_json(found[epoch], do=do)) for epoch in sorted(found))
    return tuple(
        Look(share=epoch / epochs, cases={name: fmean(dice.values()) for name, dice in scores.items() if dice})
        for epoch, scores in read
        if scores
    )


def comparable(found: Sequence[Look], *, share: float) -> Look | None:
    """The nearest of a rival's validations, of those for which it had trained no larger a share of its epochs: it has no advantage."""
    return max((look for look in found if look.share <= share), key=lambda look: look.share, default=None)


def verdict(folder: Path, *, running: Mapping[Path, int], ended: dict[Path, Mapping[str, Any]]) -> bool:
    """Whether the trial in a folder is to be stopped after its latest validation; of a trial of several folds it is the first one's folder.

    The best finished trial of the folders beside it is what it is compared with; where none is finished the best running one.
    `running`: epochs of those, by folder, this one's among them. `ended`: results of the others as they are read, for the next verdict.
    """
    own = looks(folder, epochs=running[folder])
    now, before = own[-1], own[-2].share if len(own) > 1 else 0.0
    finished = _finished(folder, ended=ended)
    rivals: Sequence[Any] = tuple(finished)
    best = max(finished, key=lambda other: finished[other]["dice"], default=None)
    seen = comparable(looks(best, epochs=finished[best]["epochs"]), share=now.share) if best else None
    if best is None:
        others = (looks(other, epochs=epochs) for other, epochs in running.items() if other != folder)
        rivals = [look for other in others if (look := comparable(other, share=now.share)) is not None]
        seen = max(rivals, key=lambda look: fmean(look.cases.values()), default=None)
    return seen is not None and worse(now.cases, seen.cases, threshold=RATE * (now.share - before) / len(rivals))


def _finished(folder: Path, *, ended: dict[Path, Mapping[str, Any]]) -> dict[Path, Mapping[str, Any]]:
    """Results of the trials beside this one that were trained to their end; of several folds, the same fold of each."""
    sweep, same = (folder.parent.parent, f"{folder.name}/") if folder.match(FOLD_FOLDERS) else (folder.parent, "")
    there = [path.parent for path in sorted(sweep.glob(f"trial-*/{same}{RESULT}"))]
    ended |= {other: read_result(other) for other in there if other not in ended}
    known = {other: ended[other] for other in there if other != folder}
    return {other: result for other, result in known.items() if result["status"] == "finished" and "dice" in result}
