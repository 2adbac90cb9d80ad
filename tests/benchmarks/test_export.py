"""The benchmarks of export and of a scan's memory, on grids so small that only what they count is looked at."""

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("export")


def test_our_side_equals_float64_and_a_wrong_voxel_is_counted(
    export: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = export.label_map(6, path=None, shape=(8, 30, 30))
    logits = export.logits_of(label, classes=6)
    assert len(np.unique(label)) > 3
    np.save(tmp_path / "logits.npy", logits)
    asked = {"logits": str(tmp_path / "logits.npy"), "label": str(tmp_path / "label.npy"), "shape": [12, 45, 45]}
    export.ours(asked)
    assert json.loads(capsys.readouterr().out)["seconds"] > 0
    found = np.load(tmp_path / "label.npy")
    assert found.shape == (12, 45, 45) and export.differences(logits, label=found) == (0, 0)
    found[0, 0, 0] = 5
    assert export.differences(logits, label=found) == (1, 0)


def test_a_scan_within_its_budget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    arguments = ("--shape", "6", "24", "24", "--patch", "8", "16", "16", "--features", "2", "--structures", "3")
    script = BENCHMARKS / "scan_budget.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments, "--threads", str(torch.get_num_threads())])
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6x24x24, 3 structures, 1 members")
    assert lines[1].split(" s: ")[1].startswith("read ") and lines[-1].startswith("peak memory")
