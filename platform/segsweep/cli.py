"""The command line: verbs that read their arguments, call the function of the same name, and say what came of it.

Heavy rooms are imported inside the verbs, so that `segsweep --help` answers at once. Docstrings here are the help pages: their
first sentence is the verb's line in the list, the other lines are shown as they stand (at most 78 wide).
"""
# ruff: noqa: PLC0415

import errno
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from segsweep import recipes
from segsweep.errors import RecipeError, SegsweepError, unknown
from segsweep.run import Run
from segsweep.terminal import bars, complain, console, counted, say
from segsweep.workspace import current_workspace

# What `list` calls the kinds of recipes.
KINDS: Mapping[str, recipes.Kind] = {"trainables": "trainables", "datasets": "datasets", "spaces": "search_spaces"}
# Faults of the machine that its user can put right; any other OSError is our own mistake.
USABLE_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)

# Keys of `ensemble` by its rule.
RULES: Mapping[str, Sequence[str]] = {
    "mean": ("members",),
    "folds": ("members",),
    "greedy": ("candidates", "budget_seconds", "most", "bags", "seed"),
}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Not Path, which would take a slash from s3://.
StorePath = Annotated[str, typer.Argument(metavar="STORE", help="Folder or s3:// address of a converted dataset.")]
StorePaths = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="Folder or s3:// address of a converted dataset; several, joined by commas, are one."
    ),
]
Values = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys as above; lists as 96,96,96.")]


@app.callback()
def about() -> None:
    """Sweep, compare, register and ensemble 3D CT segmentation methods on Ray.

    New here? See the whole walk on a phantom, then do the same with your scans:
      segsweep demo
      segsweep convert openkbp data/openkbp --store stores/openkbp
      segsweep tune default stores/openkbp trials=20 preset=small
      segsweep ensemble stores/openkbp
      segsweep predict models:/openkbp-ensemble scans/ predictions/

    Environment:
      SEGSWEEP_WORKSPACE   folder for runs, models and sweeps   (./workspace)
      SEGSWEEP_PROJECT     folder that holds your own recipes          (none)
      RAY_ADDRESS          Ray cluster to work on              (this machine)
      SEGSWEEP_CACHE       local folder for copies of grids            (none)
      SEGSWEEP_CACHE_GB    how large these copies may grow together      (50)
      AWS_ENDPOINT_URL     object storage of s3:// stores         (Amazon S3)
    """


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where everything goes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the phantom.")] = 0,
) -> None:
    """Walk the whole way on a phantom, in about 5 minutes on 2 cores.

    It makes scans, converts, tunes, registers, builds an ensemble, predicts and
    evaluates. Run it again to go on where it was interrupted.

    Example:
      segsweep demo /tmp/demo
    """
    from segsweep.demo import walk

    walk(folder, seed=seed)


