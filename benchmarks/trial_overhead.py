"""What a sweep adds to its trials: from a trial's launch to its first epoch, and from its last epoch to the next trial's launch.

    python benchmarks/trial_overhead.py [--trials 4]            (about 3 minutes on 2 cores)

Trials of one worker, one epoch and one step each, one after the other, on the phantom; what they compute takes less than a second, and
the same epoch is timed without any sweep beside it. The first trial also starts Ray's first workers, so it stands by itself.
Bar: 20 s a trial.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from segsweep import recipes
from segsweep.data.conversion import convert
from segsweep.learning.loop import train
from segsweep.learning.setting import Setting
from segsweep.run import Run
from segsweep.sweeps.cluster import connect
from segsweep.sweeps.preparing import prepare
from segsweep.sweeps.tuning import tune
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.sweeps.worker import training_cases
from segsweep.workspace import Workspace

BAR = 20.0
PARAMS = {"epochs": 1, "iterations": 1, "validation_iterations": 1, "features": 4, "levels": 3}
FIXED = {**PARAMS, "patch_size": [24, 48, 48], "loss": "dice_ce"}


class Moments:
    """When each trial was launched, had its first epoch behind it, and ended."""

    def __init__(self) -> None:
        self.launched: list[float] = []
        self.stepped: list[float] = []

    def __call__(self, _trial: str, done: int, _total: int, words: str) -> None:
        if words.startswith("starting"):
            self.launched.append(time.monotonic())
        elif done and len(self.stepped) < len(self.launched):
            self.stepped.append(time.monotonic())


def main() -> None:
    """Run a sweep and print seconds a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4)
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipes.load("datasets", name="phantom").make(folder / "raw", seed=0)
        connect()
        store = convert("phantom", raw=folder / "raw", store=folder / "store").store
        alone = epoch_alone(store.uri)
        moments = Moments()
        options = SweepOptions(name="overhead", trials=trials, concurrent=1, register=0)
        workspace = Workspace(root=folder)
        tune("phantom", store=store.uri, options=options, params=FIXED, workspace=workspace, report=moments)
        ended = time.monotonic()
    report(moments, ended=ended, alone=alone)


def epoch_alone(store: str) -> float:
    """Seconds of the trials' epoch by the training loop alone."""
    prepared = prepare(Run(trainable="unet", store=store, params={"preset": "small", **FIXED}))
    method, params, task = prepared.method, prepared.params, prepared.task
    cases = [
        training_cases(prepared.store, case_ids=case_ids, task=task)
        for case_ids in (prepared.store.training(0), prepared.store.validation(0))
    ]
    torch.manual_seed(0)
    setting = Setting(
        model=method.build(params, task=task), task=task, params=params, stages=method.stages(params),
        loss=method.loss(params, task=task), training=cases[0], validation=cases[1],
    )  # fmt: skip
    begun = time.monotonic()
    list(train(setting))
    return time.monotonic() - begun


def report(moments: Moments, *, ended: float, alone: float) -> None:
    """Print what lies between the moments."""
    launches = [*moments.launched[1:], ended]
    starts = [step - launch for launch, step in zip(moments.launched, moments.stepped, strict=True)]
    ends = [launch - step for launch, step in zip(launches, moments.stepped, strict=True)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        print(f"trial {number}: {start:6.1f} s to its first epoch, {end:6.1f} s to the next launch")
    median = statistics.median(start + end for start, end in list(zip(starts, ends, strict=True))[1:])
    verdict = "met" if median <= BAR else "MISSED"
    print(
        f"{median:.1f} s a trial (the first one left out), of which its epoch alone {alone:.1f} s; bar {BAR:g} s: {verdict}"
    )


if __name__ == "__main__":
    main()
