"""A registered model as one side of a comparison: the trainings it came from, its data, and the cases it never learned from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segsweep.data.joint import open_stores
from segsweep.data.store import Store
from segsweep.errors import ModelError, StoreError
from segsweep.learning.task import task_from_json
from segsweep.learning.transfer import unpinned
from segsweep.models.catalogue import Registered, resolve, versions
from segsweep.models.ensemble import member_folder, read_ensemble, run_document
from segsweep.models.outoffold import out_of_fold
from segsweep.models.registry import ENSEMBLE, fetch
from segsweep.models.tracking import DATA_TAG, PARENT_TAG, TRIAL_TAG, answered, connect
from segsweep.run import Fold, Run
from segsweep.workspace import Workspace

# isort: split
# After tracking, which sets the switches that MLflow reads when it is imported.
from mlflow import MlflowClient
from mlflow.entities import Run as RunOfMlflow
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

# More trials of one sweep than MLflow lists at a time are not made.
MOST_TRIALS = 50_000


@dataclass(frozen=True, kw_only=True)
class Training:
    """One checkpoint of a model. `document` is its run.json (run, task, params), `data` the digest of the store it was trained on."""

    uri: str
    document: Mapping[str, Any]
    data: str
    version: Registered

    @property
    def run(self) -> Run:
        """What was trained."""
        return Run(**self.document["run"])

    @property
    def structures(self) -> tuple[str, ...]:
        """What it segments, by name, in alphabetical order."""
        return tuple(sorted(task_from_json(self.document["task"]).table.labels.structures))


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A registered version: one training, or those of an ensemble's members."""

    version: Registered
    trainings: tuple[Training, ...]


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """Cases that no training of a model saw, and what is not known about that, a sentence each."""

    cases: frozenset[str]
    unknowns: tuple[str, ...]


def contender(version: Registered, *, workspace: Workspace) -> Contender:
    """Look a version up, every file checked. Raises ModelError when it is damaged, or a member of an ensemble changed."""
    folder = fetch(version.uri, workspace=workspace)
    if not (folder / ENSEMBLE).is_file():
        return Contender(version=version, trainings=(_training(version, folder=folder, workspace=workspace),))
    trainings = []
    for member in read_ensemble(folder).members:
        found = resolve(member.uri, workspace=workspace)
        trainings.append(_training(found, folder=member_folder(member, workspace=workspace), workspace=workspace))
    return Contender(version=version, trainings=tuple(trainings))


def demand_comparable(candidate: Contender, *, champion: Contender) -> None:
    """Raises ModelError unless all were trained on the same version of the same data, for the same structures."""
    first = champion.trainings[0]
    for training in (*champion.trainings, *candidate.trainings):
        if not training.data:
            raise ModelError(
                f"{training.uri} does not say what it was trained on (no tag {DATA_TAG}), so no case is known to be new to it; "
                "expected a model that `segsweep train` or `tune` made"
            )
        if training.data != first.data:
            raise ModelError(
                f"{training.uri} was trained on data {training.data[:12]}, {first.uri} on {first.data[:12]}; expected the same version "
                "of the data; train both on it"
            )
        if training.structures != first.structures:
            raise ModelError(
                f"{training.uri} segments {', '.join(training.structures)}, expected {', '.join(first.structures)} as {first.uri} does"
            )


def open_data(candidate: Contender, *, store: str = "") -> Store:
    """The store that a candidate was trained on, at the address it was trained from or at the one given.

    Raises StoreError when there is none, or it is another version of the data.
    """
    training = candidate.trainings[0]
    address = store or training.run.store
    try:
        opened = open_stores(address)
    except StoreError as error:
        raise StoreError(
            f"the data of {training.uri} cannot be opened ({error}); or say with store=… where it is"
        ) from None
    if opened.digest != training.data:
        raise StoreError(
            f"{address} holds data {opened.digest[:12]}, expected {training.data[:12]}, on which {training.uri} was trained; "
            "give that version of the data with store=…, or train on the present one"
        )
    return opened


