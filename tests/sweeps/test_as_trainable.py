"""`as_trainable` fits into a user's own `tune.run`: their grid, their folders; a bad value fails its own trial only."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray.tune

from segsweep.run import Run
from segsweep.sweeps.training import as_trainable


@pytest.mark.usefixtures("cluster")
def test_users_own_grid_of_losses(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    monkeypatch.chdir(phantom_store.parent)  # as a user writes it: trials run elsewhere
    run = Run(trainable="unet", store=phantom_store.name, params=tiny)
    analysis = ray.tune.run(
        as_trainable(run),
        config={"loss": ray.tune.grid_search(["dice_focal", "nonsense"]), "trainable": "resenc_unet"},
        metric="dice",
        mode="max",
        storage_path=str(tmp_path),
        raise_on_failed_trial=False,
        verbose=0,
    )
    good, bad = sorted(analysis.trials, key=lambda trial: trial.config["loss"])
    assert (good.status, bad.status) == ("TERMINATED", "ERROR")
    assert 0.0 <= good.last_result["dice"] <= 1.0
    assert good.last_result["status"] == "finished"
    assert analysis.best_config == {"loss": "dice_focal", "trainable": "resenc_unet"}
    model = Path(good.local_path or "") / "run" / "model"
    assert (model / "weights.safetensors").is_file()
    assert json.loads((model / "run.json").read_text())["run"]["trainable"] == "resenc_unet", "a trial chooses its own"
    assert "loss='nonsense' cannot be used" in Path(bad.error_file or "").read_text()
    assert not (Path(bad.local_path or "") / "run").exists()
