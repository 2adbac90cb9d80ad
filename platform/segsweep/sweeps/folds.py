"""A trial that trains several folds: where each of them lies, how Tune is told of it, and what they come to together.

Each fold is a run in a folder of its own within the trial's (`fold-0`, `fold-1`, …); a trial of one fold is that run itself. Tune's
rules and the study judge a trial by its first fold alone: what later ones report stands one level deeper, where no rule looks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from segsweep.evaluation.whole_scans import Scores
from segsweep.sweeps.validation import summarise

FOLD, LATER = "fold", "later"
# The folders of a trial's folds, for a search.
FOLD_FOLDERS = f"{FOLD}-*"


def fold_name(fold: int) -> str:
    """`fold-1`: of a fold's folder, and of its run below its trial's."""
    return f"{FOLD}-{fold}"


def fold_folders(folder: Path, *, folds: Sequence[int]) -> dict[int, Path]:
    """Where a trial trains each of its folds: in its own folder where there is only one."""
    return {fold: folder / fold_name(fold) if len(folds) > 1 else folder for fold in folds}


def judged_folder(folder: Path, *, report: Mapping[str, Any]) -> Path:
    """The folder of the run that a report tells of, given its trial's."""
    return folder / fold_name(report[FOLD]) if FOLD in report else folder


def told(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a report says of its run, of whichever fold."""
    return report.get(LATER, report)


def report_of(report: Mapping[str, Any], *, fold: int, first: bool) -> dict[str, Any]:
    """What Tune is told when a fold's workers report: of the first fold as of any run, with the fold's number."""
    return {**(report if first else {LATER: dict(report)}), FOLD: fold}


def merge(results: Sequence[Mapping[str, Any]], *, dice: Scores, nsd: Scores) -> dict[str, Any]:
    """The result of a trial, from those of its folds in their order and from all that these held out: case -> structure -> score.

    Scores are means as if one fold had held out all of these cases. `seconds_per_case` is the mean of the folds' medians, `memory_gb` the
    most of any fold; epochs and status are the first fold's: no other one is ever stopped. `digest` are those of the models, with commas.
    """
    first = results[0]
    costs = {
        name: combine([result[name] for result in results])
        for name, combine in (("seconds_per_case", fmean), ("memory_gb", max))
        if all(name in result for result in results)
    }
    return {
        **summarise(dice),
        **summarise(nsd, prefix="nsd"),
        **costs,
        **{name: first[name] for name in ("epoch", "epochs", "status")},
        "digest": ",".join(result["digest"] for result in results),
    }
