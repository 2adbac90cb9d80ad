"""Where a run comes from, for who looks at it in MLflow: who began it, from which commit, on which cases; and what its folder keeps."""

import contextlib
import getpass
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segsweep.data.store import Store
from segsweep.evaluation.curves import learning_curves
from segsweep.evaluation.whole_scans import Scores
from segsweep.models.cards import card
from segsweep.models.outbox import Outbox, Tags
from segsweep.models.tracking import NOTE_TAG
from segsweep.run import Fold
from segsweep.sweeps.record import OVERLAYS, RECORD, epochs_of
from segsweep.sweeps.run_folder import VALIDATION, joined_scores

# MLflow's own names: its pages show them as source, version and user of a run.
USER_TAG, SOURCE_TAG, SOURCE_TYPE_TAG = "mlflow.user", "mlflow.source.name", "mlflow.source.type"
COMMIT_TAG, DIRTY_TAG = "mlflow.source.git.commit", "mlflow.source.git.dirty"
LEGEND = f"`{OVERLAYS}/` under *Artifacts*: the truth is outlined in orange, what the model found in blue, green where both lines run."
# Seconds that git may take for an answer; a checkout on a network drive may be slow.
PATIENCE = 20


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What is known of a run before it begins: MLflow's tags, and the cases of its folds as `Tracker.inputs` takes them."""

    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[Fold, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def tell(self, outbox: Outbox, *, run: Tags, fold: Fold | None = None) -> None:
        """Write it down for a run that was begun, with the cases of all folds or, of a run of one `fold`, its own."""
        if self.tags:
            outbox.tag(run, self.tags)
        inputs = [one for own, parts in self.inputs.items() if fold in (None, own) for one in parts]
        if inputs:
            outbox.inputs(run, inputs)


UNKNOWN = Lineage()


def lineage_of(store: Store, *, folds: Sequence[Fold], command: str) -> Lineage:
    """The lineage of what a command (`segsweep tune SPACE`) trains on folds of a store."""
    return Lineage(tags=origin(command), inputs={fold: datasets(store, fold=fold) for fold in folds})


def origin(command: str) -> dict[str, str]:
    """Tags that say who gave which command, and the commit of the checkout that segsweep runs from, if it runs from one."""
    tags = {SOURCE_TAG: command, SOURCE_TYPE_TAG: "LOCAL"}
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container may know no name for its user
        user = user or getpass.getuser()
    if user:
        tags[USER_TAG] = user
    return {**tags, **commit_of(Path(__file__))}


def commit_of(file: Path) -> dict[str, str]:
    """Tags with the commit of the checkout that a file belongs to, and whether anything in it differs from that.

    Nothing without git, and for a file that git does not know: an installed package may lie within somebody's checkout.
    """
    known = _git("ls-files", "--error-unmatch", file.name, at=file.parent)
    commit = _git("rev-parse", "HEAD", at=file.parent) if known else None
    changes = _git("status", "--porcelain", at=file.parent) if commit else None
    if commit is None or changes is None:
        return {}
    return {COMMIT_TAG: commit, DIRTY_TAG: "true" if changes else "false"}


def datasets(store: Store, *, fold: Fold) -> list[dict[str, Any]]:
    """The cases that a fold trains on and those that it holds out, as two of MLflow's datasets with the store's digest.

    MLflow keeps one dataset of a name and digest in an experiment, so the fold is part of the name.
    """
    which = "all folds" if fold == "all" else f"fold {fold}"
    parts = {"training": store.training(fold), "validation": store.validation(fold)}
    return [
        {
            "name": f"{store.dataset} {which} {part}",
            "digest": store.digest,
            "context": f"{part} {which}",
            "source": store.uri,
            "profile": {
                "cases": len(case_ids),
                "cases_annotated": sum(bool(store.cases[case_id].annotated) for case_id in case_ids),
                "cases_in_store": len(store.cases),
                "structures": len(store.table.labels.structures),
                "channels": ", ".join(store.channels),
            },
        }
        for part, case_ids in parts.items()
        if case_ids
    ]


def publish(folder: Path, *, outbox: Outbox, run: Tags) -> None:
    """Put what a training's folder keeps for people into its MLflow run: documents, curves, pictures, and its Dice as description.

    Of a training that failed that is what it had written by then.
    """
    for path in sorted((folder / RECORD).glob("*.json")):
        outbox.file(run, path.read_text(), path=path.name)
    epochs = epochs_of(folder)
    if epochs:
        outbox.file(run, learning_curves(epochs), path="curves.svg")
    pictures = sorted((folder / RECORD / OVERLAYS).glob("*.png"))
    for path in pictures:
        outbox.picture(run, path.read_bytes(), path=f"{OVERLAYS}/{path.name}")
    words = card(scores_of(folder))
    if words:
        outbox.tag(run, {NOTE_TAG: f"{words}\n\n{LEGEND}" if pictures else words})


def scores_of(folder: Path) -> Scores:
    """Case -> structure -> Dice as its validation left them in a training's folder; nothing where it was not validated."""
    return joined_scores([folder], name=VALIDATION)


def _git(*words: str, at: Path) -> str | None:
    """What git answers in a folder; None where it cannot, or is not there. It writes nothing, its index neither."""
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *words], cwd=at, env=quiet, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
