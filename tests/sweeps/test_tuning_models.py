"""The best of a name is its candidate: one that did better on the same fold of the same data keeps that."""

from pathlib import Path

import pytest

from segsweep.models.catalogue import Registered, models, resolve
from segsweep.models.tracking import Tracker
from segsweep.sweeps.tuning_models import propose, sweep_note
from segsweep.sweeps.tuning_study import SweptTrial
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


def test_a_sweeps_page_ranks_its_trials_with_what_they_were_given(tmp_path: Path) -> None:
    def trial(number: int, *, state: str, dice: float | None) -> SweptTrial:
        folder = tmp_path / f"trial-{number:04d}"
        return SweptTrial(
            name=folder.name, state=state, dice=dice, epochs=7, config={"loss": "dice_ce", "folder": "x"}, folder=folder
        )

    best = trial(2, state="finished", dice=0.75)
    best.folder.mkdir()
    (best.folder / "validation.json").write_text('{"a": {"Heart": 0.5}, "b": {"Heart": 1.0}}')
    ended = [best, trial(0, state="finished", dice=0.25), trial(1, state="stopped_early", dice=None)]
    note = sweep_note(ended, space="toy", registered=[Registered(name="toy", version=3, digest="d")]).splitlines()
    assert note[0] == "Search space `toy`: 3 trials ended (2 finished, 1 stopped early)."
    assert note[4:6] == [
        "| 1 | &emsp;trial-0002 | &emsp;0.750 (0.500 to 1.000) | &emsp;7 | &emsp;loss=dice_ce |",
        "| 2 | &emsp;trial-0000 | &emsp;0.250 | &emsp;7 | &emsp;loss=dice_ce |",
    ]
    assert note[-1] == "Registered: `models:/toy/3`."
