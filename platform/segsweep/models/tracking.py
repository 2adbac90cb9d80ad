"""What a sweep writes down: MLflow runs with parameters, metrics, tables and files, found again when a sweep resumes.

Only the driver logs (the SQLite default wants one writer). Every call names its tracking server; MLflow's global state
stays untouched.
"""

import base64
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlparse

# MLflow reads these when it is imported, so they stand before it; what the user has set stays.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
# By itself MLflow asks a server that is away 8 times, for about four minutes. The outbox tries again on its own.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
# Seconds until the answer begins: a server that stores a large model in a bucket answers when it is there.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
# A server on a bucket would hand out links into the bucket, which a machine may not reach that reaches the server.
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from segsweep.errors import ModelError
from segsweep.models.databases import demand_database, public
from segsweep.workspace import Workspace

# The first use of a database runs about 100 migrations, each with its own line.
for _name in ("alembic", "mlflow"):
    logging.getLogger(_name).setLevel(logging.WARNING)

Status = Literal["FINISHED", "FAILED", "KILLED"]

# Our tags of runs and registered versions: what a run is, the sweep and trial that it belongs to, its fold; of a trained model the
# store's digest, the validation Dice with its interval and the digest of its files.
KIND_TAG, SWEEP_TAG, TRIAL_TAG, FOLD_TAG = "segsweep.kind", "segsweep.sweep", "segsweep.trial", "segsweep.fold"
DATA_TAG, DICE_TAG, DIGEST_TAG = "segsweep.data", "segsweep.dice", "segsweep.digest"
INTERVAL_TAG = "segsweep.dice_interval"
# Of a version that `segsweep postprocess` made: the version that its weights are of.
FROM_TAG = "segsweep.cleaned_from"
PARENT_TAG = "mlflow.parentRunId"
TABLES_TAG = "mlflow.loggedArtifacts"
CONTEXT_TAG, NOTE_TAG = "mlflow.data.context", "mlflow.note.content"
NON_FINITE_TAG = "segsweep.non_finite"
# Limits of MLflow's stores (mlflow/utils/validation.py).
PARAM_LENGTH, TAG_LENGTH, DIGEST_LENGTH = 6000, 8000, 36
# Of a version, which PostgreSQL holds MLflow to (mlflow/store/model_registry/dbmodels/models.py).
DESCRIPTION_LENGTH = 5000
METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100

# HTTP: what a wrong password gets.
LOCKED_OUT = (401, 403)
# What is said when MLflow refuses, and what to do about it.
LOCKED = (
    "MLflow does not let this user do what was asked of it",
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user who may",
)
FAILED = ("MLflow could not do what was asked of it", "see that its server runs and MLFLOW_TRACKING_URI is right")

# What MLflow's page of an experiment says above its runs, and that it opens with them and not with traces of language models.
EXPERIMENT_NOTE = (
    "Sweeps and trainings on **{dataset}**. A sweep is a run with its trials below it: open the + before its name. "
    "A run names the cases that it learned from and those that it was scored on (*Dataset*); its plan, settings, environment, curves and "
    "pictures of held-out scans are under *Artifacts*."
)
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}


@contextmanager
def answered() -> Iterator[None]:
    """MLflow's own exceptions as ModelError: around (or as decorator of) whatever asks its server or database something."""
    try:
        yield
    except MlflowException as error:
        what, cure = LOCKED if error.get_http_status_code() in LOCKED_OUT else FAILED
        reason = " ".join(public(error.message).split())
        raise ModelError(f"{what} ({reason}); {cure}, then give the same command again") from error


