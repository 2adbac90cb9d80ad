"""Ensembles: several registered models that predict as one, registered as a model of their own.

An ensemble stores the addresses and digests of its members, not their weights; a member that changed since is refused.
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segsweep.data import storage
from segsweep.errors import ModelError
from segsweep.inference.prediction import Predictor, load_member
from segsweep.learning.checkpoint import MANIFEST, RUN, write_manifest
from segsweep.learning.task import Task, task_from_json
from segsweep.models.catalogue import Registered, models, resolve
from segsweep.models.registry import ENSEMBLE, fetch, register
from segsweep.models.tracking import DATA_TAG, KIND_TAG, Tracker
from segsweep.workspace import Workspace

ENSEMBLE_TAG = "segsweep.ensemble"


@dataclass(frozen=True, kw_only=True)
class EnsembleMember:
    """A version of a registered model (`models:/NAME/3`), its digest when it was chosen, and its share in the mean."""

    uri: str
    digest: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Members whose probabilities are averaged with their weights."""

    members: tuple[EnsembleMember, ...]
    rule: Literal["mean"] = "mean"

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ModelError(f"an ensemble of {len(self.members)} cannot be built; expected at least 2 members")
        if self.rule != "mean":
            raise ModelError(f"ensemble rule {self.rule!r} cannot be used; expected 'mean'")
        for member in self.members:
            if not member.weight > 0:
                raise ModelError(f"{member.uri}: weight {member.weight} cannot be used; expected a number above 0")

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary; `ensemble_from_json` takes it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def ensemble_from_json(values: Mapping[str, Any]) -> Ensemble:
    """The Ensemble that `to_json` wrote."""
    return Ensemble(members=tuple(EnsembleMember(**member) for member in values["members"]), rule=values["rule"])


def write(ensemble: Ensemble, *, folder: Path) -> str:
    """Make a folder with ensemble.json and its manifest; returns its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ENSEMBLE).write_text(json.dumps(ensemble.to_json(), indent=1, sort_keys=True))
    return write_manifest(folder)


def build(members: Sequence[str], *, name: str, tracker: Tracker) -> Registered:
    """Register an ensemble of models (`models:/NAME/3`, `models:/NAME@alias`) with equal weights as a model of its own.

    Aliases are pinned to the versions that they mean now. Building the same ensemble again gives the same version.
    Raises ModelError when there are fewer than two members, one is taken twice, or they do not segment the same thing.
    """
    chosen = [resolve(uri, workspace=tracker.workspace) for uri in members]
    for position, member in enumerate(chosen):
        if member.digest in {other.digest for other in chosen[:position]}:
            raise ModelError(f"{member.uri} is in the ensemble twice; expected different models")
    ensemble = Ensemble(members=tuple(EnsembleMember(uri=member.uri, digest=member.digest) for member in chosen))
    _check_alike({member.uri: _task(member.uri, workspace=tracker.workspace) for member in chosen})
    with tempfile.TemporaryDirectory(prefix="segsweep-") as scratch:
        digest = write(ensemble, folder=Path(scratch))
        tags = {KIND_TAG: "ensemble", ENSEMBLE_TAG: digest}
        run_id = tracker.find(tags=tags)
        if run_id is None:
            params = {"members": [member.uri for member in chosen], "rule": ensemble.rule}
            run_id = tracker.start(name, params=params, tags=tags)
        try:
            registered = register(Path(scratch), name=name, tracker=tracker, run_id=run_id, tags={KIND_TAG: "ensemble"})
        except BaseException:
            tracker.finish(run_id, status="FAILED")
            raise
    tracker.finish(run_id)
    return registered


def best_members(dataset: str, *, data: str, workspace: Workspace, count: int = 3) -> list[str]:
    """Addresses of the registered single models of one store with the highest validation Dice, best first.

    `data` is the store's digest. Of equal models the newest counts. Raises ModelError when there are fewer than two.
    """
    scored = {
        version.digest: (version.dice, version.version, version.uri)
        for version in models(workspace)
        if version.tags.get(DATA_TAG) == data and version.dice is not None
    }
    best = sorted(scored.values(), reverse=True)[:count]
    if len(best) < 2:
        raise ModelError(
            f"{len(best)} registered models were trained on this version of {dataset!r}; expected at least 2: "
            "run a sweep first, or name the members"
        )
    return [uri for _, _, uri in best]


def load_predictor(uri: str | Path, *, workspace: Workspace) -> Predictor:
    """A predictor for a single model or an ensemble, given its address or folder.

    Raises ModelError when a model is absent or damaged, or a member is not the one that the ensemble was built from.
    """
    folder = fetch(uri, workspace=workspace)
    if not (folder / ENSEMBLE).is_file():
        return Predictor(members=(load_member(folder),))
    ensemble = ensemble_from_json(json.loads((folder / ENSEMBLE).read_text()))
    folders = [_member_folder(member, workspace=workspace) for member in ensemble.members]
    pairs = zip(folders, ensemble.members, strict=True)
    return Predictor(members=tuple(load_member(folder, weight=member.weight) for folder, member in pairs))


def _member_folder(member: EnsembleMember, *, workspace: Workspace) -> Path:
    folder = fetch(member.uri, workspace=workspace)
    found = storage.sha256(folder / MANIFEST)
    if found != member.digest:
        raise ModelError(
            f"member {member.uri} has digest {found[:12]}, expected {member.digest[:12]}: it is not the model that the "
            "ensemble was built from; build the ensemble again"
        )
    return folder


def _task(uri: str, *, workspace: Workspace) -> Task:
    folder = fetch(uri, workspace=workspace)
    if not (folder / RUN).is_file():
        raise ModelError(f"{uri} cannot be a member: it holds no {RUN}; expected a single model, not an ensemble")
    return task_from_json(json.loads((folder / RUN).read_text())["task"])


def _check_alike(tasks: Mapping[str, Task]) -> None:
    first, *others = tasks
    for uri in others:
        pairs = {
            "channels": (tasks[uri].channels, tasks[first].channels),
            "structures": (_structures(tasks[uri]), _structures(tasks[first])),
        }
        for field, (found, expected) in pairs.items():
            if found != expected:
                raise ModelError(
                    f"{uri} has {field} {found}, expected {expected} as in {first}; "
                    "members of an ensemble must segment the same thing"
                )


def _structures(task: Task) -> tuple[str, ...]:
    """In alphabetical order: members are averaged by structure name."""
    return tuple(sorted(task.table.labels.structures))
