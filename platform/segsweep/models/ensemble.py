"""Ensembles: several registered models that predict as one, registered as a model of their own.

An ensemble stores the addresses and digests of its members, not their weights; a member that changed since is refused.
"""

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from segsweep.data import storage
from segsweep.errors import ModelError, understood, unknown
from segsweep.inference.predictor import Predictor, load_member
from segsweep.learning import checkpoint
from segsweep.learning.checkpoint import MANIFEST, RUN, read_json, write_manifest
from segsweep.learning.task import Task, task_from_json
from segsweep.models.catalogue import Registered, models, resolve, versions
from segsweep.models.registry import ENSEMBLE, demand_name, fetch, register
from segsweep.models.tracking import DATA_TAG, KIND_TAG, Tracker
from segsweep.run import Run
from segsweep.workspace import Workspace

ENSEMBLE_TAG = "segsweep.ensemble"

# How members were chosen: named or best ones, all alike; one run's models of several folds, all alike; greedily, with weights.
Rule = Literal["mean", "folds", "greedy"]


@dataclass(frozen=True, kw_only=True)
class EnsembleMember:
    """A version of a registered model (`models:/NAME/3`), its digest when it was chosen, and its share in the mean."""

    uri: str
    digest: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Members whose probabilities are averaged with their weights, and the rule that they were chosen by.

    A greedy choice may end with one member: where nothing beats the best single model.
    """

    members: tuple[EnsembleMember, ...]
    rule: Rule = "mean"

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ModelError(unknown(self.rule, kind="rules of ensembles", known=get_args(Rule)))
        least = 1 if self.rule == "greedy" else 2
        if len(self.members) < least:
            raise ModelError(f"an ensemble of {len(self.members)} cannot be built; expected at least {least} members")
        for member in self.members:
            if not member.uri.startswith("models:"):
                raise ModelError(
                    f"member {member.uri!r} cannot be used; expected a registered model, models:/NAME/VERSION"
                )
            if not 0 < member.weight < math.inf:
                raise ModelError(f"{member.uri}: weight {member.weight} cannot be used; expected a number above 0")

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary; `ensemble_from_json` takes it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def ensemble_from_json(values: Mapping[str, Any]) -> Ensemble:
    """The Ensemble that `to_json` wrote."""
    return Ensemble(members=tuple(EnsembleMember(**member) for member in values["members"]), rule=values["rule"])


def read_ensemble(folder: Path) -> Ensemble:
    """The Ensemble that `write` put into a folder, whoever it came from. Raises ModelError."""
    with understood(f"{folder.name}: {ENSEMBLE}", otherwise=ModelError, do="build the ensemble again"):
        return ensemble_from_json(read_json(folder / ENSEMBLE))


def write(ensemble: Ensemble, *, folder: Path, record: Mapping[str, str] | None = None) -> str:
    """Make a folder with ensemble.json, the record's files (name -> text) and its manifest; returns its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ENSEMBLE).write_text(json.dumps(ensemble.to_json(), indent=1, sort_keys=True))
    for name, text in (record or {}).items():
        (folder / name).write_text(text)
    return write_manifest(folder)


def build(
    members: Sequence[str],
    *,
    name: str,
    tracker: Tracker,
    rule: Rule = "mean",
    weights: Sequence[float] | None = None,
    record: Mapping[str, str] | None = None,
) -> Registered:
    """Register an ensemble of models (`models:/NAME/3`, `models:/NAME@alias`) as a model of its own, with equal weights by default.

    Aliases are pinned to the versions that they mean now. Building the same ensemble again gives the same version. The files of
    `record` (name -> text) are kept in its folder and shown with its run.
    Raises ModelError when there are fewer than two members, one is taken twice, or they do not segment the same thing.
    """
    demand_name(name)
    chosen = distinct(members, workspace=tracker.workspace)
    pairs = zip(chosen, weights or [1.0] * len(chosen), strict=True)
    ensemble = Ensemble(
        members=tuple(EnsembleMember(uri=one.uri, digest=one.digest, weight=weight) for one, weight in pairs), rule=rule
    )
    demand_alike({member.uri: load_task(member.uri, workspace=tracker.workspace) for member in chosen})
    with tempfile.TemporaryDirectory(prefix="segsweep-") as scratch:
        digest = write(ensemble, folder=Path(scratch), record=record)
        tags = {KIND_TAG: "ensemble", ENSEMBLE_TAG: digest}
        run_id = tracker.find(tags=tags)
        if run_id is None:
            params = {"members": [member.uri for member in chosen], "rule": ensemble.rule}
            run_id = tracker.start(name, params=params, tags=tags)
            for path, text in (record or {}).items():
                tracker.file(run_id, text, path=path)
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


