"""The benchmark of metrics on organs of a few voxels: both sides run, agree and are printed."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.geometry import Geometry
from segsweep.inference.writers import write_label_map

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "metrics.py"
GRID = Geometry(
    shape=(6, 12, 14), spacing=(2.5, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)
)


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines that the script prints, run in this process."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--rounds", "1", *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_made_organs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("--voxels", "48", monkeypatch=monkeypatch, capsys=capsys)
    assert lines[0].endswith("both sides agree to 1e-06")
    assert [line.split()[0] for line in lines[2:]] == ["segsweep", "surface-distance", "segsweep"]


def test_a_given_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    label = np.zeros(GRID.shape, dtype=np.uint8)
    label[1:4, 2:9, 2:9], label[4:6, 4:6, 4:6] = 1, 2
    for name, moved in (("reference", label), ("prediction", np.roll(label, 1, axis=2))):
        write_label_map(moved, geometry=GRID, path=tmp_path / name / "a.nii.gz")
    folders = [str(tmp_path / name) for name in ("reference", "prediction")]
    assert run("--pair", *folders, monkeypatch=monkeypatch, capsys=capsys)[0].startswith("2 pairs, 1 rounds")
