"""The whole walk on the phantom, as `segsweep demo` runs it, with trainings too short to learn much."""

import json
from pathlib import Path

import pytest

from segsweep import recipes
from segsweep.data.readers import read_labels, read_scan
from segsweep.data.store import open_store
from segsweep.demo import walk
from segsweep.models.catalogue import models
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.workspace import current_workspace


@pytest.mark.usefixtures("cluster")
def test_the_walk_leaves_everything_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSWEEP_WORKSPACE", str(tmp_path / "elsewhere"))
    sweep = SweepOptions(name="demo", trials=2, workers=1, concurrent=1, register=2)
    short = {"epochs": 2, "iterations": 3, "patch_size": [16, 32, 32], "features": 4, "levels": 3}
    walk(tmp_path, seed=3, sweep=sweep, params=short)

    store = open_store(tmp_path / "store")
    held_out = set(store.held_out("validation"))
    assert len(held_out) == 4
    for name in ("phantom-ensemble-1", "phantom-unet-1", "phantom-unet-2"):
        folder = tmp_path / "predictions" / name
        assert {path.name for path in folder.iterdir()} == {
            *(f"{case}.nii.gz" for case in held_out),
            "labels.json",
            "performance.csv",
        }
        named = json.loads((folder / "labels.json").read_text())
        assert set(named) == set(store.table.labels.structures)
    for source in recipes.load("datasets", name="phantom").cases(tmp_path / "raw"):
        if source.case_id in held_out:
            label = read_labels(tmp_path / "predictions" / "phantom-ensemble-1" / f"{source.case_id}.nii.gz")
            assert label.geometry.same_grid(read_scan(source.images[0]).geometry)

    scores = (tmp_path / "evaluation" / "scores.csv").read_text().splitlines()
    assert scores[0].startswith("case,structure,dice,iou,nsd,tolerance_mm")
    assert len(scores) == 1 + 4 * len(store.table.labels.structures)
    report = (tmp_path / "evaluation" / "report.html").read_text()
    assert "data:image/png;base64" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    registered = models(current_workspace())
    assert {model.name for model in registered} == {"phantom-unet", "phantom-ensemble"}
    assert [model.version for model in registered if "candidate" in model.aliases] == [1]
