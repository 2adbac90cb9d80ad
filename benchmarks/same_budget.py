"""The same minutes of training on two cores: `segsweep train unet` beside nnU-Net's plain trainer, on openKBP.

    python benchmarks/same_budget.py RAW --nnunet-python PEER/bin/python --work WORK       (Linux; about 100 minutes)

RAW is the openKBP folder; PEER is the environment that conversion.py describes. KEY=VALUE at the end go to `segsweep train` (default:
preset=small). The same command goes on after an interruption; a side that is trained is not trained again. The table also lies in
WORK/same_budget.json.

Both sides train on the cases that fold 0 of the store trains on and are scored on all others: those that the fold holds out and the
published validation split, ten in all, because an interval over the four published ones alone says little. Neither chooses anything
by them: both keep the weights of the last epoch.

Each side first trains two epochs, the second of which is timed; it then gets as many as fit the minutes, over which its learning rate
decays. Of nnU-Net's epochs (250 batches, and 50 to validate) `--nnunet-iterations` batches are left and a fifth as many to validate,
because on two cores not one of its own fits the budget. Training is timed from epoch end to epoch end, and the first epoch counts
like the others: starting processes, and validating and predicting whole scans, cost no budget on either side. nnU-Net's network,
patch and batch are its own plan, made for 8 GB unless `--nnunet-memory` says otherwise.
"""

import argparse
import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from same_budget_sides import (
    NUM_CORES,
    OURS,
    THEIRS,
    Ends,
    Fitted,
    Settings,
    Work,
    ours,
    predict_ours,
    predict_theirs,
    prepare,
    say,
    train_ours,
    train_theirs,
)

from segsweep.errors import InputError, SegsweepError
from segsweep.evaluation.statistics import difference_interval, mean_interval

WARM_UP_EPOCHS = 2
# Of each case and structure that was scored.
Dice = Mapping[tuple[str, str], float]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One side: what it trained, seconds of training, those of an epoch in the warm-up, peak memory of its processes (PSS, bytes)."""

    epochs: int
    iterations: int
    batch_size: int
    patch_size: tuple[int, ...]
    seconds: float
    warm_up: float
    memory: int


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is not trained yet, score both sides and print the table; returns the exit code, 2 for what a user can put right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("values", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--nnunet-python", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--nnunet-iterations", type=int, default=5, help="batches of an epoch")
    parser.add_argument("--nnunet-memory", type=float, help="GB that nnU-Net plans its network for")
    parser.add_argument("--mirror", choices=("none", "zyx"), default="none", help="average predictions over flips")
    parser.add_argument("--profile", default="plain", help="of `segsweep evaluate`")
    given = parser.parse_args(argv)
    settings = Settings(
        raw=str(given.raw.resolve()),
        minutes=given.minutes,
        values=tuple(given.values or ["preset=small"]),
        nnunet_iterations=given.nnunet_iterations,
        nnunet_memory=given.nnunet_memory,
        mirror=given.mirror,
        profile=given.profile,
    )
    try:
        compare(Work(folder=given.work.resolve(), python=given.nnunet_python.absolute(), settings=settings))
    except SegsweepError as error:
        print(f"same_budget: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def compare(work: Work) -> None:
    """Do all that a work folder lacks, print the table and write same_budget.json.

    Raises InputError for what cannot be used, SegsweepError when a step fails.
    """
    version = demand_usable(work)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])
    if not work.scans.is_dir():
        prepare(work)
    trained = {}
    for name, train, predict in ((OURS, train_ours, predict_ours), (THEIRS, train_theirs, predict_theirs)):
        trained[name] = train_side(work, name=name, train=train)
        scores = scores_of(work, name=name)
        if not scores.is_file():
            say(f"{name}: predicting")
            predict(work)
            evaluate(work, name=name)
    document = summarise(read_dice(scores_of(work, name=OURS)), theirs=read_dice(scores_of(work, name=THEIRS)))
    document |= {"settings": dataclasses.asdict(work.settings), "nnunetv2": version}
    document["trained"] = {name: dataclasses.asdict(side) for name, side in trained.items()}
    (work.folder / "same_budget.json").write_text(json.dumps(document, indent=1))
    print("\n".join(table(document)))


def demand_usable(work: Work) -> str:
    """The version of nnU-Net. Raises InputError for a raw folder, an interpreter, minutes or a work folder that cannot be used."""
    settings = work.settings
    if not (Path(settings.raw) / "cases.json").is_file():
        raise InputError(f"{settings.raw}: has no cases.json; expected the openKBP folder with images/, labels/ and it")
    if not settings.minutes > 0 or settings.nnunet_iterations < 1:
        raise InputError(
            f"minutes={settings.minutes} and nnunet-iterations={settings.nnunet_iterations} cannot be used; "
            "expected more than 0 of both"
        )
    code = "import importlib.metadata as m; print(m.version('nnunetv2'))"
    try:
        asked = subprocess.run([work.python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"{work.python}: {error.strerror}; expected a Python interpreter that has nnunetv2") from None
    if asked.returncode:
        raise InputError(f"{work.python}: has no nnunetv2; install it there, or name another interpreter")
    kept, text = work.folder / "settings.json", json.dumps(dataclasses.asdict(settings), indent=1)
    if kept.is_file() and kept.read_text() != text:
        raise InputError(f"{work.folder}: holds a comparison with other settings ({kept.name}); name another --work")
    work.folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(text)
    return asked.stdout.strip()


def train_side(work: Work, *, name: str, train: Callable[..., Fitted]) -> Trained:
    """Time an epoch, then train as many as fit the minutes; what an earlier call finished is read."""
    folder = work.folder / name
    record = folder / "trained.json"
    if record.is_file():
        return Trained(**json.loads(record.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    say(f"{name}: timing an epoch")
    warm_up = epoch_seconds(train(work, folder=folder / "warm_up", epochs=WARM_UP_EPOCHS).ends)
    epochs = fitting_epochs(warm_up, seconds=60 * work.settings.minutes)
    say(f"{name}: {warm_up:.1f} s an epoch, training {epochs}")
    fitted = train(work, folder=folder / "run", epochs=epochs)
    trained = Trained(
        epochs=epochs,
        seconds=epochs * epoch_seconds(fitted.ends),
        warm_up=warm_up,
        memory=fitted.memory,
        **dataclasses.asdict(fitted.plan),
    )
    record.write_text(json.dumps(dataclasses.asdict(trained)))
    return trained


def epoch_seconds(ends: Ends) -> float:
    """Mean seconds of the epochs after the first one. Raises SegsweepError when less than two ends were seen."""
    if len(ends) < 2:
        raise SegsweepError(f"the ends of {len(ends)} epochs were seen, expected 2; give epochs more iterations")
    first, last = min(ends), max(ends)
    return (ends[last] - ends[first]) / (last - first)


def fitting_epochs(each: float, *, seconds: float) -> int:
    """How many epochs of `each` seconds come nearest to a budget, but never one alone, which could not be timed."""
    return max(2, round(seconds / each))


def evaluate(work: Work, *, name: str) -> None:
    """Score a side's label maps against the store."""
    given = (work.folder / name / "predictions", work.store, "--profile", work.settings.profile)
    ours(work, "evaluate", *given, "--out", scores_of(work, name=name).parent, log=f"{name}/evaluate.log")


