"""Verbs that train: train, tune."""
# ruff: noqa: PLC0415

import os
import shlex
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from segsweep import recipes
from segsweep.cli.app import StorePaths, Values, app, parsed
from segsweep.errors import RecipeError
from segsweep.run import Run
from segsweep.terminal import bars, console, counted, say
from segsweep.workspace import current_workspace

# Keys of a sweep that need not be whole numbers, and between which ends they lie.
SHARES = {"scale": "above 0, at most 1", "gpus": "above 0, at most 1", "grace": "from 0 to below 1"}


@app.command()
def train(
    trainable: Annotated[str, typer.Argument(metavar="TRAINABLE", help="A recipe of `segsweep list trainables`.")],
    store: StorePaths,
    values: Values = None,
) -> None:
    """Train one run and register its model.

    Keys of the run:
      fold      which of the store's folds validates: 0 to 4, or all
      seed      of weights and patches                                  (0)
      workers   processes that train together, one core or GPU each     (1)
    Every other key is a parameter of the trainable: see `segsweep list unet`.

    Give the same command again to go on after an interruption.

    Examples:
      segsweep train unet stores/openkbp preset=small
      segsweep train unet stores/openkbp fold=all epochs=500 workers=4
      segsweep train unet stores/kits19,stores/msd_liver
      segsweep train resenc_unet stores/openkbp preset=L initial=models:/heads/1
    """
    from segsweep.sweeps.cluster import connect, share
    from segsweep.sweeps.single import train as run

    given = recipes.parse_pairs(values or [])
    own = {key: given.pop(key) for key in ("fold", "seed", "workers") if key in given}
    recipes.build_params(recipes.load("trainables", name=trainable), values=given)
    chosen = Run(trainable=trainable, store=str(store), params=parsed(given), **parsed(own))
    _demand_possible(chosen)
    connect()
    share(workers=chosen.workers)
    with bars() as shown:
        trained = run(chosen, workspace=current_workspace(), report=shown.trial)
    dice = f", dice {trained.result['dice']:.4f}" if "dice" in trained.result else ""
    say(f"{trained.folder}: {trained.result['status']} after {counted(trained.result['epoch'], noun='epoch')}{dice}")
    say(f"registered as {trained.registered.uri}")
    say(f"next: segsweep predict {trained.registered.uri} SCANS predictions/")


@app.command()
def tune(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="A recipe of `segsweep list spaces`.")],
    store: StorePaths,
    values: Values = None,
) -> None:
    """Sweep a search space and register the best models.

    Optuna proposes, Ray Tune runs the trials, MLflow keeps every one of them.

    Keys of the sweep:
      trials      how many in all                                      (20)
      concurrent  at a time; 0 = as many as fit                         (0)
      workers     processes of each trial, one core or GPU each         (1)
      gpus        of each worker, as 0.5 where trials share a GPU       (1)
      folds       that each trial trains: 0 or 0,1,2, or all of them    (0)
      seed        as in `segsweep train`                                (0)
      sampler     tpe, gp, random, grid or nsga2                      (tpe)
      objective   dice or nsd, also with seconds_per_case, memory_gb (dice)
      warm        earlier sweeps to learn from: NAME,NAME            (none)
      stop        bad trials early: by asha, hyperband or paired     (none)
      grace       share of its epochs before one may be stopped       (0.1)
      register    how many of the best become registered models         (3)
      name        of the sweep                              (SPACE-DATASET)
    Keys of a published comparison, whose rows are the trials:
      scale       share of its epochs and of its patches' voxels        (1)
      pretrained  model that its pre-trained rows start from         (none)
    Every other key is a parameter that all trials share.

    stop=paired compares whole scans: give it scan_validation_every=EPOCHS.
    objective=nsd is at 2 mm: another tolerance is nsd_tolerance=MM.
    Give the same command again to resume, with more trials to extend.

    Examples:
      segsweep tune default stores/openkbp preset=small
      segsweep tune default stores/openkbp trials=40 stop=asha workers=2
      segsweep tune default stores/openkbp folds=all objective=nsd
      segsweep tune gtv_loss stores/segrap scale=0.01
    """
    from segsweep.sweeps.following import describe
    from segsweep.sweeps.tuning import tune as run
    from segsweep.sweeps.tuning_shared import first_run

    options, params = _sweep_options(recipes.parse_pairs(values or []))
    _demand_possible(first_run(space, store=str(store), options=options, params=params))
    workspace = current_workspace()
    with bars() as shown:
        swept = run(space, store=str(store), workspace=workspace, options=options, params=params, report=shown.trial)
    names = options.objective.split(",")
    table = Table("trial", "state", *names, "epochs", "parameters", box=None)
    for trial in swept.trials:
        measured = (f"{trial.values[name]:.4f}" if name in trial.values else "" for name in names)
        table.add_row(trial.name, trial.state, *measured, str(trial.epochs), escape(describe(trial.config)))
    console.print(table)
    for version in swept.registered:
        say(f"registered {version.uri}")
    if swept.report:
        say(f"report: {swept.report}")
    if swept.page:
        say(f"comparison: {swept.page}")
    if swept.interrupted:
        raise typer.Exit(130)
    say(f"next: segsweep ensemble {shlex.quote(str(store))}   or   segsweep ui")


def _sweep_options(given: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    """Sweep options, and what is left for the trainable."""
    from dataclasses import fields

    from segsweep.sweeps.tuning_options import SweepOptions

    if "fold" in given:
        raise RecipeError(f"fold={given['fold']} is for `segsweep train`; expected folds=0, folds=0,1,2 or folds=all")
    own = {field.name: given.pop(field.name) for field in fields(SweepOptions) if field.name in given}
    words = ("name", "folds", "pretrained", "sampler", "objective", "warm", "stop")
    if "grace" in own and own.get("stop", "none") == "none":
        raise RecipeError(
            f"grace={own['grace']} alone stops no trial; expected stop=asha, hyperband or paired beside it"
        )
    texts = {key: own.pop(key) for key in words if key in own}
    numbers = parsed(own)
    for key, value in numbers.items():
        if key in SHARES and type(value) not in (int, float):
            raise RecipeError(f"{key}={value!r} cannot be used: expected a share {SHARES[key]}")
        if key not in SHARES and type(value) is not int:
            raise RecipeError(f"{key}={value!r} cannot be used: expected a whole number")
    try:
        options = SweepOptions(**texts, **numbers)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return options, parsed(given)


def _demand_possible(run: Run) -> None:
    """Refuse, before Ray starts, what this machine could never hold. (A cluster's memory is known once it is joined.)"""
    from segsweep.learning.memory import has_gpu, machine_bytes
    from segsweep.sweeps.preparing import demand_memory, prepare

    prepared = prepare(run)
    if "RAY_ADDRESS" not in os.environ:
        demand_memory(prepared, available=machine_bytes(), gpu=has_gpu())
