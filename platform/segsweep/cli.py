"""The command line: verbs that read their arguments, call the function of the same name, and say what came of it.

Heavy rooms are imported inside the verbs, so that `segsweep --help` answers at once.
"""
# ruff: noqa: PLC0415

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from segsweep import recipes
from segsweep.errors import InputError, RecipeError, SegsweepError, unknown
from segsweep.terminal import bars, console
from segsweep.workspace import current_workspace

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Sweep, compare, register and ensemble 3D CT segmentation methods on Ray.\n\n"
    "Results go to ./workspace (SEGSWEEP_WORKSPACE). Your own recipes are found under SEGSWEEP_PROJECT.",
)

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a converted dataset.")]
Values = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Parameters, e.g. epochs=200 patch_size=96,96,96")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where the demo puts everything.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the phantom and of every draw.")] = 0,
) -> None:
    """Walk the whole way on a phantom: convert, tune, register, ensemble, predict, evaluate (about 5 minutes on 2 cores)."""
    from segsweep.demo import walk

    walk(folder, seed=seed)


@app.command()
def convert(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset recipe; see `segsweep list datasets`.")],
    raw: Annotated[Path, typer.Argument(metavar="RAW", help="Folder with the raw scans, in the layout that the recipe describes.")],
    store: Annotated[Path | None, typer.Option(help="Store to make or to complete. Default: WORKSPACE/stores/DATASET.")] = None,
) -> None:
    """Convert raw scans into a store, plan it and report on its quality. Run it again to go on or to add cases.

    Example: segsweep convert openkbp data/openkbp --store stores/openkbp
    """
    from segsweep.data.conversion import convert as run
    from segsweep.sweeps.cluster import connect

    recipes.load("datasets", name=dataset)
    if not raw.is_dir():
        raise InputError(f"{raw}: no such folder; expected the raw scans of dataset {dataset!r}")
    target = store or current_workspace().root / "stores" / dataset
    connect()
    with bars() as shown:
        done = run(dataset, raw=raw, store=target, progress=shown.count)
    plan = done.store.plan
    console.print(f"{target}: {len(done.written)} cases written, {len(done.kept)} kept, {len(done.failures)} failed")
    console.print(f"plan: spacing {_mm(plan.spacing)} mm, patch {plan.patch_size} voxels (z, y, x), batch {plan.batch_size}, head {plan.head}")
    _quality(target)
    console.print(f"next: segsweep train unet {target} preset=small   or   segsweep tune default {target}")
    if done.failures:
        _complain(done.failures.values())
        raise typer.Exit(2)


@app.command()
def check(store: StorePath) -> None:
    """Look for bad cases: quality.html and quality.json in the store; exit code 1 when there are errors.

    Example: segsweep check stores/openkbp
    """
    if _quality(store):
        raise typer.Exit(1)


@app.command()
def train(
    trainable: Annotated[str, typer.Argument(metavar="TRAINABLE", help="A trainable recipe; see `segsweep list trainables`.")],
    store: StorePath,
    values: Values = None,
) -> None:
    """Train one Run, log it and register its model. An interrupted run goes on when the same command is given again.

    Keys of the run: fold (0 to 4, or all), seed, workers (DDP processes). Every other key is a parameter of the trainable;
    `segsweep list unet` shows them. Example: segsweep train unet stores/openkbp preset=small epochs=40 fold=all
    """
    from segsweep.run import Run
    from segsweep.sweeps.cluster import connect
    from segsweep.sweeps.single import train as run

    given = _pairs(values)
    own = {key: given.pop(key) for key in ("fold", "seed", "workers") if key in given}
    recipe = recipes.load("trainables", name=trainable)
    recipes.build_params(recipe, values=given)
    chosen = Run(trainable=trainable, store=str(store), params={k: recipes.parse_value(v) for k, v in given.items()}, **_numbers(own))
    connect()
    with bars() as shown:
        trained = run(chosen, workspace=current_workspace(), report=shown.trial)
    dice = f", dice {trained.result['dice']:.4f}" if "dice" in trained.result else ""
    console.print(f"{trained.folder}: {trained.result['status']} after {trained.result['epoch']} epochs{dice}")
    console.print(f"registered as {trained.registered.uri}")
    console.print(f"next: segsweep predict {trained.registered.uri} SCANS predictions/")


