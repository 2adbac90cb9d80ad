"""Where results go: one folder with the MLflow database and artifacts, the Optuna studies, runs and sweeps.

`SEGSWEEP_WORKSPACE` names it (default `./workspace`). `MLFLOW_TRACKING_URI` and `SEGSWEEP_STUDIES` point the tracking
server and the study storage elsewhere; nothing else changes.

It may be `s3://BUCKET/FOLDER`, for machines that share no disk: runs, sweeps, scores, probabilities and reports lie there. What cannot
lie in a bucket (databases that no server keeps, the outbox, locks) and copies of what was last looked at lie on the machine that gives
the command, in `segsweep/BUCKET/FOLDER` below XDG_STATE_HOME (default `~/.local/state`).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from segsweep.errors import InputError

REMOTE = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.\.?(/|$))[^/@]+)*")


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Addresses derived from one folder of this machine, which all share; or from a bucket's, `uri`, which all share instead."""

    root: Path
    uri: str = ""

    @property
    def tracking_uri(self) -> str:
        """MLflow tracking and registry address."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        """MLflow artifacts of the embedded default."""
        return self.root / "artifacts"

    @property
    def studies_uri(self) -> str:
        """Optuna storage address."""
        return os.environ.get("SEGSWEEP_STUDIES") or self.own_studies_uri

    @property
    def own_studies_uri(self) -> str:
        """Optuna storage that no other workspace uses."""
        return f"sqlite:///{self.root / 'studies.db'}"

    @property
    def runs(self) -> Path:
        """Single training runs, one folder each."""
        return self.root / "runs"

    @property
    def sweeps(self) -> Path:
        """Sweeps, one folder each, with one folder a trial."""
        return self.root / "sweeps"

    @property
    def probabilities(self) -> Path:
        """What models said of cases that they were not trained on, kept for the choice of ensembles; may be deleted at any time."""
        return self.root / "probabilities"

    @property
    def scores(self) -> Path:
        """Scores of registered models on whole scans, one file a model and store."""
        return self.root / "scores"

    @property
    def reports(self) -> Path:
        """Pages of promotion decisions."""
        return self.root / "reports"

    @property
    def outbox(self) -> Path:
        """What the tracking server has not taken yet, one file a driver."""
        return self.root / "outbox"


def current_workspace() -> Workspace:
    """The workspace that the environment names, made if it is not there yet. Raises InputError for an address that is none."""
    given = os.environ.get("SEGSWEEP_WORKSPACE", "workspace")
    uri = given.rstrip("/") if "://" in given else ""
    if uri and not REMOTE.fullmatch(uri):
        shown = uri.rpartition("@")[2]  # what stands before an @ may be a password
        raise InputError(
            f"SEGSWEEP_WORKSPACE={shown!r} is no place for results; expected a folder or s3://BUCKET/FOLDER"
        )
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state", "segsweep", uri.removeprefix("s3://"))
    root = (state if uri else Path(given)).expanduser().resolve()
    root.mkdir(parents=True, exist_ok=True)
    return Workspace(root=root, uri=uri)
