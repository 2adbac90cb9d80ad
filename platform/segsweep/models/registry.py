"""Checkpoints as versions of named models in MLflow's registry: put in once, found by version or alias, always checked.

A version holds the checkpoint folder (safetensors, JSON, manifest) behind `segsweep.models.flavour`; no pickle.
"""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from segsweep.errors import ModelError, unknown
from segsweep.learning.checkpoint import MANIFEST, METRICS, RUN, verify
from segsweep.models.tracking import DICE_TAG, DIGEST_TAG, Tracker, answered, connect
from segsweep.workspace import Workspace

# isort: split
# After tracking, which sets the switches that MLflow reads when it is imported.
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.models import Model

FLAVOUR = "segsweep.models.flavour"
ENSEMBLE = "ensemble.json"
# Where pyfunc.save_model puts a data folder of this name.
DATA = Path("data") / "checkpoint"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+ -]{0,127}")
DIGEST = re.compile(r"[0-9a-f]{64}")
ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(?:/(?P<version>[0-9]+|latest)|@(?P<alias>[\w-]+))?/?")


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version of a registered model. `digest` is the sha256 of its manifest: equal content, equal digest."""

    name: str
    version: int
    digest: str

    @property
    def uri(self) -> str:
        """Address that `fetch` and MLflow take."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True, kw_only=True)
class Listed(Registered):
    """A registered version as `segsweep list models` shows it."""

    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    @property
    def dice(self) -> float | None:
        """Validation Dice (0 to 1); None where none was written down, as for ensembles."""
        try:
            dice = float(self.tags.get(DICE_TAG, "nan"))
        except ValueError:
            return None
        return dice if math.isfinite(dice) else None


@answered()
def register(
    folder: Path, *, name: str, tracker: Tracker, run_id: str, tags: Mapping[str, str] | None = None
) -> Registered:
    """Put a checkpoint or ensemble folder into the registry as the next version of `name`, linked to its run.

    A folder whose digest is already a version of that name is not stored again. Raises ModelError when it is damaged.
    """
    if not NAME.fullmatch(name):
        raise ModelError(f"model name {name!r} cannot be used; expected letters, digits, '.', '_', '-', '+' and spaces")
    digest = verify(folder)
    client = tracker.client
    _ensure_name(client, name=name)
    for known in _versions(client, name=name):
        if known.tags.get(DIGEST_TAG) == digest:
            return Registered(name=name, version=int(known.version), digest=digest)
    every_tag = {**(tags or {}), DIGEST_TAG: digest}
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
        description=describe(folder),
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


def resolve(uri: str, *, workspace: Workspace) -> Registered:
    """The version that an address (as in `fetch`) means now. Raises ModelError with the nearest names."""
    address = ADDRESS.fullmatch(uri)
    if address is None:
        raise ModelError(f"{uri!r} is no model address; expected models:/NAME/3, models:/NAME@alias or models:/NAME")
    name = address["name"]
    known = {item.version: item for item in versions(name, workspace=workspace)}
    if address["alias"]:
        by_alias = {alias: item for item in known.values() for alias in item.aliases}
        if address["alias"] not in by_alias:
            raise ModelError(unknown(address["alias"], kind=f"aliases of {name}", known=by_alias))
        return _registered(by_alias[address["alias"]])
    wanted = max(known) if address["version"] in (None, "latest") else int(address["version"])
    if wanted not in known:
        raise ModelError(unknown(str(wanted), kind=f"versions of {name}", known=map(str, known)))
    return _registered(known[wanted])


def set_alias(name: str, *, alias: str, version: int, workspace: Workspace) -> Registered:
    """Let `models:/NAME@alias` mean this version from now on. Raises ModelError when there is none."""
    found = resolve(f"models:/{name}/{version}", workspace=workspace)
    try:
        connect(workspace).set_registered_model_alias(name, alias, str(version))
    except MlflowException as error:
        raise ModelError(f"alias {alias!r} of {name} cannot be set: {error.message}") from error
    return found


@answered()
def models(workspace: Workspace) -> list[Listed]:
    """Every registered version, by name and version; empty when nothing was ever registered."""
    if _untouched(workspace):
        return []
    client = connect(workspace)
    return [version for model in _names(client) for version in _of(model, client=client)]


@answered()
def versions(name: str, *, workspace: Workspace) -> list[Listed]:
    """The versions of one registered model, oldest first. Raises ModelError with the nearest names when there is none."""
    client = None if _untouched(workspace) else connect(workspace)
    try:
        found = _of(client.get_registered_model(name), client=client) if client else []
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        found = []
    if not found:
        known = [model.name for model in _names(client)] if client else []
        raise ModelError(unknown(name, kind="registered models", known=known))
    return found


