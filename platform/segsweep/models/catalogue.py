"""Which models the registry holds, in which versions, and which of them an address means."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from segsweep.errors import ModelError, unknown
from segsweep.models.databases import public, sqlite_file
from segsweep.models.tracking import DICE_TAG, DIGEST_TAG, answered, connect
from segsweep.workspace import Workspace

# isort: split
# After tracking, which sets the switches that MLflow reads when it is imported.
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

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
        raise ModelError(f"alias {alias!r} of {name} cannot be set: {public(error.message)}") from error
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
    """The versions of one registered model, oldest first. Raises ModelError, with the nearest names, when there is none."""
    client = None if _untouched(workspace) else connect(workspace)
    try:
        found = _of(client.get_registered_model(name), client=client) if client else []
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        found = []
    if not found:
        known = [model.name for model in _names(client)] if client else []
        if name in known:
            raise ModelError(f"{name} is registered without any version; register one, or choose another model")
        raise ModelError(unknown(name, kind="registered models", known=known))
    return found


def listed_versions(client: MlflowClient, *, name: str) -> list[ModelVersion]:
    """A model's versions as MLflow has them, page after page."""
    # A filter cannot hold a quote, as the names of others' models may; LIKE takes any letter for `_`.
    pattern = name.replace("'", "_")
    query = f"name {'=' if pattern == name else 'LIKE'} '{pattern}'"
    found: list[ModelVersion] = []
    token = None
    while token != "":
        page = client.search_model_versions(query, page_token=token)
        found += (version for version in page if version.name == name)
        token = page.token or ""
    return found


def _untouched(workspace: Workspace) -> bool:
    """Whether nothing was ever written to the embedded database: asking it would make it."""
    file = sqlite_file(workspace.tracking_uri)
    return file is not None and not file.exists()


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
    listed = [_listed(version, aliases=aliases) for version in listed_versions(client, name=model.name)]
    return sorted(listed, key=lambda item: item.version)


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