@app.command()
def convert(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A recipe of `segsweep list datasets`.")],
    raw: Annotated[Path, typer.Argument(metavar="RAW", help="Folder with the scans, laid out as the recipe says.")],
    store: Annotated[
        str | None, typer.Option(help="The store, a folder or s3://BUCKET/FOLDER. Default: WORKSPACE/stores/DATASET.")
    ] = None,
    planner: Annotated[str, typer.Option(help="plain, resenc_m, resenc_l or resenc_xl: nnU-Net's networks.")] = "plain",
    folds: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSON file: held-out case ids of each fold.")
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Verify every byte of the cases that are kept.")] = False,
) -> None:
    """Convert raw scans into a store.

    Then plans the training (spacing in mm, patch in voxels) and looks for bad
    cases. Run it again to go on, or to add cases: finished ones are kept,
    damaged ones (those that --deep alone can find, with --deep) written again.
    Exit code 2 when cases failed; the last lines name them. --folds may be
    nnU-Net's splits_final.json; without it, 5 folds are drawn.

    Examples:
      segsweep list openkbp                        the layout that it expects
      segsweep convert openkbp data/openkbp --store stores/openkbp
    """
    from segsweep.data.conversion import ConversionOptions
    from segsweep.data.conversion import convert as run
    from segsweep.data.dataset import describe
    from segsweep.sweeps.cluster import connect, disconnect

    described = describe(dataset, raw=raw)  # refuses a wrong layout before Ray starts
    target = store or str(current_workspace().root / "stores" / dataset)
    options = ConversionOptions(depth="deep" if deep else "quick", planner=planner, folds=folds)
    joined = connect()
    with bars() as shown:
        done = run(described, raw=raw, store=target, options=options, progress=shown.count)
    if joined:
        disconnect()  # the report needs no workers, and their memory
    plan = done.store.plan
    say(
        f"{target}: {counted(len(done.written), noun='case')} written, {len(done.kept)} kept, {len(done.failures)} failed"
    )
    share = f"{done.num_bytes / done.raw_bytes:.1f} of the raw voxels"
    say(f"{counted(len(done.store.cases), noun='case')}, {done.num_bytes / 1e6:.0f} MB ({share}), {done.seconds:.0f} s")
    spacing = " x ".join(f"{mm:.3g}" for mm in plan.spacing)
    say(f"plan: spacing {spacing} mm, patch {plan.patch_size} voxels (z, y, x), batch {plan.batch_size}")
    _quality(target)
    quoted = shlex.quote(str(target))
    say(f"next: segsweep train unet {quoted} preset=small\n      segsweep tune default {quoted} preset=small")
    if done.failures:
        complain(*done.failures.values())
        raise typer.Exit(2)