def describe(folder: Path) -> str:
    """What a checkpoint or ensemble folder holds, as Markdown with its metrics as a table."""
    lines: list[str] = []
    if (folder / RUN).is_file():
        run = _read_json(folder / RUN)["run"]
        facts = [f"{key} `{run[key]}`" for key in ("trainable", "store", "fold", "seed") if key in run]
        lines.append(f"Checkpoint: {', '.join(facts)}.")
    if (folder / ENSEMBLE).is_file():
        ensemble = _read_json(folder / ENSEMBLE)
        lines.append(f"Ensemble ({ensemble['rule']}) of {len(ensemble['members'])} members:\n")
        lines += [f"* `{member['uri']}`, weight {member['weight']:g}" for member in ensemble["members"]]
    metrics = _read_json(folder / METRICS) if (folder / METRICS).is_file() else {}
    rows = [f"| {key} | {value:.4g} |" for key, value in metrics.items() if isinstance(value, int | float)]
    if rows:
        lines += ["", "| metric | value |", "|---|---|", *rows]
    return "\n".join(lines)


def _upload(folder: Path, *, client: MlflowClient, model_id: str, run_id: str) -> None:
    """Store exactly the files of the manifest, as an MLflow model that our flavour loads."""
    with tempfile.TemporaryDirectory(prefix="segsweep-") as scratch:
        staged = Path(scratch) / DATA.name
        staged.mkdir()
        for name in (MANIFEST, *_read_json(folder / MANIFEST)["files"]):
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
    embedded = urlparse(source).scheme in ("", "file")
    cache = workspace.root / "fetched" / found.digest
    if not embedded and _intact(cache / DATA):
        return cache / DATA
    scratch = None if embedded else Path(tempfile.mkdtemp(dir=_made(cache.parent), prefix=".partial-"))
    try:
        model = download_artifacts(
            artifact_uri=source,
            dst_path=None if scratch is None else str(scratch),
            tracking_uri=workspace.tracking_uri,
            registry_uri=workspace.tracking_uri,
        )
    except (MlflowException, OSError) as error:
        raise ModelError(
            f"{found.uri}: its files cannot be read from {source} ({error}); "
            "expected them where they were registered: restore that folder or register the checkpoint again"
        ) from error
    if scratch is None:
        return Path(model) / DATA
    shutil.rmtree(cache, ignore_errors=True)
    Path(model).rename(cache)
    shutil.rmtree(scratch, ignore_errors=True)
    return cache / DATA


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
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _untouched(workspace: Workspace) -> bool:
    """Whether nothing was ever written to the embedded database: asking it would make it."""
    database = workspace.tracking_uri.removeprefix("sqlite:///")
    return database != workspace.tracking_uri and not Path(database).exists()


def _names(client: MlflowClient) -> list[RegisteredModel]:
    """Every registered model, by name."""
    found: list[RegisteredModel] = []
    token = None
    while token != "":
        page = client.search_registered_models(page_token=token)
        found += page
        token = page.token or ""
    return sorted(found, key=lambda model: model.name)


def _of(model: RegisteredModel, *, client: MlflowClient) -> list[Listed]:
    """A model's versions, oldest first."""
    aliases = {str(alias): int(version) for alias, version in model.aliases.items()}
    listed = [_listed(version, aliases=aliases) for version in _versions(client, name=model.name)]
    return sorted(listed, key=lambda item: item.version)


def _versions(client: MlflowClient, *, name: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token = None
    while token != "":
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += page
        token = page.token or ""
    return found


def _listed(version: ModelVersion, *, aliases: Mapping[str, int]) -> Listed:
    number = int(version.version)
    return Listed(
        name=version.name,
        version=number,
        digest=version.tags.get(DIGEST_TAG, ""),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        tags=dict(version.tags),
    )


def _registered(listed: Listed) -> Registered:
    if not DIGEST.fullmatch(listed.digest):
        raise ModelError(
            f"{listed.uri} was not registered by segsweep (its tag {DIGEST_TAG} is {listed.digest!r}); "
            "expected a version that `segsweep train`, `tune` or `ensemble` made"
        )
    return Registered(name=listed.name, version=listed.version, digest=listed.digest)


def _logged_name(name: str) -> str:
    """MLflow's logged models allow no '.' in a name."""
    return name.replace(".", "-")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())
