"""The model that a training starts from, found by the driver: workers get a folder and its digest, and never ask the registry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segsweep.data import storage
from segsweep.errors import ModelError
from segsweep.learning.checkpoint import MANIFEST, RUN
from segsweep.learning.transfer import PINNED, Report, pinned, transfer_from
from segsweep.models.registry import ENSEMBLE, fetch
from segsweep.sweeps.preparing import Prepared
from segsweep.workspace import Workspace

INITIAL = "initial"


def pin(params: Mapping[str, Any], *, workspace: Workspace) -> dict[str, Any]:
    """The parameters with `initial` (an address as in `fetch`, or a finished run's folder) as a checkpoint folder and its digest.

    The digest makes it part of what names a run. Where the workspace lies in a bucket, the folder is a copy there.
    Raises ModelError when there is no such model, it is damaged, or an ensemble.
    """
    address = params.get(INITIAL)
    if not address or PINNED.fullmatch(str(address)):
        return dict(params)
    trained = Path(str(address)).expanduser() / "model"
    folder = fetch(trained if (trained / MANIFEST).is_file() else str(address), workspace=workspace)
    if not (folder / RUN).is_file():
        held = "an ensemble" if (folder / ENSEMBLE).is_file() else f"no {RUN}"
        raise ModelError(f"initial={address}: holds {held}; expected a single trained model")
    found = pinned(folder)
    return {**params, INITIAL: _sent(folder, found=found, workspace=workspace) if workspace.uri else found}


def _sent(folder: Path, *, found: str, workspace: Workspace) -> str:
    """What `pinned` found, of a copy in the workspace, which is made where there is none."""
    digest = found.rpartition("@")[2]
    uri = f"{workspace.uri}/{INITIAL}/{digest}"
    if not storage.exists(f"{uri}/{MANIFEST}"):
        storage.upload(folder, uri=uri, last=MANIFEST)
    return f"{uri}@{digest}"


def demand_fitting(prepared: Prepared) -> Report | None:
    """What a run's initial model gives its network; None without one. Raises ModelError when nothing fits."""
    if not prepared.params.initial:
        return None
    model = prepared.method.build(prepared.params, task=prepared.task)
    return transfer_from(model, initial=prepared.params.initial, task=prepared.task)
