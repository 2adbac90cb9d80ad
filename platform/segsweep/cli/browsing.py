"""Verbs that show what there is, and take in what others made: import-nnunet, list, server, ui."""
# ruff: noqa: PLC0415

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from segsweep import recipes
from segsweep.cli.app import app
from segsweep.errors import RecipeError, unknown
from segsweep.terminal import console, say
from segsweep.workspace import current_workspace

# What `list` calls the kinds of recipes.
KINDS: Mapping[str, recipes.Kind] = {"trainables": "trainables", "datasets": "datasets", "spaces": "search_spaces"}


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


@app.command()
def server(
    port: Annotated[int, typer.Option(help="Port of MLflow.")] = 5000,
    host: Annotated[str, typer.Option(help="Address of this machine to listen on.")] = "127.0.0.1",
    allowed_hosts: Annotated[
        str, typer.Option(metavar="NAME,…", help="Further names by which browsers and machines call it.")
    ] = "",
    artifacts: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Folder or s3:// address of models and files.")
    ] = None,
) -> None:
    """Serve MLflow to several people or machines, with passwords.

    The first start writes the admin's password into a file that it names. The
    admin adds people on MLflow's page /signup. They set MLFLOW_TRACKING_URI,
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Models and files go
    through the server: nobody else needs the bucket's credentials.

    Traffic is not encrypted. Beyond this machine, use an ssh tunnel
      ssh -L 5000:127.0.0.1:5000 THIS_MACHINE
    or a proxy with TLS, and name it with --allowed-hosts.

    Environment:
      MLFLOW_BACKEND_STORE_URI  database  (a SQLite file in the workspace)
      AWS_…                     of the bucket, for the server alone

    Examples:
      segsweep server
      db="postgresql:///mlflow?host=/run/postgresql"
      export MLFLOW_BACKEND_STORE_URI="$db"
      segsweep server --artifacts s3://bucket/mlflow
    """
    from segsweep.models.server import serve_group

    names = [name.strip() for name in allowed_hosts.split(",") if name.strip()]
    with serve_group(current_workspace(), port=port, host=host, allowed_hosts=names, artifacts=artifacts) as started:
        say(f"MLflow     {started.address}")
        say(f"database   {started.database}")
        say(f"artifacts  {started.artifacts}")
        say(f"admin      password {f'in {started.password}' if started.password else 'as it was'}")
        say(f"people     {started.address}/signup, as admin")
        say("Ctrl-C ends it.")
        started.servers.wait()


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
    from segsweep.models.tracking import FROM_TAG

    console.print("[bold]models[/bold]")
    for model in models(current_workspace()):
        aliases = "".join(f" @{alias}" for alias in model.aliases)
        dice = "" if model.dice is None else f"  dice {model.dice:.4f}"
        cleaned = f"  {model.tags[FROM_TAG]} with a clean-up" if FROM_TAG in model.tags else ""
        say(f"  {model.uri}{aliases}{dice}{cleaned}")
