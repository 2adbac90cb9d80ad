"""The best of a name is its candidate: one that did better on the same fold of the same data keeps that."""

from pathlib import Path

import pytest

from segsweep.models.catalogue import Registered, models, resolve
from segsweep.models.tracking import Tracker
from segsweep.sweeps.tuning_models import propose
from segsweep.workspace import Workspace


def test_candidate_moves_only_to_a_better_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(root=tmp_path)
    tracker = Tracker(workspace, experiment="toy")
    tracker.client.create_registered_model("toy")

    def proposed(dice: str, *, data: str, fold: int = 0) -> int:
        digest = f"{len(models(workspace)):064x}"
        tags = {"segsweep.dice": dice, "segsweep.data": data, "segsweep.fold": str(fold), "segsweep.digest": digest}
        version = tracker.client.create_model_version("toy", source=tmp_path.as_uri(), tags=tags)
        made = Registered(name="toy", version=int(version.version), digest=digest)
        propose(made, workspace=workspace)
        return resolve("models:/toy@candidate", workspace=workspace).version

    assert proposed("0.5000", data="a") == 1
    assert proposed("0.4000", data="a") == 1
    assert proposed("0.6000", data="a") == 3
    assert proposed("0.6000", data="a") == 4, "of equal ones the newest"
    assert proposed("0.1000", data="b") == 5, "Dice on other data says nothing"
    assert proposed("0.0500", data="b", fold=1) == 6, "and on other cases of it"
