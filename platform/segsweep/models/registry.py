"""Checkpoints as versions of named models in MLflow's registry: put in once, found by version or alias, always checked.

A version holds the checkpoint folder (safetensors, JSON, manifest) behind `segsweep.models.flavour`; no pickle.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from segsweep.errors import ModelError
from segsweep.evaluation.whole_scans import Scores
from segsweep.learning.checkpoint import MANIFEST, METRICS, RUN, read_json, verify
from segsweep.learning.inference import CLEAN_UP
from segsweep.models.cards import card, in_words, structures
from segsweep.models.catalogue import Registered, listed_versions, resolve
from segsweep.models.databases import public
from segsweep.models.tracking import DESCRIPTION_LENGTH, DIGEST_TAG, INTERVAL_TAG, Tracker, answered, connect, cut
from segsweep.workspace import Workspace

# isort: split
# After tracking, which sets the switches that MLflow reads when it is imported.
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model

FLAVOUR = "segsweep.models.flavour"
ENSEMBLE = "ensemble.json"
# Where pyfunc.save_model puts a data folder of this name.
DATA = Path("data") / "checkpoint"
# What MLflow's page of a model says above its versions.
NAME_NOTE = (
    "Models of one method for one dataset, or ensembles. `candidate` is the best that is not promoted yet, `champion` the one that "
    "`segsweep promote` found better than the one before it, on the same cases. The page of a version has its Dice per structure. Take "
    'one with `segsweep predict`, or with `mlflow.pyfunc.load_model("models:/NAME@champion")`.'
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+ -]{0,127}")


def demand_name(name: str) -> None:
    """Raise ModelError for a name under which no model can be registered: it is better said before hours of work than after."""
    if not NAME.fullmatch(name):
        raise ModelError(f"model name {name!r} cannot be used; expected letters, digits, '.', '_', '-', '+' and spaces")


@answered()
def register(
    folder: Path,
    *,
    name: str,
    tracker: Tracker,
    run_id: str,
    tags: Mapping[str, str] | None = None,
    scores: Scores | None = None,
) -> Registered:
    """Put a checkpoint or ensemble folder into the registry as the next version of `name`, linked to its run.

    `scores` are its Dice on whole held-out scans, for its page and the tag with their interval.
    A folder whose digest is already a version of that name is not stored again. Raises ModelError when it is damaged.
    """
    demand_name(name)
    digest = verify(folder)
    client = tracker.client
    _ensure_name(client, name=name)
    for known in listed_versions(client, name=name):
        if known.tags.get(DIGEST_TAG) == digest:
            return Registered(name=name, version=int(known.version), digest=digest)
    every_tag = {**(tags or {}), DIGEST_TAG: digest}
    if scores and structures(scores):
        every_tag[INTERVAL_TAG] = in_words(scores)
    experiment_id = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment_id, name=_logged_name(name), source_run_id=run_id, tags=every_tag)
    try:
        _upload(folder, client=client, model_id=logged.model_id, run_id=run_id)
    except BaseException:
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    created = client.create_model_version(
        name,
        source=logged.artifact_location,
        run_id=run_id,
        tags=every_tag,
        description=cut(describe(folder, scores=scores), limit=DESCRIPTION_LENGTH),
        model_id=logged.model_id,
    )
    return Registered(name=name, version=int(created.version), digest=digest)


@answered()
def fetch(uri: str | Path, *, workspace: Workspace) -> Path:
    """The local folder that holds the manifest of a model, every file checked.

    `uri` is `models:/NAME/3`, `models:/NAME@alias`, `models:/NAME` (the latest version) or a folder. A version on a
    server is downloaded once into the workspace. Raises ModelError with the nearest names when there is none.
    """
    if not str(uri).startswith("models:"):
        folder = Path(uri).expanduser()
        folder = folder / DATA if (folder / DATA / MANIFEST).is_file() else folder
        verify(folder)
        return folder
    found = resolve(str(uri), workspace=workspace)
    folder = _download(found, workspace=workspace)
    digest = verify(folder)
    if digest != found.digest:
        raise ModelError(
            f"{found.uri}: its manifest has digest {digest[:12]}, expected {found.digest[:12]} "
            "from the registry; the artifacts changed after registration: register the original checkpoint again"
        )
    return folder


def describe(folder: Path, *, scores: Scores | None = None) -> str:
    """What a checkpoint or ensemble folder holds, as Markdown: its scores first, of which lists of versions show the beginning.

    Without scores come its metrics, as a table.
    """
    lines: list[str] = []
    document: dict[str, Any] = {}
    if (folder / RUN).is_file():
        document = read_json(folder / RUN)
        run = document["run"]
        facts = [f"{key} `{run[key]}`" for key in ("trainable", "store", "fold", "seed") if key in run]
        lines.append(f"Checkpoint: {', '.join(facts)}.")
    if (folder / ENSEMBLE).is_file():
        document = read_json(folder / ENSEMBLE)
        lines.append(f"Ensemble ({document['rule']}) of {len(document['members'])} members:\n")
        lines += [f"* `{member['uri']}`, weight {member['weight']:g}" for member in document["members"]]
    if found := document.get(CLEAN_UP):
        lines.append(f"\nClean-up `{json.dumps(found['rules'])}`, found for `{found['from']['uri']}`.")
    if scores and structures(scores):
        return "\n".join([card(scores), "", *lines])
    metrics = read_json(folder / METRICS) if (folder / METRICS).is_file() else {}
    rows = [f"| {key} | {value:.4g} |" for key, value in metrics.items() if isinstance(value, int | float)]
    if rows:
        lines += ["", "| metric | value |", "|---|---|", *rows]
    return "\n".join(lines)


def _upload(folder: Path, *, client: MlflowClient, model_id: str, run_id: str) -> None:
    """Store exactly the files of the manifest, as an MLflow model that our flavour loads."""
    with tempfile.TemporaryDirectory(prefix="segsweep-") as scratch:
        staged = Path(scratch) / DATA.name
        staged.mkdir()
        for name in (MANIFEST, *read_json(folder / MANIFEST)["files"]):
            (staged / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, staged / name)
        verify(staged)
        mlflow.pyfunc.save_model(
            path=str(Path(scratch) / "model"),
            loader_module=FLAVOUR,
            data_path=str(staged),
            mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
            pip_requirements=[f"segsweep=={installed_version('segsweep')}"],
        )
        client.log_model_artifacts(model_id, str(Path(scratch) / "model"))


def _download(found: Registered, *, workspace: Workspace) -> Path:
    client = connect(workspace)
    source = client.get_model_version_download_uri(found.name, str(found.version))
    if urlparse(source).scheme in ("", "file"):
        return _taken(found, source=source, to=None, workspace=workspace)
    cache = workspace.root / "fetched" / found.digest
    if _intact(cache / DATA):
        return cache / DATA
    with tempfile.TemporaryDirectory(dir=_made(cache.parent), prefix=".partial-") as scratch:
        model = _taken(found, source=source, to=scratch, workspace=workspace).parents[1]
        try:
            if not _intact(cache / DATA):
                shutil.rmtree(cache, ignore_errors=True)
                model.rename(cache)
        except OSError:
            if not _intact(cache / DATA):  # another process may have been faster, and uses it already
                raise
    return cache / DATA


def _taken(found: Registered, *, source: str, to: str | None, workspace: Workspace) -> Path:
    """The folder with the manifest of a version, below `to`, or where it lies on this machine."""
    try:
        model = download_artifacts(
            artifact_uri=source,
            dst_path=to,
            tracking_uri=workspace.tracking_uri,
            registry_uri=workspace.tracking_uri,
        )
    except (MlflowException, OSError) as error:
        raise ModelError(
            f"{found.uri}: its files cannot be read from {public(source)} ({public(str(error))}); "
            "expected them where they were registered: restore that folder or register the checkpoint again"
        ) from error
    return Path(model) / DATA


def _intact(folder: Path) -> bool:
    try:
        verify(folder)
    except ModelError:
        return False
    return True


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _ensure_name(client: MlflowClient, *, name: str) -> None:
    try:
        client.create_registered_model(name, description=NAME_NOTE)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _logged_name(name: str) -> str:
    """MLflow's logged models allow no '.' in a name."""
    return name.replace(".", "-")