def unseen(model: Contender, *, store: Store) -> Unseen:
    """Annotated cases of the store that are out of fold for all of the trainings.

    A training that starts from another model's weights also saw what that one was trained on, in whatever store: scans are known by
    their content.
    """
    cases = set.intersection(*(set(out_of_fold(store, fold=training.run.fold)) for training in model.trainings))
    unknowns: list[str] = []
    for training in model.trainings:
        scans, unknown = _inherited(training)
        unknowns += unknown
        cases -= {case for case in cases if _scan(store, case) in scans}
    return Unseen(cases=frozenset(cases), unknowns=tuple(dict.fromkeys(unknowns)))


@answered()
def choices(model: Contender, *, store: Store, cases: frozenset[str], workspace: Workspace) -> int:
    """How many trials the model was chosen from by its scores on some of these cases; 1 where there was no such choice.

    A sweep compares its trials on what their fold holds out. For an ensemble, the trials of all its members' sweeps.
    """
    client = connect(workspace)
    sweeps: dict[str, str] = {}
    for training in model.trainings:
        if not cases & set(store.validation(training.run.fold)):
            continue
        own = client.get_model_version(training.version.name, str(training.version.version)).run_id
        info = _run(own, of=training.uri, client=client) if own else None
        # A fold's run lies under its trial's, and that one under the sweep's.
        while info is not None and PARENT_TAG in info.data.tags:
            info = _run(info.data.tags[PARENT_TAG], of=training.uri, client=client)
        if info is not None and info.info.run_id != own:
            sweeps[info.info.run_id] = info.info.experiment_id
    trials = 0
    for parent, experiment in sweeps.items():
        query = f"tags.`{PARENT_TAG}` = '{parent}'"
        # Deleted ones too: a trial that was thrown away was chosen against all the same.
        children = client.search_runs(
            [experiment], filter_string=query, run_view_type=ViewType.ALL, max_results=MOST_TRIALS
        )
        trials += len({run.data.tags.get(TRIAL_TAG, run.info.run_id) for run in children})
    return max(1, trials)


def held_run(run_id: str, *, client: MlflowClient) -> RunOfMlflow | None:
    """A run of MLflow, deleted or not; None when `mlflow gc` took it away for good."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _run(run_id: str, *, of: str, client: MlflowClient) -> RunOfMlflow:
    found = held_run(run_id, client=client)
    if found is None:
        raise ModelError(
            f"{of}: MLflow holds its run {run_id} no longer, so it is not known how many trials it was chosen from; "
            "expected the run, deleted or not; train it again, or promote it with --force"
        )
    return found


def _training(version: Registered, *, folder: Path, workspace: Workspace) -> Training:
    tags = {item.version: item.tags for item in versions(version.name, workspace=workspace)}[version.version]
    document = run_document(folder, uri=version.uri)
    return Training(uri=version.uri, document=document, data=tags.get(DATA_TAG, ""), version=version)


def _inherited(training: Training) -> tuple[set[str], list[str]]:
    """Scans that the models saw whose weights a training began with, one after the other, and what is not known of them."""
    scans: set[str] = set()
    document = training.document
    while initial := document["params"].get("initial"):
        try:
            document = run_document(unpinned(initial), uri=initial)
            run = Run(**document["run"])
            scans |= _trained_scans(run.store, fold=run.fold)
        except (ModelError, StoreError) as error:
            return scans, [f"{training.uri} began with weights whose training cases are not known ({error})"]
    return scans, []


def _trained_scans(address: str, *, fold: Fold) -> set[str]:
    store = open_stores(address)
    return {_scan(store, case) for case in store.training(fold)}


def _scan(store: Store, case: str) -> str:
    """What stands for a case's first image, in any store."""
    return store.cases[case].source_digests[0]