class Tracker:
    """Runs of one experiment (one a dataset) on the workspace's tracking server.

    The experiment and, with the SQLite default, the database are made on first use (some seconds). Every call raises ModelError
    when the server does not answer.
    """

    def __init__(self, workspace: Workspace, *, experiment: str) -> None:
        self.workspace = workspace
        self.experiment = experiment
        self.client = connect(workspace)
        self.experiment_id = self._experiment_id()

    @answered()
    def start(
        self,
        name: str,
        *,
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        started_ms: int | None = None,
    ) -> str:
        """Begin a run and return its id. `parent` is the id of the run that it is shown under; `started_ms` (since 1970) else is now.

        Values beyond MLflow's limits (6000 characters a parameter, 8000 a tag) are cut, with a note at the cut.
        """
        texts = {key: cut(_text(value), limit=TAG_LENGTH) for key, value in (tags or {}).items()}
        if parent is not None:
            texts[PARENT_TAG] = parent
        created = self.client.create_run(self.experiment_id, start_time=started_ms, tags=texts, run_name=name)
        self._params(created.info.run_id, params or {})
        return created.info.run_id

    @answered()
    def begin(
        self,
        name: str,
        *,
        tags: Mapping[str, Any],
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        started_ms: int | None = None,
    ) -> str:
        """Go on with the run that carries these tags, or `start` it; return its id. Parameters that it lacks are added, none is changed.

        Doing it twice is as doing it once, also when it was cut off the first time.
        """
        run_id = self.find(tags=tags)
        if run_id is None:
            return self.start(name, parent=parent, params=params, tags=tags, started_ms=started_ms)
        self.resume(run_id)
        known = self.client.get_run(run_id).data.params
        self._params(run_id, {key: value for key, value in (params or {}).items() if _key(key) not in known})
        return run_id

    @answered()
    def find(self, experiment: str | None = None, *, tags: Mapping[str, Any]) -> str | None:
        """Id of the newest run that carries all these tags, or None, in the tracker's experiment or the named one."""
        experiment_id = self.experiment_id
        if experiment is not None and experiment != self.experiment:
            other = self.client.get_experiment_by_name(experiment)
            if other is None:
                return None
            experiment_id = other.experiment_id
        wanted = {key: cut(_text(value), limit=TAG_LENGTH) for key, value in tags.items()}
        query = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in wanted.items())
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs([experiment_id], filter_string=query, max_results=1, order_by=order)
        return found[0].info.run_id if found else None

    @answered()
    def resume(self, run_id: str) -> None:
        """Mark a run that was found again as running."""
        self.client.update_run(run_id, status="RUNNING")

    @answered()
    def tag(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Set tags; a tag that is there is replaced."""
        texts = [RunTag(key, cut(_text(value), limit=TAG_LENGTH)) for key, value in values.items()]
        self.client.log_batch(run_id, tags=texts)

    @answered()
    def metrics(self, run_id: str, values: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """Log one step. Sending the same step with the same timestamp twice stores it once.

        Non-finite values are left out of the curves and named in the tag `segsweep.non_finite`.
        """
        moment = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        points = [Metric(_key(key), value, moment, step) for key, value in finite.items()]
        left_out = [key for key in values if key not in finite]
        for first in range(0, len(points), METRICS_AT_ONCE):
            self.client.log_batch(run_id, metrics=points[first : first + METRICS_AT_ONCE])
        if left_out:
            self.tag(run_id, {NON_FINITE_TAG: f"step {step}: {', '.join(left_out)}"})

    @answered()
    def table(self, run_id: str, rows: Sequence[Mapping[str, Any]], *, path: str) -> None:
        """Store rows as the JSON table `path` (ends in .json), which MLflow shows; replaces an older one."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        data = [[_cell(row.get(column)) for column in columns] for row in rows]
        self.client.log_dict(run_id, {"columns": columns, "data": data}, path)
        listed = json.loads(self.client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"))
        entry = {"path": path, "type": "table"}
        if entry not in listed:
            self.client.set_tag(run_id, TABLES_TAG, json.dumps([*listed, entry]))

    @answered()
    def inputs(self, run_id: str, datasets: Sequence[Mapping[str, Any]]) -> None:
        """Say what a run learned from: each of `datasets` has `name`, `digest` (its first 36 characters are kept), `context`, `source`
        and `profile`, what its page shows of it. Doing it twice is as doing it once.
        """
        self.client.log_inputs(run_id, datasets=[_dataset_input(dataset) for dataset in datasets])

    @answered()
    def file(self, run_id: str, text: str, *, path: str) -> None:
        """Store a text as the artifact `path`; replaces an older one."""
        self.client.log_text(run_id, text, path)

    @answered()
    def picture(self, run_id: str, encoded: str, *, path: str) -> None:
        """Store bytes, given in base64, as the artifact `path`; replaces an older one."""
        with tempfile.TemporaryDirectory(prefix="segsweep-") as scratch:
            file = Path(scratch) / PurePosixPath(path).name
            file.write_bytes(base64.b64decode(encoded))
            above = PurePosixPath(path).parent
            self.client.log_artifact(run_id, str(file), None if above == PurePosixPath() else str(above))

    @answered()
    def finish(self, run_id: str, *, status: Status = "FINISHED", ended_ms: int | None = None) -> None:
        """End a run, at `ended_ms` (since 1970) or now."""
        self.client.set_terminated(run_id, status=status, end_time=ended_ms)

    def _params(self, run_id: str, params: Mapping[str, Any]) -> None:
        values = [Param(_key(key), cut(_text(value), limit=PARAM_LENGTH)) for key, value in params.items()]
        for first in range(0, len(values), PARAMS_AT_ONCE):
            self.client.log_batch(run_id, params=values[first : first + PARAMS_AT_ONCE])

    @answered()
    def _experiment_id(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            return self.client.create_experiment(
                self.experiment,
                artifact_location=_artifact_location(self.workspace),
                tags={NOTE_TAG: EXPERIMENT_NOTE.format(dataset=self.experiment), **EXPERIMENT_KIND},
            )
        if found.lifecycle_stage != "active":
            raise ModelError(
                f"experiment {self.experiment!r} was deleted in MLflow; restore it there "
                f"(mlflow experiments restore --experiment-id {found.experiment_id}) or use another name"
            )
        return found.experiment_id


def connect(workspace: Workspace) -> mlflow.MlflowClient:
    """A client for the workspace's tracking server and registry. Raises ModelError when the address cannot be used, ResourceError when
    a database there does not answer.

    A database is opened here, a server is not asked anything yet.
    """
    demand_database(workspace.tracking_uri, variable="MLFLOW_TRACKING_URI")
    try:
        return mlflow.MlflowClient(tracking_uri=workspace.tracking_uri, registry_uri=workspace.tracking_uri)
    except Exception as error:  # every database's driver raises its own
        raise ModelError(
            f"tracking server {public(workspace.tracking_uri)!r} cannot be used ({public(str(error))}); "
            "expected sqlite:///FILE, http(s)://HOST or another MLflow address in MLFLOW_TRACKING_URI"
        ) from error


def _dataset_input(dataset: Mapping[str, Any]) -> DatasetInput:
    """MLflow's own value: its classes for data in memory would load pandas."""
    source = str(dataset["source"])
    entity = Dataset(
        name=dataset["name"],
        digest=dataset["digest"][:DIGEST_LENGTH],
        source_type=urlparse(source).scheme or "local",
        source=json.dumps({"uri": source}),
        profile=json.dumps(dataset["profile"]),
    )
    return DatasetInput(entity, tags=[InputTag(CONTEXT_TAG, dataset["context"])])


def _artifact_location(workspace: Workspace) -> str | None:
    """Where artifacts go: into the workspace when a database is written to directly; a server decides for itself."""
    embedded = urlparse(workspace.tracking_uri).scheme.startswith(("sqlite", "postgresql"))
    return workspace.artifacts.absolute().as_uri() if embedded else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def cut(text: str, *, limit: int) -> str:
    """A text of at most so many characters, with a note where it was cut."""
    if len(text) <= limit:
        return text
    note = f"… (cut; {len(text)} characters)"
    return text[: limit - len(note)] + note


def _key(name: str) -> str:
    """A name that MLflow accepts: other characters than letters, digits and `_/-. :` become `_`."""
    return re.sub(r"[^/\w.\- :]", "_", name)


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _quoted(value: str) -> str:
    if "'" in value and '"' in value:
        raise ModelError(
            f"tag value {value!r} cannot be searched for: it holds both kinds of quotes; expected at most one"
        )
    return f'"{value}"' if "'" in value else f"'{value}'"
