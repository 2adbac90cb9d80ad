"""A sweep's study as `study.json` in its folder in a bucket: a driver's machine that is lost takes no sweep along.

It is written before a trial is handed out, so that no worker begins one that it does not know, and after trials ended.
"""

import json
import time
from functools import partial
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from segsweep.data import storage
from segsweep.data.manifest import read_json

FILE = "study.json"
# Seconds between two writings for trials that ended: the next driver finds out by itself that they did.
PAUSE = 10.0
DAMAGED = "delete it where the studies' database still knows the sweep, else choose another name=…"


class StudyRecord:
    """The record of a study at an address; of one without an address nothing is kept."""

    def __init__(self, study: optuna.Study, *, uri: str) -> None:
        self._study, self._uri, self._written = study, uri, 0.0

    def save(self, *, now: bool) -> None:
        """Write it, unless that was done a moment ago and need not be `now`. Raises StoreError when the storage stays away."""
        if self._uri and (now or time.monotonic() - self._written > PAUSE):
            content = json.dumps(described(self._study)).encode()
            storage.patiently(partial(storage.write_bytes, self._uri, content))
            self._written = time.monotonic()


def described(study: optuna.Study) -> dict[str, Any]:
    """All that a study knows, as JSON-able values."""
    return {
        "directions": [direction.name.lower() for direction in study.directions],
        "user_attrs": study.user_attrs,
        "trials": [_described(trial) for trial in study.get_trials(deepcopy=False)],
    }


def restore(database: Any, *, name: str, uri: str) -> None:
    """Make a study again from its record at an address, where the database knows less of it than the record."""
    if not uri or not storage.patiently(partial(storage.exists, uri)):
        return
    record = storage.patiently(partial(read_json, uri, do=DAMAGED))
    if name in optuna.get_all_study_names(database):
        if not _behind(optuna.load_study(study_name=name, storage=database), record=record):
            return
        optuna.delete_study(study_name=name, storage=database)
    study = optuna.create_study(storage=database, study_name=name, directions=record["directions"])
    study.add_trials(map(_restored, record["trials"]))
    # Last: without them it is known to be half made.
    for key, value in record["user_attrs"].items():
        study.set_user_attr(key, value)


def _behind(study: optuna.Study, *, record: dict[str, Any]) -> bool:
    """Whether a study lacks something that its record holds: another machine went on with it, or it was being made again."""
    trials = study.get_trials(deepcopy=False)
    if len(trials) < len(record["trials"]) or not record["user_attrs"].keys() <= study.user_attrs.keys():
        return True
    pairs = zip(record["trials"], trials, strict=False)
    return any(TrialState[one["state"]].is_finished() and not trial.state.is_finished() for one, trial in pairs)


def _described(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "state": trial.state.name,
        "values": trial.values,
        "params": {name: trial.distributions[name].to_internal_repr(value) for name, value in trial.params.items()},
        "distributions": {name: distribution_to_json(found) for name, found in trial.distributions.items()},
        "intermediate_values": trial.intermediate_values,
        "user_attrs": trial.user_attrs,
        # Among them the parameters of one that is queued, and constraints.
        "system_attrs": trial.system_attrs,
    }


def _restored(entry: dict[str, Any]) -> FrozenTrial:
    found = {name: json_to_distribution(text) for name, text in entry["distributions"].items()}
    return create_trial(
        state=TrialState[entry["state"]],
        values=entry["values"],
        params={name: found[name].to_external_repr(value) for name, value in entry["params"].items()},
        distributions=found,
        intermediate_values={int(step): value for step, value in entry["intermediate_values"].items()},
        user_attrs=entry["user_attrs"],
        system_attrs=entry["system_attrs"],
    )
