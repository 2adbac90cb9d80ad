"""What the folder of a run holds, and how it is read, written to and tidied.

checkpoints/ (the last and the best one), model/ (weights without optimizer), finder/ (the model that shows a cascade's where to look),
record/ (what people look at), validation.json (validation_nsd.json beside it, if asked for) and, last of all, result.json; validations
between epochs are validation-EPOCH.json. A folder with a result is never trained again; one without goes on from its last checkpoint.
`trial.fit_folds` says what the folder of a trial of several folds holds.
"""

import contextlib
import secrets
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from segsweep.data import storage
from segsweep.data.manifest import read_json, write_json
from segsweep.errors import StorageAwayError, SupersededError
from segsweep.evaluation.whole_scans import Scores
from segsweep.learning import checkpoint

RESULT, STOP, TRANSFER = "result.json", "stop", "transfer.json"
VALIDATION, NSD_VALIDATION = "validation.json", "validation_nsd.json"
# A driver's mark in a trial's folder once MLflow was told how it ended: that machine's own, for MLflow may be too.
LOGGED = "logged"
CHECKPOINTS, MODEL = "checkpoints", "model"
# The attempt that may write there, and no other: a node that was cut off, and taken for dead, may train on for a while.
ATTEMPT = ".attempt"


def read_result(folder: Path) -> Mapping[str, Any]:
    """The result of a finished run's folder. Raises InputError when its file is damaged."""
    return read_json(folder / RESULT, do="delete it: the run goes on from its last checkpoint")


def light(name: str) -> bool:
    """Whether a file of a run's folder, or of one above it, is what a driver looks at: all but weights, and its own marks."""
    parts = PurePosixPath(name).parts
    return parts[-1] != LOGGED and not {CHECKPOINTS, MODEL, checkpoint.FINDER} & set(parts)


def write_scores(folder: Path, *, dice: Scores, nsd: Scores) -> None:
    """Keep what a run's held-out cases scored: case -> structure -> score. NSD has a file only where it was asked for."""
    write_json(folder / VALIDATION, dice)
    if nsd:
        write_json(folder / NSD_VALIDATION, nsd)


def joined_scores(folders: Sequence[Path], *, name: str) -> Scores:
    """What several runs' files of this name say, where they have one; each held out other cases. Raises InputError for a damaged one."""
    files = [folder / name for folder in folders if (folder / name).is_file()]
    do = f"delete it and the {RESULT} beside it: the run goes on from its last checkpoint"
    return {case_id: scores for file in files for case_id, scores in read_json(file, do=do).items()}


def begin_attempt(uri: str) -> str:
    """Take the run in a folder, at an address, from all who trained it before; the mark by which `demand_attempt` knows who did."""
    attempt = secrets.token_hex(8)
    storage.patiently(partial(storage.write_bytes, f"{uri}/{ATTEMPT}", attempt.encode()))
    return attempt


def demand_attempt(uri: str, *, attempt: str) -> None:
    """Raise SupersededError once somebody else has begun to train the run in that folder."""
    with contextlib.suppress(StorageAwayError):  # nothing can be written there either
        if storage.read_bytes(f"{uri}/{ATTEMPT}") != attempt.encode():
            raise SupersededError(f"{uri}: another process trains this run now; this one was cut off from it and ends")


def request_stop(folder: str | Path) -> None:
    """Ask the run in a folder to stop after its current epoch; it saves, reports `stopped_early` and ends by itself."""
    uri = storage.address(folder)
    if not storage.is_remote(uri):
        Path(folder).mkdir(parents=True, exist_ok=True)
    storage.patiently(partial(storage.write_bytes, f"{uri}/{STOP}", b""))


def tidy(folder: Path) -> None:
    """Remove Ray's own records of a training, and what a killed process left half written."""
    for leftover in (*folder.rglob("ray"), *folder.rglob(".*.partial-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in folder.rglob(f".{ATTEMPT}.*"):
        leftover.unlink(missing_ok=True)