@app.command()
def tune(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="A search-space recipe; see `segsweep list spaces`.")],
    store: StorePath,
    values: Values = None,
) -> None:
    """Sweep a search space with Optuna on Ray Tune; log every trial, register the best. Run it again to resume or extend it.

    Keys of the sweep: trials (20), concurrent (as many as fit), workers (1), fold (0), seed (0), grace (epochs before early
    stopping, 0 = never), register (3), name. Every other key is a parameter that all trials share.
    Example: segsweep tune default stores/openkbp trials=40 grace=20 preset=small
    """
    from segsweep.sweeps.cluster import connect
    from segsweep.sweeps.tuning import tune as run

    recipes.load("search_spaces", name=space)
    options, params = _sweep_options(_pairs(values))
    connect()
    with bars() as shown:
        swept = run(space, store=str(store), workspace=current_workspace(), options=options, params=params, report=shown.trial)
    table = Table("trial", "state", "dice", "epochs", "parameters", box=None)
    for trial in swept.trials:
        from segsweep.sweeps.following import describe

        table.add_row(trial.name, trial.state, "" if trial.dice is None else f"{trial.dice:.4f}", str(trial.epochs), describe(trial.config))
    console.print(table)
    for version in swept.registered:
        console.print(f"registered {version.uri}")
    if swept.interrupted:
        console.print("interrupted; give the same command again to go on", style="yellow")
        raise typer.Exit(130)
    console.print(f"next: segsweep ensemble {store}   or   segsweep ui")


@app.command()
def ensemble(store: StorePath, values: Values = None) -> None:
    """Build an ensemble of registered models of this store's dataset and register it.

    Keys: members (model addresses; default: the best three versions), name (DATASET-ensemble).
    Example: segsweep ensemble stores/openkbp members=models:/openkbp-unet/1,models:/openkbp-unet/2
    """
    from segsweep.data.store import open_store
    from segsweep.models.ensemble import best_members, build
    from segsweep.models.tracking import Tracker

    given = _pairs(values)
    for key in given:
        if key not in ("members", "name"):
            raise RecipeError(unknown(key, kind="keys of ensemble", known=("members", "name")))
    opened, workspace = open_store(store), current_workspace()
    members = given["members"].split(",") if "members" in given else best_members(opened.dataset, data=opened.digest, workspace=workspace)
    name = given.get("name", f"{opened.dataset}-ensemble")
    registered = build(members, name=name, tracker=Tracker(workspace, experiment=opened.dataset))
    console.print(f"registered {registered.uri}: the mean of {', '.join(members)}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME/VERSION, models:/NAME@ALIAS, or a model folder.")],
    scans: Annotated[Path, typer.Argument(metavar="SCANS", help="A scan, a folder of scans (CASE.nii.gz or CASE_0000.nii.gz …), or a store.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the label maps.")],
    split: Annotated[str, typer.Option(help="Of a store: which cases (train, validation, test).")] = "validation",
    mirror: Annotated[str, typer.Option(help="Test-time flips along these axes (zyx, zy, x), or none.")] = "none",
) -> None:
    """Segment scans; label maps come back as NIfTI on each scan's own grid, with labels.json naming their values.

    Example: segsweep predict models:/openkbp-unet@candidate scans/ predictions/
    """
    from segsweep.inference.prediction import predict as run
    from segsweep.inference.scans import find
    from segsweep.models.ensemble import load_predictor

    predictor = load_predictor(model, workspace=current_workspace())
    cases = find(scans, channels=predictor.members[0].task.channels, split=split)
    with bars() as shown:
        done = run(cases, predictor=predictor, out=out, mirror=mirror, progress=lambda n, total: shown.count("scans", n, total))
    console.print(f"{out}: {len(done.written)} scans segmented, {len(done.failures)} failed")
    if done.failures:
        _complain(done.failures.values())
        raise typer.Exit(2)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder of label maps.")],
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="A store, or a folder of label maps of equal names.")],
    profile: Annotated[str, typer.Option(help="Whose rules: plain, nnunet, segrap2023_oar, segrap2023_gtv, flare22, flare24_pancancer.")] = "plain",
    out: Annotated[Path, typer.Option(help="Folder for scores.csv, summary.json and report.html.")] = Path("evaluation"),
    labels: Annotated[Path | None, typer.Option(help="JSON file: structure name -> label value or values.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Tolerance of the NSD in mm, in place of the profile's.")] = None,
    compare: Annotated[list[str] | None, typer.Option(metavar="NAME=FOLDER", help="Other predictions to set beside these.")] = None,
) -> None:
    """Score predictions by an organiser's exact rules and write a report that opens anywhere.

    Example: segsweep evaluate predictions/ stores/openkbp --profile plain --out evaluation/
    """
    from segsweep.evaluation.evaluation import Options
    from segsweep.evaluation.evaluation import evaluate as run

    others = {name: Path(folder) for name, folder in _pairs(compare).items()}
    with bars() as shown:
        options = Options(labels=labels, tolerance=tolerance, compare=others, progress=lambda n, total: shown.count("cases", n, total))
        done = run(predictions, reference=reference, profile=profile, out=out, options=options)
    table = Table("structure", "Dice", "NSD", box=None)
    for row in done.rows():
        table.add_row(*row)
    console.print(table)
    console.print(f"report: {out / 'report.html'}")


