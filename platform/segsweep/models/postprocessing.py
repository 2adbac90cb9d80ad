"""A model with the clean-up that helps it, found on cases that it was not trained on, as a new version of the same name."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segsweep.data.store import Store
from segsweep.errors import ModelError
from segsweep.evaluation.postprocessing import Found, choose, try_case
from segsweep.learning.checkpoint import MANIFEST, RUN, read_json, write_manifest
from segsweep.learning.inference import CLEAN_UP
from segsweep.models.catalogue import Registered, resolve, versions
from segsweep.models.contenders import contender, demand_comparable, held_run, open_data, unseen
from segsweep.models.ensemble import load_predictor
from segsweep.models.registry import ENSEMBLE, fetch, register
from segsweep.models.tracking import (
    DATA_TAG,
    FOLD_TAG,
    FROM_TAG,
    KIND_TAG,
    SWEEP_TAG,
    TRIAL_TAG,
    Tracker,
    answered,
    connect,
)
from segsweep.workspace import Workspace

# What a version keeps of the one that it comes from. Not its Dice: `ensemble` would take the same weights twice.
KEPT_TAGS = (DATA_TAG, FOLD_TAG, KIND_TAG, SWEEP_TAG, TRIAL_TAG, "segsweep.run")


@dataclass(frozen=True, kw_only=True)
class Postprocessed:
    """What was found for a version on so many cases; `registered` is None where nothing helps."""

    version: Registered
    cases: int
    found: Found
    registered: Registered | None

    def __str__(self) -> str:
        on = f"{self.cases} case{'' if self.cases == 1 else 's'} that it was not trained on"
        if self.registered is None:
            return f"nothing registered: no rule raises the Dice of {self.version.uri} on {on}"
        gain = f"Dice {self.found.before:.4f} -> {self.found.after:.4f} on {on}"
        return f"registered {self.registered.uri}: {self.version.uri} with {in_words(self.found)}; {gain}"


def postprocess(
    model: str, *, workspace: Workspace, store: str = "", progress: Callable[[int, int], None] | None = None
) -> Postprocessed:
    """Try nnU-Net's clean-up rules on a model or ensemble; where some help, register it with them.

    `store` is where its data lies now (where it was trained from, if empty). The rules are added to those that its method has. The new
    version has the same weights and belongs to the same run; its document records the rules, the gain of each structure, the cases and
    the version that it comes from. It gets no alias. Raises ModelError or StoreError when the model is damaged, its data is another
    version, or no case is new to it. `progress` is told (scans done, all scans).
    """
    version = resolve(model, workspace=workspace)
    candidate = contender(version, workspace=workspace)
    demand_comparable(candidate, champion=candidate)
    opened = open_data(candidate, store=store)
    cases = sorted(unseen(candidate, store=opened).cases)
    if not cases:
        raise ModelError(
            f"{version.uri} was trained on every annotated case of {opened.uri}; expected some that are new to it: train it on a fold, "
            "or keep a validation split"
        )
    run_id = _run_id(version, workspace=workspace)
    predictor = load_predictor(version.uri, workspace=workspace)
    tried = {}
    for done, case_id in enumerate(cases, start=1):
        tried[case_id] = try_case(predictor, store=opened, case_id=case_id)
        if progress is not None:
            progress(done, len(cases))
    found = choose(tried, present=predictor.members[0].inference.clean_up)
    registered = (
        _register(version, found=found, store=opened, run_id=run_id, workspace=workspace) if found.helps else None
    )
    return Postprocessed(version=version, cases=len(cases), found=found, registered=registered)


def in_words(found: Found) -> str:
    """`the largest component of liver, spleen alone`: the rules that were added."""
    whole = ["the whole foreground"] if found.rules.foreground != found.present.foreground else []
    names = [name for name in found.rules.largest if name not in found.present.largest]
    return f"the largest component of {' and of '.join([*whole, *([', '.join(names)] if names else [])])} alone"


@answered()
def _run_id(version: Registered, *, workspace: Workspace) -> str:
    """The run that made a version, and will have the new one too. Raises ModelError where MLflow would refuse that."""
    client = connect(workspace)
    run_id = client.get_model_version(version.name, str(version.version)).run_id
    run = held_run(run_id, client=client) if run_id else None
    if run is None:
        raise ModelError(f"{version.uri} belongs to no run; expected the one that made it; register the model again")
    if run.info.lifecycle_stage != "active":
        raise ModelError(
            f"{version.uri} belongs to the run {run_id}, which was deleted; expected it, since the new version belongs to it too; "
            f"mlflow runs restore --run-id {run_id}"
        )
    return run.info.run_id


@answered()
def _register(version: Registered, *, found: Found, store: Store, run_id: str, workspace: Workspace) -> Registered:
    tracker = Tracker(workspace, experiment=store.dataset)
    known = {item.version: item.tags for item in versions(version.name, workspace=workspace)}[version.version]
    tags = {key: known[key] for key in KEPT_TAGS if key in known}
    with tempfile.TemporaryDirectory(prefix="segsweep-") as scratch:
        folder = Path(scratch) / "model"
        _copy(fetch(version.uri, workspace=workspace), to=folder)
        document = folder / (ENSEMBLE if (folder / ENSEMBLE).is_file() else RUN)
        values = read_json(document) | {CLEAN_UP: _record(found, version=version, store=store)}
        document.write_text(json.dumps(values, indent=1, sort_keys=True))
        write_manifest(folder)
        return register(
            folder,
            name=version.name,
            tracker=tracker,
            run_id=run_id,
            tags={**tags, FROM_TAG: version.uri},
            scores=found.scores,
        )


def _copy(source: Path, *, to: Path) -> None:
    """The files that a manifest lists, but not the manifest."""
    for name in read_json(source / MANIFEST)["files"]:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, to / name)


def _record(found: Found, *, version: Registered, store: Store) -> Mapping[str, Any]:
    return {
        "rules": found.rules.to_json(),
        "from": {"uri": version.uri, "digest": version.digest},
        "data": store.digest,
        "cases": sorted(found.scores),
        "dice": {name: asdict(gain) for name, gain in found.gains.items()},
    }
