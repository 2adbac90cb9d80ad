"""The whole walk on a phantom: make scans, convert, tune, register, ensemble, predict, evaluate, and say where everything is."""

import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segsweep import recipes
from segsweep.data.conversion import convert
from segsweep.data.store import Store
from segsweep.evaluation.evaluation import Evaluation, Options, evaluate
from segsweep.inference.prediction import predict
from segsweep.inference.scans import find_files
from segsweep.models.catalogue import Registered
from segsweep.models.ensemble import build, load_predictor
from segsweep.models.tracking import Tracker
from segsweep.sweeps.cluster import connect
from segsweep.sweeps.tuning import Swept, tune
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.terminal import bars, say
from segsweep.workspace import Workspace, current_workspace

# Two workers a trial show data-parallel training; early stopping may end a trial from the third epoch on.
MEMBERS = 2
SWEEP = SweepOptions(name="demo", trials=4, workers=2, concurrent=1, stop="asha", grace=0.33, register=MEMBERS)


def walk(folder: Path, *, seed: int, sweep: SweepOptions = SWEEP, params: Mapping[str, Any] | None = None) -> None:
    """Run every step in `folder`; a step that was done before is kept, so an interrupted demo goes on.

    `sweep` and `params` (of every trial) are there for a shorter walk, as in the tests.
    """
    begun = time.monotonic()
    folder = folder.resolve()
    os.environ["SEGSWEEP_WORKSPACE"] = str(folder / "workspace")
    workspace = current_workspace()
    phantom = recipes.load("datasets", name="phantom")

    _title(1, "phantom: 16 head-and-neck CTs, plain and with contrast, some partly annotated, some not at all")
    raw = folder / "raw"
    if not (raw / "cases.json").is_file():
        with bars() as shown:
            phantom.make(raw, seed=seed, progress=shown.count)
    _title(2, "convert: NIfTI to a chunked, checksummed Zarr store, with a plan")
    connect()
    with bars() as shown:
        store = convert("phantom", raw=raw, store=folder / "store", progress=shown.count).store
    say(f"  {len(store.cases)} cases, {len(store.table.labels.structures)} structures, spacing {store.plan.spacing} mm")
    _title(
        3,
        f"tune: {sweep.trials} trials over patch size, oversampling, epochs and loss; {sweep.workers} DDP workers a trial",
    )
    swept = _tune(store, workspace=workspace, sweep=sweep, params=params or {})
    if swept.interrupted:
        raise KeyboardInterrupt
    _title(4, "ensemble: the mean of the best registered versions")
    tracker = Tracker(workspace, experiment=store.dataset)
    members = [version.uri for version in swept.registered]
    combined = build(members, name="phantom-ensemble", tracker=tracker)
    say(f"  {combined.uri} = mean of {', '.join(members)}")
    _title(5, "predict: held-out scans, each on its own grid and orientation")
    predictions = _predict(folder, store=store, versions=(combined, *swept.registered), workspace=workspace)
    _title(6, "evaluate: Dice and NSD per structure and case, against the single models")
    report = _evaluate(folder, store=store, predictions=predictions)
    _say_where(folder, report=report, combined=combined, seconds=time.monotonic() - begun)


def _tune(store: Store, *, workspace: Workspace, sweep: SweepOptions, params: Mapping[str, Any]) -> Swept:
    with bars() as shown:
        swept = tune("phantom", store=store.uri, workspace=workspace, options=sweep, params=params, report=shown.trial)
    if len(swept.registered) < MEMBERS and not swept.interrupted:
        # All others were stopped early: one more trial, which may end.
        longer = dataclasses.replace(sweep, trials=sweep.trials + 1, stop="none")
        with bars() as shown:
            swept = tune(
                "phantom", store=store.uri, workspace=workspace, options=longer, params=params, report=shown.trial
            )
    for trial in swept.trials:
        dice = "stopped early" if trial.dice is None else f"dice {trial.dice:.3f}"
        say(f"  {trial.name}: {trial.state} after {trial.epochs} epochs, {dice}")
    for version in swept.registered:
        say(f"  registered {version.uri}")
    return swept


def _predict(folder: Path, *, store: Store, versions: tuple[Registered, ...], workspace: Workspace) -> dict[str, Path]:
    """Predictions of every version on the held-out scans, by the version's short name, the ensemble first."""
    held_out = set(store.held_out("validation"))
    scans = [
        scan for scan in find_files(folder / "raw" / "images", channels=store.channels) if scan.case_id in held_out
    ]
    predictions = {}
    for version in versions:
        name = f"{version.name}-{version.version}"
        out = folder / "predictions" / name
        predictor = load_predictor(version.uri, workspace=workspace)
        with bars() as shown:
            done = predict(
                scans, predictor=predictor, out=out, progress=lambda n, total, name=name: shown.count(name, n, total)
            )
        say(f"  {name}: {len(done.written)} scans")
        predictions[name] = out
    return predictions


def _evaluate(folder: Path, *, store: Store, predictions: dict[str, Path]) -> Evaluation:
    (_, ensemble), *singles = predictions.items()
    with bars() as shown:
        options = Options(compare=dict(singles), progress=lambda done, total: shown.count("cases", done, total))
        return evaluate(ensemble, reference=store, profile="plain", out=folder / "evaluation", options=options)


def _title(number: int, text: str) -> None:
    say(f"{number}/6 {text}", style="bold")


def _say_where(folder: Path, *, report: Evaluation, combined: Registered, seconds: float) -> None:
    for line in report.lines():
        say(f"  {line}")
    workspace = folder / "workspace"
    say(f"\ndone in {seconds:.0f} s. Everything is under {folder}:")
    for path, what in (
        (folder / "evaluation" / "report.html", "the report: open it in a browser"),
        (folder / "store" / "plan.json", "the plan: edit it, then tune again"),
        (folder / "predictions", "label maps on the scans' own grids"),
        (workspace / "mlflow.db", "runs and registered models"),
    ):
        say(f"  {path}  {what}")
    command = sys.argv[0] if Path(sys.argv[0]).name == "segsweep" else "segsweep"
    say(
        f"\nnext:\n  export SEGSWEEP_WORKSPACE={workspace}\n"
        f"  {command} ui                                   browse runs, models and the sweep\n"
        f"  {command} predict {combined.uri} SCANS OUT\n"
        "the same walk on your own data:\n"
        f"  {command} list datasets\n"
        f"  {command} convert DATASET RAW --store STORE\n"
        f"  {command} tune default STORE trials=20"
    )