@app.command("list")
def list_(what: Annotated[str | None, typer.Argument(metavar="[KIND|NAME]", help="trainables, datasets, spaces, models, or a recipe's name.")] = None) -> None:
    """List recipes and registered models; with a recipe's name, what it is and its parameters.

    Example: segsweep list trainables
    """
    kinds = {"trainables": "trainables", "datasets": "datasets", "spaces": "search_spaces"}
    if what is not None and what not in {*kinds, "models"}:
        _describe_recipe(what)
        return
    for title, kind in kinds.items():
        if what in (None, title):
            console.print(f"[bold]{title}[/bold]")
            for name in recipes.names(kind):  # type: ignore[arg-type]
                console.print(f"  {name:18} {_first_line(kind, name)}")
    if what in (None, "models"):
        _list_models()


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of MLflow; optuna-dashboard takes the next one.")] = 5000,
) -> None:
    """Browse runs and models (MLflow) and sweeps (optuna-dashboard) of this workspace, on this machine only."""
    from segsweep.models.browsing import serve

    workspace = current_workspace()
    console.print(f"MLflow            http://127.0.0.1:{port}")
    console.print(f"optuna-dashboard  http://127.0.0.1:{port + 1}\nCtrl-C ends both.")
    serve(workspace, port=port)


def main() -> None:
    """Run the command line: one sentence and exit code 2 for everything that a user can put right."""
    try:
        app(standalone_mode=True)
    except SegsweepError as error:
        print(f"segsweep: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("segsweep: interrupted; give the same command again to go on", file=sys.stderr)
        sys.exit(130)


def _pairs(values: list[str] | None) -> dict[str, str]:
    pairs = {}
    for value in values or []:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise RecipeError(f"{value!r} cannot be used: expected KEY=VALUE, for example epochs=200")
        pairs[key] = text
    return pairs


def _numbers(values: dict[str, str]) -> dict[str, Any]:
    parsed = {key: recipes.parse_value(value) for key, value in values.items()}
    for key, value in parsed.items():
        if not isinstance(value, int) and (key, value) != ("fold", "all"):
            raise RecipeError(f"{key}={value!r} cannot be used: expected a whole number")
    return parsed


def _sweep_options(given: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    """Sweep options, and what is left for the trainable."""
    from dataclasses import fields

    from segsweep.sweeps.tuning import SweepOptions

    own = {field.name: given.pop(field.name) for field in fields(SweepOptions) if field.name in given}
    name = {"name": own.pop("name")} if "name" in own else {}
    try:
        options = SweepOptions(**name, **_numbers(own))
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return options, {key: recipes.parse_value(value) for key, value in given.items()}


def _quality(store: Path) -> bool:
    """Write the quality report; whether it holds errors."""
    from segsweep.data.quality import check as run
    from segsweep.data.quality_report import write
    from segsweep.data.store import open_store

    opened = open_store(store)
    with bars() as shown:
        report = run(opened, progress=lambda n, total: shown.count("quality", n, total))
    page = write(report, store=opened, folder=store)
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    console.print(f"quality: {errors} errors, {warnings} warnings; {page}")
    return errors > 0


def _complain(sentences: Any) -> None:
    for sentence in sentences:
        print(f"segsweep: {sentence}", file=sys.stderr)


def _mm(spacing: tuple[float, float, float]) -> str:
    return " x ".join(f"{mm:.3g}" for mm in spacing)


def _first_line(kind: Any, name: str) -> str:
    return escape((recipes.load(kind, name=name).__doc__ or "").strip().partition("\n")[0])


def _describe_recipe(name: str) -> None:
    kinds: tuple[Literal["trainables", "datasets", "search_spaces"], ...] = ("trainables", "datasets", "search_spaces")
    holders = [kind for kind in kinds if name in recipes.names(kind)]
    if not holders:
        every = [known for kind in kinds for known in recipes.names(kind)]
        raise RecipeError(unknown(name, kind="recipes", known=[*every, "trainables", "datasets", "spaces", "models"]))
    for kind in holders:
        recipe = recipes.load(kind, name=name)
        console.print(f"[bold]{kind}/{name}[/bold]\n{escape((recipe.__doc__ or '').strip())}")
        if kind == "trainables":
            for key, value in recipes.params_json(recipe.Params()).items():
                console.print(f"  {key} = {escape(str(value))}")
            for preset, values in getattr(recipe, "PRESETS", {}).items():
                console.print(f"  preset={preset}: " + escape(", ".join(f"{k}={v}" for k, v in values.items())))


def _list_models() -> None:
    from segsweep.models.registry import models

    console.print("[bold]models[/bold]")
    for model in models(current_workspace()):
        aliases = "".join(f" @{alias}" for alias in model.aliases)
        dice = f"  dice {model.tags['segsweep.dice']}" if "segsweep.dice" in model.tags else ""
        console.print(f"  {model.uri}{aliases}{dice}")