@app.command()
def check(
    store: StorePath,
    deep: Annotated[bool, typer.Option("--deep", help="First verify every byte of the store.")] = False,
) -> None:
    """Look for bad cases in a store; exit code 1 when there are errors.

    Writes quality.html, one page for people, and quality.json into the store.
    With --deep, damage on disk is looked for first: each error names case, array
    and shard. `segsweep convert ... --deep` writes damaged cases again, alone.

    Examples:
      segsweep check stores/openkbp
      segsweep check stores/openkbp --deep
    """
    if (deep and _damaged(store)) or _quality(store):
        raise typer.Exit(1)


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
    chosen = Run(trainable=trainable, store=str(store), params=_parsed(given), **_parsed(own))
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
      fold, seed  as in `segsweep train`; a fold, not all               (0)
      sampler     tpe, gp, random, grid or nsga2                      (tpe)
      objective   dice, also with seconds_per_case, memory_gb        (dice)
      warm        earlier sweeps to learn from: NAME,NAME            (none)
      stop        bad trials by asha, hyperband, paired or none      (asha)
      grace       epochs before a bad trial may be stopped; 0 = never   (0)
      register    how many of the best become registered models         (3)
      name        of the sweep                              (SPACE-DATASET)
    Keys of a published comparison, whose rows are the trials:
      scale       share of its epochs and of its patches' voxels        (1)
      pretrained  model that its pre-trained rows start from         (none)
    Every other key is a parameter that all trials share.

    stop=paired compares whole scans: give it scan_validation_every=EPOCHS.
    Give the same command again to resume, with more trials to extend.

    Examples:
      segsweep tune default stores/openkbp preset=small
      segsweep tune default stores/openkbp trials=40 grace=20 workers=2
      segsweep tune gtv_loss stores/segrap scale=0.01
    """
    from segsweep.sweeps.following import describe
    from segsweep.sweeps.tuning import first_run
    from segsweep.sweeps.tuning import tune as run

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
    if swept.page:
        say(f"comparison: {swept.page}")
    if swept.interrupted:
        raise typer.Exit(130)
    say(f"next: segsweep ensemble {shlex.quote(str(store))}   or   segsweep ui")


@app.command()
def ensemble(store: StorePaths, values: Values = None) -> None:
    """Build an ensemble of registered models and register it.

    Keys:
      rule      mean, folds (of one run, nnU-Net's) or greedy           (mean)
      members   model addresses         (the best 3 that this store trained);
                with rule=folds, a model whose other folds are looked for
      name      of the registered model                   (DATASET-ensemble)

    With rule=greedy, members and their weights are chosen by cases that no
    candidate was trained on (Caruana et al., 2004), at least 5 of them:
      candidates      model addresses  (the best 10 that this store trained)
      budget_seconds  most seconds a case, as measured         (no limit)
      most            most different members                          (5)
      bags            searches over random halves that are averaged  (10)
      seed            of these halves and of the cross-validation     (0)

    Examples:
      segsweep ensemble stores/openkbp
      segsweep ensemble stores/openkbp members=models:/a/1,models:/b@candidate
      segsweep ensemble stores/openkbp rule=greedy budget_seconds=60
    """
    from segsweep.data.joint import open_stores
    from segsweep.models.ensemble import best_members, build, fold_members
    from segsweep.models.tracking import Tracker

    given = recipes.parse_pairs(values or [])
    rule = given.pop("rule", "mean")
    if rule not in RULES:
        raise RecipeError(unknown(rule, kind="rules of ensemble", known=RULES))
    for key in given:
        if key not in ("name", *RULES[rule]):
            raise RecipeError(unknown(key, kind=f"keys of ensemble rule={rule}", known=("name", "rule", *RULES[rule])))
    opened, workspace = open_stores(store), current_workspace()
    name = given.pop("name", f"{opened.dataset}-ensemble")
    most = 10 if rule == "greedy" else 3
    named = given.pop(RULES[rule][0], "")
    members = (
        named.split(",") if named else best_members(opened.dataset, data=opened.digest, workspace=workspace, count=most)
    )
    if rule == "greedy":
        registered = _greedy_ensemble(members, store=opened, name=name, limits=_parsed(given))
    else:
        if rule == "folds":
            members = fold_members(members[0], workspace=workspace)
        tracker = Tracker(workspace, experiment=opened.dataset)
        registered = build(members, name=name, tracker=tracker, rule="folds" if rule == "folds" else "mean").uri
        say(f"registered {registered}: the mean of {', '.join(members)}")
    say(f"next: segsweep predict {registered} SCANS predictions/")


@app.command()
def promote(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name (its @candidate), or a model's address.")],
    values: Values = None,
    force: Annotated[bool, typer.Option("--force", help="Promote it all the same; the record says so.")] = False,
) -> None:
    """Make a candidate the champion of its name, if it is better with confidence.

    Both segment the cases that neither was trained on; the candidate is better
    when the interval of the mean difference in Dice lies above zero and so does
    Wilcoxon's test, corrected for the trials that it is the best of. Otherwise
    the champion stays. The first candidate of a name becomes its champion.
    Exit code 0 whatever is decided: the first words say what it was.

    Keys:
      store     where the data lies now             (where it was trained from)
      level     of confidence                                           (0.95)

    Examples:
      segsweep promote openkbp-unet
      segsweep promote models:/openkbp-unet/7 store=stores/openkbp
    """
    from segsweep.models.promotion import promote as run

    given = recipes.parse_pairs(values or [])
    for key in given:
        if key not in ("level", "store"):
            raise RecipeError(unknown(key, kind="keys of promote", known=("level", "store")))
    level = recipes.parse_value(given.get("level", "0.95"))
    if type(level) not in (int, float):
        raise RecipeError(f"level={level!r} cannot be used: expected a confidence such as 0.95")
    with bars() as shown:
        done = run(
            model,
            workspace=current_workspace(),
            store=given.get("store", ""),
            level=level,
            force=force,
            progress=shown.count,
        )
    say(str(done))
    if done.page:
        say(f"report: {done.page}")
    if done.promoted:
        say(f"next: segsweep predict models:/{done.candidate.name}@champion SCANS predictions/")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A registered model's address, or a model folder.")],
    scans: Annotated[str, typer.Argument(metavar="SCANS", help="A scan, a folder of scans, or a store.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the label maps.")],
    split: Annotated[str, typer.Option(help="Of a store: train, validation or test.")] = "validation",
    mirror: Annotated[
        str | None,
        typer.Option(help="Average over flips of these axes (zyx, zy, x), or none.", show_default="as the method says"),
    ] = None,
    dataset: Annotated[str, typer.Option(help="Of a model of joined datasets: whose structures.")] = "",
) -> None:
    """Segment scans with a model or an ensemble.

    MODEL is models:/NAME/VERSION, models:/NAME@ALIAS or models:/NAME (newest).
    Scans are NIfTI, NRRD or MetaImage, in HU: CASE.nii.gz, or one file a channel
    CASE_0000.nii.gz, CASE_0001.nii.gz, ... Label maps come back as CASE.nii.gz
    on each scan's own grid; labels.json says what their values mean.

    Examples:
      segsweep predict models:/openkbp-unet@candidate scans/ predictions/
      segsweep predict models:/openkbp-ensemble stores/openkbp predictions/
    """
    from segsweep.inference.prediction import predict as run
    from segsweep.inference.scans import find_scans
    from segsweep.models.ensemble import load_predictor

    predictor = load_predictor(model, workspace=current_workspace())
    if dataset:
        predictor = predictor.only(dataset)
    cases = find_scans(scans, channels=predictor.table_task.channels, split=split)
    with bars() as shown:
        report = shown.pieces("scans")
        done = run(cases, predictor=predictor, out=out, mirror=mirror, progress=report)
    say(f"{out}: {counted(len(done.written), noun='scan')} segmented, {len(done.failures)} failed")
    if done.failures:
        complain(*done.failures.values())
        raise typer.Exit(2)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder that `predict` wrote.")],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="A store, or a folder of label maps.")],
    profile: Annotated[str, typer.Option(help="Whose rules; the names are above.")] = "plain",
    out: Annotated[Path, typer.Option(help="Folder for scores and report.")] = Path("evaluation"),
    labels: Annotated[Path | None, typer.Option(help="JSON file: structure name -> its values in REFERENCE.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Of the NSD in mm, in place of the profile's.")] = None,
    compare: Annotated[list[str] | None, typer.Option(metavar="NAME=FOLDER", help="Predictions to set beside.")] = None,
) -> None:
    """Score predictions by an organiser's rules, with a report.

    Writes scores.csv (Dice, NSD, distances in mm), summary.json and report.html.
    Profiles: plain, nnunet, segrap2023_oar, segrap2023_gtv, flare22,
    flare24_pancancer.

    Examples:
      segsweep evaluate predictions/ stores/openkbp
      segsweep evaluate out/ labels/ --labels labels.json --profile flare22
    """
    from segsweep.evaluation.evaluation import Options
    from segsweep.evaluation.evaluation import evaluate as run

    others = {name: Path(folder) for name, folder in recipes.parse_pairs(compare or []).items()}
    with bars() as shown:
        options = Options(labels=labels, tolerance=tolerance, compare=others, progress=shown.pieces("cases"))
        done = run(predictions, reference=reference, profile=profile, out=out, options=options)
    table = Table("structure", "Dice", "NSD", box=None)
    for row in done.rows():
        table.add_row(*map(escape, row))
    console.print(table)
    say(f"report: {out / 'report.html'}")


@app.command("import-nnunet")
def import_nnunet(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="checkpoint_final.pth of a fold.")],
    name: Annotated[str, typer.Option(help="Of the registered model.")],
    plans: Annotated[Path | None, typer.Option(help="Default: plans.json, two folders above.")] = None,
    dataset_json: Annotated[Path | None, typer.Option(help="Default: dataset.json, two folders above.")] = None,
    orientation: Annotated[
        str, typer.Option(help="To where the stored x, y, z of its training scans grow: LPS, RAS, LAS, ...")
    ] = "LPS",
) -> None:
    """Register a network that nnU-Net v2 trained.

    Reads PlainConvUNet and ResidualEncoderUNet without running anything that the
    checkpoint names. The model predicts, joins ensembles and starts trainings
    (initial=models:/NAME/1) like one trained here.

    nnU-Net shows its networks every scan as it is stored, and writes down nowhere
    how that was. SimpleITK's and DICOM's usual order is LPS, that of many NIfTI
    files RAS; the wrong one swaps left and right.

    Examples:
      segsweep import-nnunet fold_0/checkpoint_final.pth --name abdomen
      segsweep import-nnunet checkpoint_final.pth --name msd --orientation RAS
    """
    from segsweep.models.importing import import_nnunet as run

    found = run(
        checkpoint,
        name=name,
        workspace=current_workspace(),
        plans=plans,
        dataset_json=dataset_json,
        orientation=orientation,
    )
    say(f"registered {found.uri}")
    say(f"next: segsweep predict {found.uri} SCANS predictions/")


@app.command("list")
def list_(
    what: Annotated[str | None, typer.Argument(metavar="WHAT", help="A kind, or a recipe's name.")] = None,
) -> None:
    """List recipes and registered models.

    WHAT is trainables, datasets, spaces or models; without it, all are listed.
    With a recipe's name: what it is, its parameters and its presets.

    Examples:
      segsweep list trainables
      segsweep list unet
    """
    if what is not None and what not in {*KINDS, "models"}:
        _describe_recipe(what)
        return
    for title, kind in KINDS.items():
        if what in (None, title):
            console.print(f"[bold]{title}[/bold]")
            for name in recipes.names(kind):
                console.print(f"  {name:18} {escape(_first_line(kind, name))}")
    if what in (None, "models"):
        _list_models()


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of MLflow; optuna-dashboard takes the next one.")] = 5000,
) -> None:
    """Browse runs, models and sweeps in a web browser.

    Starts MLflow and optuna-dashboard on this workspace, for this machine only;
    the dashboard alone where MLFLOW_TRACKING_URI names a server.

    From another machine, first:
      ssh -L 5000:127.0.0.1:5000 -L 5001:127.0.0.1:5001 THIS_MACHINE
    """
    from segsweep.models.browsing import serve

    with serve(current_workspace(), port=port) as servers:
        for name, address in servers.addresses.items():
            say(f"{name:17} {address}")
        say("Ctrl-C ends what was started.")
        servers.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` unless given) and return the exit code.

    0 done, 1 `check` found errors, 2 something that a user can put right (one sentence on stderr), 130 interrupted.
    """
    try:
        code = app(None if argv is None else list(argv), prog_name="segsweep", standalone_mode=False) or 0
    except SegsweepError as error:
        complain(str(error))
        return 2
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if error.format_message():  # empty when the help was shown instead
            where = context.command_path if context else "segsweep"
            complain(f"{error.format_message().rstrip('.')}; see `{where} --help`")
        return 2
    except OSError as error:
        if error.errno not in USABLE_ERRNOS:
            raise
        complain(f"{error.filename or 'this machine'}: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        code = 130
    if code == 130:
        complain("interrupted; give the same command again to go on")
    return int(code)


def _parsed(values: dict[str, str]) -> dict[str, Any]:
    return {key: recipes.parse_value(value) for key, value in values.items()}


def _sweep_options(given: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    """Sweep options, and what is left for the trainable."""
    from dataclasses import fields

    from segsweep.sweeps.tuning import SweepOptions

    own = {field.name: given.pop(field.name) for field in fields(SweepOptions) if field.name in given}
    words = ("name", "pretrained", "sampler", "objective", "warm", "stop")
    texts = {key: own.pop(key) for key in words if key in own}
    numbers = _parsed(own)
    for key, value in numbers.items():
        if key == "scale" and type(value) not in (int, float):
            raise RecipeError(f"scale={value!r} cannot be used: expected a share above 0, at most 1")
        if key != "scale" and type(value) is not int and (key, value) != ("fold", "all"):
            raise RecipeError(f"{key}={value!r} cannot be used: expected a whole number")
    try:
        options = SweepOptions(**texts, **numbers)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return options, _parsed(given)


def _greedy_ensemble(candidates: Sequence[str], *, store: Any, name: str, limits: Mapping[str, Any]) -> str:
    """Choose, register, and show the table of the choice; the address of what was registered."""
    from segsweep.evaluation.selection import Limits
    from segsweep.evaluation.selection_page import interval, number, seconds
    from segsweep.models.registry import fetch
    from segsweep.models.selecting import PAGE, build_greedy
    from segsweep.models.tracking import Tracker

    for key, value in limits.items():
        if type(value) is not int and (key, type(value)) != ("budget_seconds", float):
            raise RecipeError(f"{key}={value!r} cannot be used: expected a number, whole but for budget_seconds")
    allowed = Limits(**limits)
    tracker = Tracker(current_workspace(), experiment=store.dataset)
    with bars() as shown:
        report = shown.pieces("probabilities")
        built = build_greedy(candidates, store=store, name=name, tracker=tracker, limits=allowed, progress=report)
    if built.record is not None:
        table = Table("models", "rule", "Dice (95 % interval)", "to the best single", "s a case", box=None)
        for row in built.record["rows"]:
            differs = interval(row["difference"], sign="+")
            table.add_row(row["name"], row["kind"], interval(row["dice"]), differs, seconds(row["seconds"]))
        console.print(table)
        chosen = {one["letter"]: one for one in built.record["members"]}
        for one in built.record["candidates"]:
            member = chosen.get(one["letter"])
            share = f"  weight {member['weight']:.3f}, gain {number(member['gain'], sign='+')}" if member else ""
            say(f"{one['letter']} = {one['uri']}{share}")
        say(f"selection: {fetch(built.registered.uri, workspace=tracker.workspace) / PAGE}")
    say(f"registered {built.registered.uri}: {built.verdict}")
    return built.registered.uri


def _demand_possible(run: Run) -> None:
    """Refuse, before Ray starts, what this machine could never hold. (A cluster's memory is known once it is joined.)"""
    from segsweep.learning.memory import machine_bytes
    from segsweep.sweeps.preparing import demand_memory, prepare

    prepared = prepare(run)
    if "RAY_ADDRESS" not in os.environ:
        demand_memory(prepared, available=machine_bytes())


def _damaged(store: str) -> bool:
    """Name all damage on disk; whether there are errors."""
    from segsweep.data.integrity import deep_check

    with bars() as shown:
        found = deep_check(store, progress=shown.pieces("bytes"))
    for damage in found:
        say(f"{damage.severity}: {damage.message}")
    errors = sum(damage.severity == "error" for damage in found)
    say(f"deep: {counted(errors, noun='error')}, {counted(len(found) - errors, noun='note')}")
    return errors > 0


def _quality(store: str) -> bool:
    """Write the quality report; whether it holds errors."""
    from segsweep.data.quality import check as run
    from segsweep.data.quality_report import write
    from segsweep.data.store import open_store

    opened = open_store(store)
    with bars() as shown:
        report = run(opened, progress=shown.pieces("quality"))
    page = write(report, store=opened, folder=opened.uri)
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    say(f"quality: {counted(errors, noun='error')}, {counted(warnings, noun='warning')}; {page}")
    return errors > 0


def _first_line(kind: recipes.Kind, name: str) -> str:
    """What a recipe says of itself; of one that cannot be imported, why."""
    try:
        return (recipes.load(kind, name=name).__doc__ or "").strip().partition("\n")[0]
    except RecipeError as error:
        return str(error)


def _describe_recipe(name: str) -> None:
    holders: list[recipes.Kind] = [kind for kind in KINDS.values() if name in recipes.names(kind)]
    if not holders:
        every = [known for kind in KINDS.values() for known in recipes.names(kind)]
        raise RecipeError(unknown(name, kind="recipes", known={*every, *KINDS, "models"}))
    for kind in holders:
        recipe = recipes.load(kind, name=name)
        console.print(f"[bold]{kind}/{name}[/bold]\n{escape((recipe.__doc__ or '').strip())}")
        if kind == "trainables":
            say(f"\n{recipes.meaning(recipe.Params)}\n")
            for key, value in recipes.parameters(recipe.Params).items():
                say(f"  {key} = {value}")
            for preset, values in getattr(recipe, "PRESETS", {}).items():
                console.print(f"  preset={preset}: " + escape(", ".join(f"{k}={v}" for k, v in values.items())))


def _list_models() -> None:
    from segsweep.models.catalogue import models

    console.print("[bold]models[/bold]")
    for model in models(current_workspace()):
        aliases = "".join(f" @{alias}" for alias in model.aliases)
        dice = "" if model.dice is None else f"  dice {model.dice:.4f}"
        say(f"  {model.uri}{aliases}{dice}")