def scores_of(work: Work, *, name: str) -> Path:
    """The table that `segsweep evaluate` writes of a side."""
    return work.folder / name / "evaluation" / "scores.csv"


def read_dice(scores: Path) -> Dice:
    """What `segsweep evaluate` found, without structures that were not scored."""
    with scores.open(newline="") as file:
        return {(row["case"], row["structure"]): float(row["dice"]) for row in csv.DictReader(file) if row["dice"]}


def summarise(mine: Dice, *, theirs: Dice) -> dict[str, Any]:
    """Mean Dice of both sides and the paired interval of their difference, for each structure and for their mean.

    Only what both have a Dice of counts. The intervals are the 95 % of a bootstrap over cases.
    """
    cases = sorted({case for case, _ in mine})
    structures = list(dict.fromkeys(name for _, name in mine))
    pairs = np.array(
        [[[side.get((case, name), np.nan) for name in structures] for case in cases] for side in (mine, theirs)]
    )
    pairs[:, np.isnan(pairs).any(axis=0)] = np.nan
    columns = {name: pairs[:, :, index] for index, name in enumerate(structures)}
    return {"cases": cases, "dice": {name: _compared(table) for name, table in {**columns, "mean": pairs}.items()}}


def _compared(pairs: NDArray[np.float64]) -> dict[str, Any]:
    first, second = pairs
    interval = difference_interval(first, second=second)
    means = {OURS: mean_interval(first).mean, THEIRS: mean_interval(second).mean}
    return {**means, "difference": dataclasses.asdict(interval)}


def table(document: Mapping[str, Any]) -> list[str]:
    """The lines that a person reads."""
    trained = [document["trained"][name] for name in (OURS, THEIRS)]
    settings, cases = document["settings"], document["cases"]
    lines = [
        f"openKBP, {NUM_CORES} cores, {settings['minutes']:g} minutes of training each; {len(cases)} held-out cases, "
        f"segsweep {' '.join(settings['values'])}, nnU-Net {document['nnunetv2']}, mirror {settings['mirror']}",
        "",
        f"{'Dice':20}{'segsweep':>12}{'nnU-Net':>12}   difference, 95 % interval",
    ]
    for name, row in document["dice"].items():
        gap = row["difference"]
        interval = f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
        lines.append(f"{name:20}{row[OURS]:12.3f}{row[THEIRS]:12.3f}   {interval}")
    lines.append("")
    rows = {
        "seconds of training": [f"{side['seconds']:.0f}" for side in trained],
        "seconds an iteration": [f"{side['seconds'] / side['epochs'] / side['iterations']:.2f}" for side in trained],
        "epochs": [str(side["epochs"]) for side in trained],
        "batches an epoch": [str(side["iterations"]) for side in trained],
        "patches a batch": [str(side["batch_size"]) for side in trained],
        "patch (z, y, x)": ["x".join(map(str, side["patch_size"])) for side in trained],
        "peak memory MB (PSS)": [f"{side['memory'] / 1e6:.0f}" for side in trained],
    }
    lines += [f"{title:20}{first:>12}{second:>12}" for title, (first, second) in rows.items()]
    off = [side["seconds"] / 60 / settings["minutes"] for side in trained]
    if max(off) > 1.1 or min(off) < 0.9:
        lines += [
            "",
            "The budgets used lie more than 10 % off: the machine was busy, or an epoch is long beside the budget.",
        ]
    return lines


if __name__ == "__main__":
    sys.exit(main())
