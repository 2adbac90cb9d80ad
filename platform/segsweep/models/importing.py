"""Networks that others trained, registered as if they had been trained here."""

import tempfile
from pathlib import Path

from segsweep import recipes
from segsweep.learning import checkpoint
from segsweep.learning.checkpoint import Snapshot
from segsweep.learning.nnunet import CANONICAL, read_nnunet
from segsweep.models.catalogue import Registered
from segsweep.models.registry import demand_name, register
from segsweep.models.tracking import DIGEST_TAG, KIND_TAG, Tracker
from segsweep.run import Run
from segsweep.workspace import Workspace

KIND = "import"


def import_nnunet(
    path: Path,
    *,
    name: str,
    workspace: Workspace,
    plans: Path | None = None,
    dataset_json: Path | None = None,
    orientation: str = CANONICAL,
) -> Registered:
    """Register a checkpoint of nnU-Net v2 (all but the first and last as in `read_nnunet`) as the next version of a model, once.

    Raises ModelError when it cannot be read or expressed.
    """
    demand_name(name)
    found = read_nnunet(path, plans=plans, dataset_json=dataset_json, orientation=orientation)
    run = Run(trainable=found.trainable, store=f"nnunet:{found.dataset}", fold=found.fold)
    document = {"run": run.to_json(), "task": found.task.to_json(), "params": recipes.params_json(found.params)}
    with tempfile.TemporaryDirectory(prefix="segsweep-") as scratch:
        folder = Path(scratch) / "model"
        snapshot = Snapshot(weights=found.weights, metrics={}, epoch=found.epoch)
        digest = checkpoint.save(folder, snapshot=snapshot, run=document)
        tracker = Tracker(workspace, experiment=found.dataset)
        tags = {KIND_TAG: KIND, DIGEST_TAG: digest}
        run_id = tracker.find(tags=tags) or tracker.start(name, params=run.to_json(), tags=tags)
        try:
            registered = register(folder, name=name, tracker=tracker, run_id=run_id, tags={KIND_TAG: KIND})
        except BaseException:
            tracker.finish(run_id, status="FAILED")
            raise
    tracker.finish(run_id)
    return registered