def fold_members(like: str, *, workspace: Workspace) -> list[str]:
    """Addresses of the versions of a model that differ from `like` in their fold alone, by fold; of two of one fold the newer.

    nnU-Net's ensemble (Isensee et al., Nature Methods 2021). Raises ModelError when there are fewer than two folds.
    """
    first = resolve(like, workspace=workspace)
    data = {version.version: version.tags.get(DATA_TAG) for version in versions(first.name, workspace=workspace)}
    wanted = _training(first.uri, workspace=workspace)
    found: dict[int, str] = {}
    for version in sorted(number for number, digest in data.items() if digest == data[first.version]):
        uri = f"models:/{first.name}/{version}"
        training = _training(uri, workspace=workspace)
        if training.fold != "all" and replace(training, fold=wanted.fold) == wanted:
            found[training.fold] = uri
    if len(found) < 2:
        raise ModelError(
            f"{first.uri} was trained on {len(found)} fold(s) alone ({', '.join(map(str, sorted(found))) or 'all cases'}); "
            "expected at least 2: train it with other values of fold=…"
        )
    return [found[fold] for fold in sorted(found)]


def load_predictor(uri: str | Path, *, workspace: Workspace) -> Predictor:
    """A predictor for a single model or an ensemble, given its address or folder.

    Raises ModelError when a model is absent or damaged, or a member is not the one that the ensemble was built from.
    """
    folder = fetch(uri, workspace=workspace)
    if not (folder / ENSEMBLE).is_file():
        return Predictor(members=(load_member(folder),))
    ensemble, document = read_ensemble(folder), read_json(folder / ENSEMBLE)
    folders = [member_folder(member, workspace=workspace) for member in ensemble.members]
    pairs = zip(folders, ensemble.members, strict=True)
    first, *others = (load_member(folder, weight=member.weight) for folder, member in pairs)
    return Predictor(members=(replace(first, inference=first.inference.recorded(document)), *others))


def distinct(members: Sequence[str], *, workspace: Workspace) -> list[Registered]:
    """The versions that addresses mean now. Raises ModelError when one is absent, or two are the same model."""
    chosen = [resolve(uri, workspace=workspace) for uri in members]
    for position, member in enumerate(chosen):
        if member.digest in {other.digest for other in chosen[:position]}:
            raise ModelError(f"{member.uri} is in the ensemble twice; expected different models")
    return chosen


def load_task(uri: str, *, workspace: Workspace) -> Task:
    """What a single model was built for. Raises ModelError for an ensemble."""
    return task_from_json(run_document(fetch(uri, workspace=workspace), uri=uri)["task"])


def run_document(folder: Path, *, uri: str) -> Mapping[str, Any]:
    """What a single model's folder says of its training (run, task, params). Raises ModelError for an ensemble's."""
    if not (folder / RUN).is_file():
        raise ModelError(f"{uri} holds no {RUN}; expected a single trained model, not an ensemble")
    return checkpoint.run_document(folder)


def member_folder(member: EnsembleMember, *, workspace: Workspace) -> Path:
    """The folder of an ensemble's member, every file checked. Raises ModelError when it is not the one that was chosen."""
    folder = fetch(member.uri, workspace=workspace)
    found = storage.sha256(folder / MANIFEST)
    if found != member.digest:
        raise ModelError(
            f"member {member.uri} has digest {found[:12]}, expected {member.digest[:12]}: it is not the model that the "
            "ensemble was built from; build the ensemble again"
        )
    return folder


def demand_alike(tasks: Mapping[str, Task]) -> None:
    """Raises ModelError that names the first model (by address) that does not segment what the first one does, from the same channels."""
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


def _training(uri: str, *, workspace: Workspace) -> Run:
    """The run of a model, without where its store lay."""
    return replace(Run(**run_document(fetch(uri, workspace=workspace), uri=uri)["run"]), store="")


def _structures(task: Task) -> tuple[str, ...]:
    """In alphabetical order: members are averaged by structure name."""
    return tuple(sorted(task.table.labels.structures))
